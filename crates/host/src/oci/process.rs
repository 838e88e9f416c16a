// SPDX-License-Identifier: Apache-2.0
//! Starts the process that unpacks an image, waits for it within limits, and reads what it reports.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, PipeWriter, Read as _, Seek as _, Write as _},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{
            fs::OpenOptionsExt as _,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{statvfs, tell},
    process::{Signal, set_parent_process_death_signal},
    thread::{UnshareFlags, unshare_unsafe},
};
use wrenn_api::ErrorCode;
use wrenn_os::{control_group, inherit};

use super::{
    error::{self, IMPORTING},
    file_system::last_words,
    job::{Job, Made, Report},
    place::Place,
    progress::Progress,
    unpack_image::COMMAND,
};
use crate::{
    cgroup,
    error::{AgentError, full, of_files},
};

/// Maximum memory in MiB, its cache of files included, and number of processors beside one.
const MEMORY_MB: u64 = 2048;
const PROCESSORS: u32 = 1;
/// Its OOM score adjustment, that of VMMs.
const OOM_SCORE: i32 = 500;
/// Interval between looks whether it has ended.
const TICK: Duration = Duration::from_millis(20);
/// Maximum size of a report in bytes.
const REPORT_MAX: u64 = 1 << 20;
/// Maximum length of a user in characters.
pub(super) const USER_MAX: usize = 256;

/// Program that unpacks an image if its arguments say so, and those of them that come first.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
}

impl Program {
    /// This program.
    pub(super) fn own() -> Self {
        Self { path: "/proc/self/exe".into(), arguments: vec![COMMAND.into()] }
    }
}

/// An unpacking.
pub(super) struct Unpacking {
    /// Name of its place, which its control group has, too.
    pub(super) id: String,
    pub(super) program: Program,
    pub(super) place: Place,
    pub(super) job: Job,
    /// Time limit.
    pub(super) limit: Duration,
    /// Bytes that the file system of the place has free at least.
    pub(super) least_free: u64,
    /// Whether the job has lower limits than an image, because there is little room.
    pub(super) by_room: bool,
    /// Where it is told how much is unpacked.
    pub(super) progress: Arc<Progress>,
}

/// How the process ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Code(i32),
    Signal(i32),
    TooLong,
    NoRoom,
}

/// What is left of the process.
struct Ended {
    end: End,
    /// Last part of what it said, in one line.
    said: String,
    report: Option<Report>,
}

impl Unpacking {
    /// Unpacks the image. Blocks. Needs root.
    pub(super) fn run(&self) -> Result<Made, AgentError> {
        let groups = match cgroup::prepare(&self.id, MEMORY_MB, PROCESSORS) {
            Ok(groups) => groups,
            // It has limits of its own, too.
            Err(error) => {
                tracing::warn!(id = self.id, %error, "an image is unpacked without a control group");
                Vec::new()
            }
        };
        let ended = self.run_in(&groups);
        if let Err(error) = cgroup::remove(&self.id) {
            tracing::warn!(id = self.id, %error, "cannot remove the control group of an unpacking");
        }
        self.judge(ended.map_err(|error| of_files(IMPORTING, &error))?)
    }

    fn run_in(&self, groups: &[PathBuf]) -> io::Result<Ended> {
        let new =
            |path: &Path| File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
        let (image, mut report) = (new(&self.place.image())?, new(&self.place.report())?);
        let tree = File::open(self.place.tree())?;
        let blobs = self.job.layers.iter().map(|layer| File::open(self.place.blob(&layer.digest)));
        let blobs = blobs.collect::<io::Result<Vec<File>>>()?;
        let files = [&tree, &image, &report].into_iter().chain(&blobs).map(AsRawFd::as_raw_fd).collect();
        let (output, said) = io::pipe()?;
        let command = self.command(files, groups, said)?;
        let text = serde_json::to_vec(&self.job)?;
        let (begun, input) = mpsc::channel();
        let blobs = blobs.as_slice();
        let (end, said) = thread::scope(|scope| {
            let listener = scope.spawn(move || last_words(output));
            // On a thread of its own, which cannot start others afterwards. The process is killed when this thread ends, with the
            // agent at the latest.
            let starter = scope.spawn(move || self.run_child(command, blobs, &begun));
            // If it does not read this, it has ended, and says why.
            let _ = input.recv().map(|mut input: ChildStdin| input.write_all(&text));
            let end =
                starter.join().unwrap_or_else(|_| Err(io::Error::other("the thread of an unpacking died")));
            (end, listener.join().unwrap_or_default())
        });
        report.rewind()?;
        let mut written = Vec::new();
        report.take(REPORT_MAX).read_to_end(&mut written)?;
        Ok(Ended { end: end?, said, report: serde_json::from_slice(&written).ok() })
    }

    /// Prepares the process, which inherits these files.
    fn command(&self, files: Vec<RawFd>, groups: &[PathBuf], said: PipeWriter) -> io::Result<Command> {
        let mut command = Command::new(&self.program.path);
        command.args(&self.program.arguments).arg(&self.id).args(files.iter().map(RawFd::to_string));
        command.env_clear().current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(said);
        let mut join = control_group::enter(groups)?;
        let before = move || {
            inherit::close_files_on_exec()?;
            inherit::set_oom_score(OOM_SCORE);
            join()?;
            for file in &files {
                // SAFETY: a system call on numbers.
                if unsafe { libc::fcntl(*file, libc::F_SETFD, 0) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            // If the agent has ended before, nobody tells the process what to do, and it ends, too.
            Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
        };
        // SAFETY: system calls only; their arguments were allocated above.
        unsafe { command.pre_exec(before) };
        Ok(command)
    }

    /// Starts the process, passes its input on, and waits for its end.
    fn run_child(&self, mut command: Command, blobs: &[File], begun: &Sender<ChildStdin>) -> io::Result<End> {
        // The process is the first one of a process namespace: it cannot signal processes outside, and the kernel kills all
        // that it starts when it ends.
        // SAFETY: affects only the children of this thread, which starts no others.
        unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
        let mut child = command.spawn()?;
        // So that the listener sees the end of the output when the process ends.
        drop(command);
        // The other side waits for it.
        let _ = child.stdin.take().map(|input| begun.send(input));
        self.wait(&mut child, blobs)
    }

    fn wait(&self, child: &mut Child, blobs: &[File]) -> io::Result<End> {
        let begin = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                let signal = || End::Signal(status.signal().unwrap_or_default());
                return Ok(status.code().map_or_else(signal, End::Code));
            }
            let too_long = (begin.elapsed() >= self.limit).then_some(End::TooLong);
            if let Some(end) = too_long.or(self.lacks_room()?.then_some(End::NoRoom)) {
                child.kill()?;
                child.wait()?;
                return Ok(end);
            }
            self.progress.unpacked(read_of(blobs)?);
            thread::sleep(TICK);
        }
    }

    /// Returns whether less is free than must be, for the data of sandboxes.
    fn lacks_room(&self) -> io::Result<bool> {
        Ok(free(self.place.path())? < self.least_free)
    }

    /// Makes an error of an unpacking that did not succeed.
    fn judge(&self, ended: Ended) -> Result<Made, AgentError> {
        match (ended.end, ended.report) {
            (End::Code(0), Some(Report::Made(made))) => sound(made),
            (End::Code(0), Some(Report::Failed(failure))) => Err(error::of_failure(&failure, self.by_room)),
            (End::TooLong, _) => Err(error::slow_unpacking(self.limit)),
            (End::NoRoom, _) => Err(full()),
            (End::Signal(signal), _) => {
                tracing::error!(
                    id = self.id,
                    signal,
                    said = ended.said,
                    "an unpacking was ended by a signal"
                );
                let message = format!(
                    "the image could not be unpacked: the process was ended by signal {signal}, perhaps because it needs more \
                     memory than it may have; use an image with fewer files"
                );
                Err(AgentError::new(ErrorCode::AgentError, message).of_template())
            }
            (End::Code(code), _) => {
                Err(AgentError::fault(IMPORTING, &format!("the process ended with {code}: {}", ended.said)))
            }
        }
    }
}

/// Returns how many bytes of the blobs were read. The process has inherited these open files, and with them their positions.
fn read_of(blobs: &[File]) -> io::Result<u64> {
    blobs.iter().map(|blob| tell(blob).map_err(io::Error::from)).sum()
}

/// Returns the bytes that are free in the file system of a directory.
pub(super) fn free(directory: &Path) -> io::Result<u64> {
    let stat = statvfs(directory)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Checks what a process says that has read what strangers wrote.
fn sound(made: Made) -> Result<Made, AgentError> {
    let (length, control) = (made.user.chars().count(), made.user.chars().any(char::is_control));
    if !(1..=USER_MAX).contains(&length) || control {
        return Err(error::unfit("the image", "its user has no name that can be used"));
    }
    let shown = |text: &String| error::shown(text, 1024);
    Ok(Made { first_skipped: made.first_skipped.iter().map(shown).collect(), ..made })
}

#[cfg(test)]
mod tests {
    use wrenn_rpc::fault::Of;

    use super::*;
    use crate::oci::job::{Failure, Kind};

    fn unpacking(by_room: bool) -> Unpacking {
        let job = Job {
            layers: Vec::new(),
            bytes: 1,
            entries: 1,
            user: String::new(),
            workdir: "/".to_owned(),
            uuid: String::new(),
        };
        Unpacking {
            id: "x".to_owned(),
            program: Program::own(),
            place: Place::at("/nowhere".into()),
            job,
            limit: Duration::from_secs(7),
            least_free: 0,
            by_room,
            progress: Arc::default(),
        }
    }

    fn judged(end: End, report: Option<Report>, by_room: bool) -> Result<Made, AgentError> {
        unpacking(by_room).judge(Ended { end, said: "/secret".to_owned(), report })
    }

    fn made(user: &str) -> Made {
        Made { user: user.to_owned(), skipped: 1, first_skipped: vec!["a\nb".to_owned()] }
    }

    #[test]
    fn what_another_process_has_read_of_inherited_files_is_known() -> io::Result<()> {
        let (mut read, mut unread) = (tempfile::tempfile()?, tempfile::tempfile()?);
        for file in [&mut read, &mut unread] {
            file.write_all(&[7; 5000])?;
            file.rewind()?;
        }
        let mut reader = Command::new("dd");
        reader.args(["bs=1000", "count=3", "status=none"]).stdin(read.try_clone()?).stdout(Stdio::null());
        assert!(reader.status()?.success());
        assert_eq!(read_of(&[read, unread])?, 3000);
        Ok(())
    }

    #[test]
    fn an_end_without_a_report_is_no_success() {
        let good = judged(End::Code(0), Some(Report::Made(made("app"))), false).expect("made");
        assert_eq!((good.user.as_str(), good.first_skipped), ("app", vec!["a?b".to_owned()]));
        for user in ["", "a\nb", &"x".repeat(USER_MAX + 1)] {
            let refused = judged(End::Code(0), Some(Report::Made(made(user))), false);
            assert_eq!(refused.map_err(|error| error.code), Err(ErrorCode::ImageDamaged), "{user}");
        }
        let too_large = || Some(Report::Failed(Failure::new(Kind::TooLarge, "large")));
        for (end, report, by_room, code, of) in [
            (End::Code(0), None, false, ErrorCode::AgentError, Of::OF_HOST),
            (End::Code(1), Some(Report::Made(made("app"))), false, ErrorCode::AgentError, Of::OF_HOST),
            (End::Signal(9), Some(Report::Made(made("app"))), false, ErrorCode::AgentError, Of::OF_TEMPLATE),
            (End::TooLong, None, false, ErrorCode::Timeout, Of::OF_TEMPLATE),
            (End::NoRoom, None, false, ErrorCode::InsufficientStorage, Of::OF_HOST),
            (End::Code(0), too_large(), false, ErrorCode::ImageTooLarge, Of::OF_TEMPLATE),
            (End::Code(0), too_large(), true, ErrorCode::InsufficientStorage, Of::OF_HOST),
        ] {
            let error = judged(end, report, by_room).expect_err("a failure");
            assert_eq!((error.code, error.of), (code, of), "{error}");
            assert!(!error.message.contains("secret"), "{error}");
        }
    }
}
