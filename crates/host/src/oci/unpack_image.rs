// SPDX-License-Identifier: Apache-2.0
//! The process that unpacks an image and writes its file system: this program with [`COMMAND`] as first argument.
//!
//! It is started by the agent with open files, confines itself, reads what to do from its standard input, and writes how it
//! went into one of the files. It ends when the agent does.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd},
    process::ExitCode,
};

use wrenn_oci::{Layer, Limits, Rules, UnpackError, Unpacked, UserError, resolve_user, unpack};
use wrenn_os::inherit;

use super::{
    confine::{self, TREE},
    file_system::{self, Size},
    job::{Failure, Job, Kind, Made, Report},
    tree,
};

/// First argument of a program that shall unpack an image. The second one names the image, for those who look at processes. The
/// others are numbers of inherited files: the tree, an empty directory; the file that becomes the file system; the one for the
/// report; and the blobs of the layers, the lowest first.
pub(super) const COMMAND: &str = "unpack-image";
/// Maximum number of entries that were left out and are reported.
const SKIPPED_MAX: usize = 20;

/// Unpacks an image if the program was started for that; returns its exit status then. To be called before anything else.
pub fn unpack_image_if_asked() -> Option<ExitCode> {
    if env::args_os().nth(1).as_deref() != Some(OsStr::new(COMMAND)) {
        return None;
    }
    // It would be "exe"; an error is of no matter.
    let _ = rustix::thread::set_name(c"wrenn-unpack");
    Some(if run(env::args_os().skip(3)) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Does the work, with numbers of inherited files; returns whether it reported how it went.
pub(super) fn run(numbers: impl Iterator<Item = OsString>) -> bool {
    let reported = Files::inherited(numbers).and_then(|files| {
        confine::confine(files.tree, &files.image)?;
        let mut text = Vec::new();
        io::stdin().read_to_end(&mut text)?;
        let job: Job = serde_json::from_slice(&text)?;
        let report = match made(&job, &files.image, files.blobs) {
            Ok(made) => Report::Made(made),
            Err(failure) => Report::Failed(failure),
        };
        (&files.report).write_all(&serde_json::to_vec(&report)?)
    });
    if let Err(error) = &reported {
        eprintln!("the image cannot be unpacked: {error}");
    }
    reported.is_ok()
}

/// Inherited files.
struct Files {
    tree: File,
    image: File,
    report: File,
    blobs: Vec<File>,
}

impl Files {
    fn inherited(mut numbers: impl Iterator<Item = OsString>) -> io::Result<Self> {
        let (tree, image, report) = (next(&mut numbers)?, next(&mut numbers)?, next(&mut numbers)?);
        let files = tree.zip(image).zip(report);
        let ((tree, image), report) =
            files.ok_or_else(|| io::Error::other("it is started by the agent only"))?;
        let mut blobs = Vec::new();
        while let Some(blob) = next(&mut numbers)? {
            blobs.push(blob);
        }
        // They are not for mke2fs.
        inherit::close_files_on_exec()?;
        Ok(Self { tree, image, report, blobs })
    }
}

/// Takes the inherited file that the next argument names, if there is one.
fn next(numbers: &mut impl Iterator<Item = OsString>) -> io::Result<Option<File>> {
    let Some(number) = numbers.next() else { return Ok(None) };
    let number = number.to_str().and_then(|number| number.parse::<RawFd>().ok());
    // SAFETY: a system call on a number.
    let is_open = |number: &RawFd| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
    match number.filter(|number| *number > libc::STDERR_FILENO).filter(is_open) {
        // SAFETY: it is open, and nothing else in this process refers to it.
        Some(number) => Ok(Some(File::from(unsafe { OwnedFd::from_raw_fd(number) }))),
        None => Err(io::Error::other("an argument is no open file; it is started by the agent only")),
    }
}

/// Unpacks the image and makes its file system.
fn made(job: &Job, image: &File, blobs: Vec<File>) -> Result<Made, Failure> {
    let of_host =
        |error: io::Error| Failure::new(kind_of(&error), format!("cannot write the image: {error}"));
    let root = File::open(TREE).map_err(of_host)?;
    let unpacked = unpacked(&root, job, blobs)?;
    let user = user(&root, &job.user)?;
    tree::complete(&root, &job.workdir).map_err(of_host)?;
    let size = Size::of(tree::measure(&root)?);
    image.set_len(size.bytes).map_err(of_host)?;
    file_system::make(size, &job.uuid)?;
    let told = unpacked.first_skipped.iter().take(SKIPPED_MAX);
    let first_skipped = told.map(|skipped| format!("{}: {}", skipped.entry, skipped.cause)).collect();
    Ok(Made { user, skipped: unpacked.skipped, first_skipped })
}

fn unpacked(root: &File, job: &Job, blobs: Vec<File>) -> Result<Unpacked, Failure> {
    let limits = Limits { bytes: job.bytes, entries: job.entries, ..Limits::default() };
    let rules = Rules { limits, devices: true };
    let layers = job.layers.iter().zip(blobs);
    let layers = layers.map(|(of, input)| Layer { digest: of.digest, diff_id: of.diff_id, input });
    unpack(root.as_fd(), layers, &rules, &mut |_| {}).map_err(|error| not_unpacked(&error))
}

/// Converts an error of unpacking.
fn not_unpacked(error: &UnpackError) -> Failure {
    let kind = match error {
        UnpackError::TooLarge { .. } => Kind::TooLarge,
        UnpackError::Files { source, .. } => kind_of(source),
        _ => Kind::Damaged,
    };
    Failure::new(kind, error)
}

/// Finds out what is to blame if the file system of the host refuses something.
fn kind_of(error: &io::Error) -> Kind {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Kind::Full,
        // A name, a value or a size that no file system takes, too many links, or something in the way.
        Some(
            libc::ENAMETOOLONG
            | libc::EINVAL
            | libc::E2BIG
            | libc::ERANGE
            | libc::EFBIG
            | libc::EMLINK
            | libc::ELOOP
            | libc::ENOTDIR
            | libc::EISDIR
            | libc::EEXIST
            | libc::ENOENT
            | libc::ENOTEMPTY
            | libc::EOPNOTSUPP,
        ) => Kind::Damaged,
        _ => Kind::Host,
    }
}

/// Finds the user of the image's program, with the group if the image names one. A user or group that the image names and does not
/// have is refused, as by Docker: whoever it was meant to be, it has no rights in the image. Only `root` needs no account.
fn user(root: &File, wanted: &str) -> Result<String, Failure> {
    let group = wanted.split_once(':').map_or("", |(_, group)| group);
    match resolve_user(root.as_fd(), wanted) {
        Ok(user) => {
            let name = user.name.unwrap_or_else(|| match user.uid {
                0 => "root".to_owned(),
                uid => uid.to_string(),
            });
            // Guests take digits for a number also if they are a name.
            let is_number = group.bytes().all(|byte| byte.is_ascii_digit());
            let number = user.gid.to_string();
            Ok(within(name, if is_number && !group.is_empty() { &number } else { group }))
        }
        Err(UserError::Unknown { .. }) if wanted == "root" => Ok(wanted.to_owned()),
        Err(error @ (UserError::Unknown { .. } | UserError::Unusable { .. })) => {
            Err(Failure::new(Kind::Damaged, error))
        }
        Err(error @ UserError::Files { .. }) => Err(Failure::new(Kind::Host, error)),
    }
}

/// Returns a user with a group, which may be empty for that of the user.
fn within(user: String, group: &str) -> String {
    if group.is_empty() { user } else { format!("{user}:{group}") }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use wrenn_oci::Digest;

    use super::*;

    #[test]
    fn the_user_is_a_name_or_a_number_with_the_group_that_is_named() -> anyhow::Result<()> {
        let home = tempfile::tempdir()?;
        let root = File::open(home.path())?;
        for wanted in ["", "root"] {
            assert_eq!(user(&root, wanted), Ok("root".to_owned()), "without accounts");
        }
        fs::create_dir(home.path().join("etc"))?;
        fs::write(home.path().join("etc/group"), "staff:x:50:\n12:x:13:\n")?;
        fs::write(home.path().join("etc/passwd"), "admin:x:0:0::/:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n")?;
        for (wanted, expected) in [
            ("", "admin"),
            ("app", "app"),
            ("1000:1000", "app:1000"),
            ("app:staff", "app:staff"),
            ("app:12", "app:13"),
            ("app:", "app"),
            (":staff", "admin:staff"),
            ("4242:7", "4242:7"),
        ] {
            assert_eq!(user(&root, wanted), Ok(expected.to_owned()), "{wanted}");
        }
        for (wanted, lacks) in
            [("ghost", "no user of that name"), ("app:ghosts", "no group"), (":ghosts", "no group")]
        {
            let refused = user(&root, wanted).expect_err("what the image lacks is refused");
            assert!(
                refused.kind == Kind::Damaged && refused.message.contains(lacks),
                "{wanted}: {refused:?}"
            );
            assert!(refused.message.contains(wanted), "{wanted}: {refused:?}");
        }
        fs::remove_file(home.path().join("etc/passwd"))?;
        fs::create_dir(home.path().join("etc/passwd"))?;
        assert_eq!(user(&root, "app").map_err(|failure| failure.kind), Err(Kind::Damaged));
        Ok(())
    }

    #[test]
    fn what_is_to_blame_is_told_apart() {
        let (layer, entry) = (Digest::of(b"layer"), "a".to_owned());
        let of = |code: i32| {
            let source = io::Error::from_raw_os_error(code);
            UnpackError::Files { layer, entry: entry.clone(), action: "make", source }
        };
        for (error, kind) in [
            (of(libc::ENOSPC), Kind::Full),
            (of(libc::EDQUOT), Kind::Full),
            (of(libc::ENAMETOOLONG), Kind::Damaged),
            (of(libc::EIO), Kind::Host),
            (of(libc::EROFS), Kind::Host),
            (UnpackError::Refused { layer, entry: entry.clone(), cause: "x" }, Kind::Damaged),
            (UnpackError::TooLarge { layer, what: "bytes", most: 7 }, Kind::TooLarge),
            (UnpackError::Malformed { layer, entries: 1, cause: "x" }, Kind::Damaged),
        ] {
            let failure = not_unpacked(&error);
            assert_eq!((failure.kind, failure.message), (kind, error.to_string()));
        }
    }

    #[test]
    fn it_is_started_with_open_files_only() {
        for numbers in [&[][..], &["x"], &["0", "1", "2"], &["1000000", "1000001", "1000002"]] {
            let numbers = numbers.iter().map(OsString::from);
            assert!(Files::inherited(numbers).is_err());
        }
    }
}
