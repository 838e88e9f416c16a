// SPDX-License-Identifier: Apache-2.0
//! Secrets of commands: files in memory that one user can read. `POST /secrets` (extension) puts one there, and
//! `DELETE /secrets` overwrites and removes all of them.
//!
//! They are on the tmpfs of `/run`, never on the disk. Whoever makes a template of the guest afterwards must not keep its memory,
//! of which the kernel and programs may still have copies.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, fchown, symlink},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use axum::{
    body::Bytes,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::{
    respond::{error, error_with_reason},
    users::{self, User},
};

/// Where the files are, from the root of the file system.
const DIR: &str = "run/secrets";
/// Magic number of tmpfs (linux/magic.h).
const TMPFS: i64 = 0x0102_1994;
/// Maximum number of secrets, of bytes of each, and of the length of a name.
const SECRETS: usize = 64;
const BYTES: usize = 64 << 10;
const NAME: usize = 64;
/// Zeros that are written at once.
const ZEROS: [u8; 4096] = [0; 4096];

/// Secrets that are there.
static PLACED: Mutex<Vec<Placed>> = Mutex::new(Vec::new());

/// Request body of `POST /secrets`.
#[derive(Deserialize)]
struct NewSecret {
    /// Name of the file.
    id: String,
    /// Absolute path of a link to it; empty for none.
    #[serde(default)]
    target: String,
    /// Who can read it.
    user: String,
    /// The value in base 64.
    value: String,
}

/// A secret that is there. By the open file it is reached wherever a command has moved it to.
struct Placed {
    file: File,
    path: PathBuf,
    link: Option<PathBuf>,
}

/// Puts a secret into the guest. The caller's token has been checked.
pub(crate) async fn post(body: Bytes) -> Response {
    // The error of the parser may quote the body.
    let Ok(NewSecret { id, target, user, value }) = serde_json::from_slice(&body) else {
        return error(StatusCode::BAD_REQUEST, "the body is not valid JSON for /secrets");
    };
    let Ok(value) = STANDARD.decode(value) else {
        return error(StatusCode::BAD_REQUEST, "the value is not base 64");
    };
    let user = match users::find(user).await {
        Ok(user) => user,
        Err(cause) => {
            return error_with_reason(StatusCode::UNAUTHORIZED, "user_not_found", cause.to_string());
        }
    };
    let put = move || {
        let mut placed = placed();
        if placed.len() >= SECRETS {
            let message = format!("there are {SECRETS} secrets already");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        placed.push(put(Path::new("/"), &id, &target, &value, &user)?);
        Ok(())
    };
    answer("the secret cannot be put into the sandbox", tokio::task::spawn_blocking(put).await)
}

/// Overwrites and removes all secrets. The caller's token has been checked.
pub(crate) async fn delete() -> Response {
    let remove = || remove_all(Path::new("/"), &mut placed());
    answer("the secrets of the sandbox cannot be removed", tokio::task::spawn_blocking(remove).await)
}

fn placed() -> MutexGuard<'static, Vec<Placed>> {
    PLACED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(what: &str, done: Result<io::Result<()>, tokio::task::JoinError>) -> Response {
    use io::ErrorKind as K;
    let cause = match done.unwrap_or_else(|cause| Err(io::Error::other(cause))) {
        Ok(()) => return StatusCode::NO_CONTENT.into_response(),
        Err(cause) => cause,
    };
    let status = match cause.kind() {
        K::InvalidInput | K::NotADirectory | K::InvalidFilename => StatusCode::BAD_REQUEST,
        K::AlreadyExists => StatusCode::CONFLICT,
        K::PermissionDenied | K::ReadOnlyFilesystem => StatusCode::FORBIDDEN,
        K::StorageFull | K::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, format!("{what}: {cause}"))
}

/// Writes a secret to a file in memory that this user can read, and makes a link to it. `root` is the root of the file system.
fn put(root: &Path, id: &str, target: &str, value: &[u8], user: &User) -> io::Result<Placed> {
    check(id, target, value)?;
    let dir = root.join(DIR);
    match DirBuilder::new().mode(0o755).create(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let is_dir = fs::symlink_metadata(&dir)?.is_dir();
    if !is_dir || rustix::fs::statfs(&dir)?.f_type != TMPFS {
        return Err(io::Error::other("/run/secrets is no directory in memory"));
    }
    let path = dir.join(id);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path).map_err(
        |error| match error.kind() {
            io::ErrorKind::AlreadyExists => taken("/run/secrets", id),
            _ => error,
        },
    )?;
    let written = file.write_all(value).and_then(|()| fchown(&file, Some(user.uid), Some(user.gid)));
    let link = (!target.is_empty()).then(|| root.join(target.trim_start_matches('/')));
    let mut placed = Placed { file, path, link: None };
    let done = written.and_then(|()| match link.filter(|link| *link != placed.path) {
        Some(link) => {
            make_link(&placed.path, &link, target)?;
            placed.link = Some(link);
            Ok(())
        }
        None => Ok(()),
    });
    if let Err(error) = done {
        // Half of one must not stay, whatever else is wrong.
        placed.remove()?;
        return Err(error);
    }
    Ok(placed)
}

fn check(id: &str, target: &str, value: &[u8]) -> io::Result<()> {
    let invalid = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !(1..=NAME).contains(&id.len()) || id.starts_with(['.', '-']) || !id.bytes().all(known) {
        return invalid(format!(
            "the id of a secret has 1 to {NAME} letters, digits, '_', '.' or '-', and begins with none of the last two"
        ));
    }
    if !target.is_empty() && (!target.starts_with('/') || target.ends_with('/') || target.contains('\0')) {
        return invalid("the target of a secret is the absolute path of a file".to_owned());
    }
    if value.len() > BYTES {
        return invalid(format!("a secret has at most {BYTES} bytes"));
    }
    Ok(())
}

/// Makes a link to the file of a secret, with the directories that it is in.
fn make_link(to: &Path, link: &Path, shown: &str) -> io::Result<()> {
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent)?;
    }
    symlink(to, link).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::new(
            error.kind(),
            format!("there is something at {shown} already: choose another target"),
        ),
        _ => error,
    })
}

fn taken(dir: &str, id: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, format!("there is something at {dir}/{id} already"))
}

impl Placed {
    /// Overwrites the secret and removes what leads to it.
    fn remove(&self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let mut at = 0;
        while at < length {
            let piece = (length - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..piece as usize], at)?;
            at += piece;
        }
        gone(fs::remove_file(&self.path))?;
        // What a command has put in the place of the link is not ours.
        match &self.link {
            Some(link) if fs::read_link(link).is_ok_and(|to| to == self.path) => gone(fs::remove_file(link)),
            _ => Ok(()),
        }
    }
}

/// Succeeds also if there was nothing to remove.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes all secrets; those that cannot be removed stay in the list, and the first error is returned.
fn remove_all(root: &Path, placed: &mut Vec<Placed>) -> io::Result<()> {
    let mut first = Ok(());
    placed.retain(|secret| match secret.remove() {
        Ok(()) => false,
        Err(error) => {
            if first.is_ok() {
                first = Err(error);
            }
            true
        }
    });
    // A command may have put something there.
    let _ = fs::remove_dir(root.join(DIR));
    first
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::fs::MetadataExt as _};

    use super::*;

    /// A file system in memory with a `run`, and the user who runs the tests.
    fn place() -> (tempfile::TempDir, User) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (home, shell) = ("/".into(), "/bin/sh".into());
        (dir, User { name: "me".into(), uid, gid, groups: vec![gid], home, shell })
    }

    #[test]
    fn a_secret_is_a_file_for_one_user_until_it_is_removed() {
        let (dir, user) = place();
        let root = dir.path();
        let mut all = vec![
            put(root, "token", "", b"s3cret", &user).unwrap(),
            put(root, "npm.rc", "/root/.npm/rc", b"other", &user).unwrap(),
        ];
        let path = root.join("run/secrets/token");
        assert_eq!(fs::read(&path).unwrap(), b"s3cret");
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o400, user.uid, user.gid));
        let link = root.join("root/.npm/rc");
        assert_eq!(fs::read_link(&link).unwrap(), root.join("run/secrets/npm.rc"));
        assert_eq!(fs::read(&link).unwrap(), b"other");
        remove_all(root, &mut all).unwrap();
        assert!(all.is_empty() && !root.join("run/secrets").exists());
        assert!(fs::symlink_metadata(&link).is_err() && link.parent().unwrap().exists());
        remove_all(root, &mut all).unwrap();
    }

    #[test]
    fn what_a_command_keeps_of_the_file_is_overwritten() {
        let (dir, user) = place();
        let root = dir.path();
        let long = "secret".repeat(2000);
        let mut all = vec![put(root, "a", "/b", long.as_bytes(), &user).unwrap()];
        let mut open = File::open(root.join("run/secrets/a")).unwrap();
        fs::rename(root.join("run/secrets/a"), root.join("moved")).unwrap();
        fs::remove_file(root.join("b")).unwrap();
        fs::write(root.join("b"), "its own").unwrap();
        remove_all(root, &mut all).unwrap();
        let mut left = Vec::new();
        open.read_to_end(&mut left).unwrap();
        assert!(left.len() == long.len() && left.iter().all(|byte| *byte == 0));
        assert!(fs::read(root.join("moved")).unwrap().iter().all(|byte| *byte == 0));
        assert_eq!(fs::read(root.join("b")).unwrap(), b"its own", "what is not the link stays");
    }

    #[test]
    fn what_is_there_is_not_replaced_and_nothing_is_left() {
        let (dir, user) = place();
        let root = dir.path();
        fs::write(root.join("there"), "x").unwrap();
        let error = put(root, "a", "/there", b"secret", &user).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("/there") && !root.join("run/secrets/a").exists());
        let first = put(root, "a", "", b"secret", &user).unwrap();
        assert_eq!(put(root, "a", "", b"again", &user).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(root.join("run/secrets/a")).unwrap(), b"secret");
        first.remove().unwrap();
    }

    #[test]
    fn names_and_sizes_are_checked() {
        let (dir, user) = place();
        for (id, target, size) in [
            ("", "", 1),
            ("../x", "", 1),
            (".a", "", 1),
            ("a/b", "", 1),
            ("a", "b", 1),
            ("a", "/b/", 1),
            ("a", "", BYTES + 1),
        ] {
            let error = put(dir.path(), id, target, &vec![b'x'; size], &user).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{id:?} {target:?}");
        }
        assert!(!dir.path().join(DIR).exists());
    }

    #[test]
    fn nothing_is_written_to_a_disk() {
        let (dir, user) = place();
        // A file system that is not in memory.
        symlink("/proc", dir.path().join(DIR)).unwrap();
        assert!(put(dir.path(), "a", "", b"secret", &user).is_err());
    }
}
