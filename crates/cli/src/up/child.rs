// SPDX-License-Identifier: Apache-2.0
//! Child processes of `wrenn up`: start, log, restart and stop.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tokio::{
    process::{Child, Command},
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wrenn_os::{control_group, inherit};

use crate::{layout::Layout, process::Record, users::User};

/// Delay before a restart: the first one, which doubles, and the maximum.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Lifetime of a child after which the delay starts again with the first one.
const LIVED: Duration = Duration::from_secs(30);
/// Size in bytes above which a log is rotated. A child has at most two logs of this size, and what it writes
/// between two checks.
const LOG_MAX: u64 = 16 << 20;
/// Interval between checks of a running child's log.
const LOG_LOOK: Duration = Duration::from_secs(10);
/// Length of a log's end that is quoted in messages, in bytes.
pub(super) const QUOTE_MAX: usize = 3000;
/// Number of exits before readiness after which the start fails.
const FAILURES_MAX: u32 = 3;
/// Minimum interval between readiness checks.
const READY_POLL: Duration = Duration::from_millis(50);
/// Minimum interval as a multiple of the check's duration: on a slow machine the checks must not slow down
/// the start.
const READY_PAUSE: u32 = 4;

/// Specification of a child.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    /// Name in process lists, if different from the program's.
    pub(crate) arg0: Option<String>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Its privileges.
    pub(crate) privileges: Privileges,
    /// OOM score adjustment, from -1000 to 1000.
    pub(crate) oom_score: i32,
    /// Control group to run in.
    pub(crate) group: Option<PathBuf>,
    /// Signal for an orderly end; also sent when `wrenn up` dies.
    pub(crate) stop: Signal,
    /// Time limit for an orderly end.
    pub(crate) grace: Duration,
}

/// Privileges of a child.
#[derive(Debug, Clone)]
pub(crate) enum Privileges {
    /// Those of this user, also for all programs that it starts.
    User(User),
    /// Root with only these capabilities (numbers of `linux/capability.h`).
    Root(&'static [u32]),
}

/// A part of Wrenn that did not get ready.
#[derive(Debug)]
pub(crate) struct NotReady {
    name: &'static str,
    what: String,
    log: PathBuf,
}

impl NotReady {
    /// End of the part's log, below its name.
    pub(crate) fn quote(&self) -> String {
        format!("{QUOTE_MARK}{}\n{}", self.log.display(), tail(&self.log))
    }
}

impl std::fmt::Display for NotReady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = tail(&self.log);
        let cause = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        write!(f, "{} {}: {}", self.name, self.what, cause.trim())
    }
}

impl std::error::Error for NotReady {}

/// Heading of a quoted log.
pub(super) const QUOTE_MARK: &str = "--- the end of ";

/// A child that is restarted when it ends.
#[derive(Debug)]
pub(crate) struct Supervised {
    name: &'static str,
    log: PathBuf,
    failures: Arc<AtomicU32>,
    shutdown: CancellationToken,
    anew: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Supervised {
    /// Keeps a child running until [`Supervised::stop`]. The runtime must be single-threaded: a parent-death
    /// signal is sent when the thread that started the child ends.
    pub(crate) fn start(spec: Spec, layout: &Layout) -> Self {
        let (failures, shutdown) = (Arc::new(AtomicU32::new(0)), CancellationToken::new());
        let (name, log, anew) = (spec.name, layout.log(spec.name), Arc::new(Notify::new()));
        let keeper = Keeper {
            spec,
            layout: layout.clone(),
            failures: failures.clone(),
            shutdown: shutdown.clone(),
            anew: anew.clone(),
        };
        Self { name, log, failures, shutdown, anew, task: tokio::spawn(keeper.run()) }
    }

    /// Name in logs and pid files.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Waits until `ready` returns true.
    pub(crate) async fn ready(&self, limit: Duration, mut ready: impl AsyncFnMut() -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            let look = Instant::now();
            if ready().await {
                break;
            }
            let pause = READY_POLL.max(look.elapsed() * READY_PAUSE);
            if self.failures.load(Ordering::Relaxed) >= FAILURES_MAX {
                return Err(self.not_ready("does not start".to_owned()).into());
            }
            if begin.elapsed() > limit {
                return Err(self.not_ready(format!("is not ready after {} s", limit.as_secs())).into());
            }
            sleep(pause).await;
        }
        info!("{} is ready after {} ms", self.name, begin.elapsed().as_millis());
        Ok(())
    }

    fn not_ready(&self, what: String) -> NotReady {
        NotReady { name: self.name, what, log: self.log.clone() }
    }

    /// Restarts the child after an orderly end.
    pub(crate) fn restart(&self) {
        self.anew.notify_one();
    }

    /// Stops the child and waits for its end.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        if let Err(error) = self.task.await {
            warn!("the supervision of {} failed: {error}", self.name);
        }
    }
}

struct Keeper {
    spec: Spec,
    layout: Layout,
    failures: Arc<AtomicU32>,
    shutdown: CancellationToken,
    anew: Arc<Notify>,
}

/// End of a child.
enum End {
    ByItself(ExitStatus),
    /// It must be restarted.
    Restart,
    Shutdown,
}

impl Keeper {
    async fn run(self) {
        let mut wait = BACKOFF.0;
        while !self.shutdown.is_cancelled() {
            let begin = Instant::now();
            match self.once().await {
                Ok(End::ByItself(status)) => {
                    warn!("{} ended ({status}): restarting it", self.spec.name);
                }
                Ok(End::Restart) => continue,
                Ok(End::Shutdown) => break,
                Err(error) => warn!("{}: {error:#}", self.spec.name),
            }
            self.failures.fetch_add(1, Ordering::Relaxed);
            wait = if begin.elapsed() > LIVED { BACKOFF.0 } else { wait };
            tokio::select! {
                () = sleep(wait) => {}
                () = self.shutdown.cancelled() => break,
            }
            wait = (wait * 2).min(BACKOFF.1);
        }
        let _ = fs::remove_file(self.layout.pid_file(self.spec.name));
    }

    /// Runs the child until it ends or is stopped.
    async fn once(&self) -> Result<End> {
        let mut child = spawn(&self.spec, &self.layout)?;
        if let Some(pid) = child.id() {
            info!("{} runs as process {pid}", self.spec.name);
            let written =
                Record::of(pid).and_then(|record| record.write(&self.layout.pid_file(self.spec.name)));
            if let Err(error) = written {
                // For example if the disk is full. The child itself does not need the file, only a later
                // `wrenn` does.
                warn!("{} runs without its pid file: {error:#}", self.spec.name);
            }
        }
        let end_by = tokio::select! {
            status = child.wait() => return Ok(End::ByItself(status.context("cannot wait for it")?)),
            () = keep_log_short(self.layout.log(self.spec.name)) => End::Shutdown,
            () = self.shutdown.cancelled() => End::Shutdown,
            () = self.anew.notified() => End::Restart,
        };
        end(&mut child, &self.spec).await?;
        Ok(end_by)
    }
}

/// Rotates a log that is being written, each time that it exceeds the maximum. Never ends.
pub(super) async fn keep_log_short(path: PathBuf) {
    loop {
        sleep(LOG_LOOK).await;
        let log = path.clone();
        let cut = tokio::task::spawn_blocking(move || copy_aside(&log, LOG_MAX)).await;
        if let Err(error) = cut.unwrap_or_else(|error| Err(error.into())) {
            warn!("cannot rotate {}: {error}", path.display());
        }
    }
}

async fn end(child: &mut Child, spec: &Spec) -> Result<()> {
    let Some(pid) = child.id() else { return Ok(()) };
    Record::of(pid).and_then(|record| record.signal(spec.stop)).or_else(|error| {
        // It may have ended meanwhile.
        if child.try_wait().is_ok_and(|status| status.is_some()) { Ok(()) } else { Err(error) }
    })?;
    if timeout(spec.grace, child.wait()).await.is_err() {
        warn!("{} did not end within {} s: killing it", spec.name, spec.grace.as_secs());
        child.kill().await.context("cannot kill it")?;
    }
    Ok(())
}

fn spawn(spec: &Spec, layout: &Layout) -> Result<Child> {
    let log = open_log(layout, spec.name)?;
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).env_clear().envs(spec.env.iter().cloned());
    command
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8");
    command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // Only `wrenn up` gets Ctrl-C: it stops its children in order.
    command.process_group(0).kill_on_drop(true);
    if let Some(arg0) = &spec.arg0 {
        command.arg0(arg0);
    }
    confine(&mut command, spec)?;
    command.spawn().with_context(|| format!("cannot run {}", spec.program.display()))
}

/// Sets up the child: no inherited open files, its user or capabilities, its control group. It is killed when
/// the thread that starts it ends.
fn confine(command: &mut Command, spec: &Spec) -> Result<()> {
    let (parent, signal, oom_score) = (rustix::process::getpid(), spec.stop, spec.oom_score);
    let (user, capabilities): (_, &[u32]) = match &spec.privileges {
        Privileges::User(user) => (Some((user.uid, user.gid)), &[]),
        Privileges::Root(capabilities) => (None, capabilities),
    };
    let mut enter = control_group::enter(spec.group.as_slice()).context("the control group's path")?;
    let confine = move || {
        inherit::close_files_on_exec()?;
        inherit::set_oom_score(oom_score);
        enter()?;
        inherit::Identity { user, groups: &[], capabilities, new_privileges: false }.assume()?;
        // After the change of user, which would reset it.
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have ended before.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec, only system calls are made; nothing is allocated or locked.
    unsafe { command.pre_exec(confine) };
    Ok(())
}

fn open_log(layout: &Layout, name: &str) -> Result<fs::File> {
    let path = layout.log(name);
    rotate(&path).with_context(|| format!("cannot rotate {}", path.display()))?;
    let options = fs::OpenOptions::new().create(true).append(true).mode(0o640).to_owned();
    options.open(&path).with_context(|| format!("cannot open {}", path.display()))
}

/// Path of a rotated log.
fn aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Rotates a log larger than [`LOG_MAX`].
pub(crate) fn rotate(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > LOG_MAX => fs::rename(path, aside(path)),
        _ => Ok(()),
    }
}

/// Rotates a log that is being written, by copying and truncating it; its writer appends. Output between the
/// copy and the truncation is lost, and the whole log if there is no room for the copy.
fn copy_aside(path: &Path, max: u64) -> io::Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(meta) if meta.len() > max => {
            let copied = fs::copy(path, aside(path)).map(drop);
            fs::File::options().write(true).open(path)?.set_len(0)?;
            copied
        }
        _ => Ok(()),
    }
}

/// Returns the end of a log, for messages.
pub(crate) fn tail(path: &Path) -> String {
    tail_from(path, 0, QUOTE_MAX)
}

/// Returns the end of a log without its first `mark` bytes, at most `max` bytes.
pub(crate) fn tail_from(path: &Path, mark: u64, max: usize) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        // A shorter log was rotated.
        let mark = if mark <= length { mark } else { 0 };
        file.seek(SeekFrom::Start(length.saturating_sub(max as u64).max(mark)))?;
        let mut text = Vec::new();
        file.take(max as u64).read_to_end(&mut text)?;
        Ok(text)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn layout(dir: &Path) -> Result<Layout> {
        let layout = Layout::new(dir);
        fs::create_dir_all(layout.logs())?;
        fs::create_dir_all(layout.run())?;
        Ok(layout)
    }

    fn shell(script: &str) -> Spec {
        Spec {
            name: "test",
            program: "/bin/sh".into(),
            arg0: None,
            args: vec!["-c".to_owned(), script.to_owned()],
            env: vec![("GREETING".to_owned(), "hello".to_owned())],
            privileges: Privileges::Root(&[]),
            oom_score: 100,
            group: None,
            stop: Signal::TERM,
            grace: Duration::from_millis(300),
        }
    }

    #[tokio::test]
    async fn a_child_that_dies_is_started_again_and_one_that_ignores_us_is_killed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let layout = layout(dir.path())?;
        let child = Supervised::start(shell("trap '' TERM; echo $GREETING; sleep 60"), &layout);
        let record = async || Record::running(&layout.pid_file("test")).ok().flatten();
        child.ready(Duration::from_secs(5), async || record().await.is_some()).await?;
        let first = record().await.context("no record")?;
        first.signal(Signal::KILL)?;
        let other = async || record().await.is_some_and(|record| record != first);
        child.ready(Duration::from_secs(5), other).await?;
        child.ready(Duration::from_secs(5), async || tail(&layout.log("test")).contains("hello")).await?;
        let last = record().await.context("no record")?;
        child.stop().await;
        assert!(!last.alive()? && Record::read(&layout.pid_file("test"))?.is_none());
        Ok(())
    }

    #[tokio::test]
    async fn a_child_has_no_open_files_and_no_privileges_but_its_own() -> Result<()> {
        use std::os::fd::AsRawFd as _;
        let dir = tempfile::tempdir()?;
        let layout = layout(dir.path())?;
        let secret = fs::File::open("/proc/self/status")?;
        // SAFETY: a system call on an open descriptor. The new descriptor is inherited unless closed on exec.
        let inherited = unsafe { libc::fcntl(secret.as_raw_fd(), libc::F_DUPFD, 77) };
        let script = format!(
            "ls /proc/$$/fd; cat /proc/$$/oom_score_adj /proc/$$/status; echo whole; exec sleep 60 {inherited}"
        );
        let child = Supervised::start(shell(&script), &layout);
        let log = layout.log("test");
        child.ready(Duration::from_secs(5), async || tail(&log).ends_with("whole")).await?;
        child.stop().await;
        // SAFETY: it is ours.
        unsafe { libc::close(inherited) };
        let text = tail(&log);
        assert!(!text.lines().any(|line| line == inherited.to_string()), "{text}");
        assert!(text.lines().any(|line| line == "100"), "{text}");
        assert!(text.contains("NoNewPrivs:\t1"), "{text}");
        if rustix::process::geteuid().is_root() {
            assert!(text.contains("CapBnd:\t0000000000000000"), "{text}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_child_that_is_to_start_anew_has_not_failed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let layout = layout(dir.path())?;
        let child = Supervised::start(shell("exec sleep 60"), &layout);
        let record = async || Record::running(&layout.pid_file("test")).ok().flatten();
        child.ready(Duration::from_secs(5), async || record().await.is_some()).await?;
        let first = record().await.context("no record")?;
        child.restart();
        let other = async || record().await.is_some_and(|record| record != first);
        child.ready(Duration::from_secs(5), other).await?;
        assert_eq!(child.failures.load(Ordering::Relaxed), 0);
        child.stop().await;
        Ok(())
    }

    #[tokio::test]
    async fn a_child_whose_pid_file_cannot_be_written_runs_on() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let layout = layout(dir.path())?;
        // A file cannot be renamed over a directory.
        fs::create_dir(layout.pid_file("test"))?;
        let child = Supervised::start(shell("echo $$; exec sleep 60"), &layout);
        let log = layout.log("test");
        child
            .ready(Duration::from_secs(5), async || tail(&log).ends_with(|c: char| c.is_ascii_digit()))
            .await?;
        let pid = tail(&log);
        assert_eq!(child.failures.load(Ordering::Relaxed), 0);
        assert!(Record::of(pid.parse()?)?.alive()?, "one start: {pid}");
        child.stop().await;
        Ok(())
    }

    #[tokio::test]
    async fn a_part_that_does_not_start_is_told_with_its_cause_last() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let layout = layout(dir.path())?;
        let child = Supervised::start(shell("echo begin; echo the cause; exit 1"), &layout);
        let error = child.ready(Duration::from_secs(30), async || false).await.err().context("ready")?;
        assert_eq!(error.to_string(), "test does not start: the cause");
        let part = error.downcast_ref::<NotReady>().context("another error")?;
        assert!(
            part.quote().starts_with(QUOTE_MARK) && part.quote().ends_with("the cause"),
            "{}",
            part.quote()
        );
        child.stop().await;
        Ok(())
    }

    #[test]
    fn a_log_that_is_written_goes_on_behind_its_cut() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("test.log");
        let mut log = fs::File::options().create(true).append(true).open(&path)?;
        writeln!(log, "one")?;
        copy_aside(&path, 4)?;
        assert_eq!(fs::read_to_string(&path)?, "one\n", "it is short enough");
        writeln!(log, "two")?;
        copy_aside(&path, 4)?;
        writeln!(log, "three")?;
        assert_eq!(fs::read_to_string(&path)?, "three\n");
        assert_eq!(fs::read_to_string(aside(&path))?, "one\ntwo\n");
        Ok(())
    }
}
