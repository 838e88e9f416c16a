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

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

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
/// Of a log, so much is quoted in messages.
const QUOTE_MAX: usize = 3000;
/// Ends before readiness that are taken for a lasting fault.
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
    /// The user to run as; root without.
    pub(crate) user: Option<User>,
    /// What asks it to end in an orderly way; also sent when `wrenn up` dies.
    pub(crate) stop: Signal,
    /// Time limit for an orderly end.
    pub(crate) grace: Duration,
}

/// A child that is kept running.
#[derive(Debug)]
pub(crate) struct Supervised {
    name: &'static str,
    log: PathBuf,
    failures: Arc<AtomicU32>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Supervised {
    /// Keeps a child running until [`Supervised::stop`]. The runtime must be single-threaded: a parent-death
    /// signal is sent when the thread that started the child ends.
    pub(crate) fn start(spec: Spec, layout: &Layout) -> Self {
        let (failures, shutdown) = (Arc::new(AtomicU32::new(0)), CancellationToken::new());
        let (name, log) = (spec.name, layout.log(spec.name));
        let keeper =
            Keeper { spec, layout: layout.clone(), failures: failures.clone(), shutdown: shutdown.clone() };
        Self { name, log, failures, shutdown, task: tokio::spawn(keeper.run()) }
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
                bail!(
                    "{} does not start; the end of {}:\n{}",
                    self.name,
                    self.log.display(),
                    tail(&self.log)
                );
            }
            if begin.elapsed() > limit {
                let seconds = limit.as_secs();
                let log = self.log.display();
                bail!("{} is not ready after {seconds} s; the end of {log}:\n{}", self.name, tail(&self.log));
            }
            sleep(pause).await;
        }
        info!("{} is ready after {} ms", self.name, begin.elapsed().as_millis());
        Ok(())
    }

    /// Ends the child and waits for it.
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
}

impl Keeper {
    async fn run(self) {
        let mut wait = BACKOFF.0;
        while !self.shutdown.is_cancelled() {
            let begin = Instant::now();
            match self.once().await {
                Ok(Some(status)) => warn!("{} ended ({status}), it is started again", self.spec.name),
                Ok(None) => break,
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

    /// Runs the child until it ends, or is ended (then there is no status).
    async fn once(&self) -> Result<Option<ExitStatus>> {
        let mut child = spawn(&self.spec, &self.layout)?;
        if let Some(pid) = child.id() {
            Record::of(pid).and_then(|record| record.write(&self.layout.pid_file(self.spec.name)))?;
            info!("{} runs as process {pid}", self.spec.name);
        }
        tokio::select! {
            status = child.wait() => return Ok(Some(status.context("cannot wait for it")?)),
            () = keep_log_short(self.layout.log(self.spec.name)) => {}
            () = self.shutdown.cancelled() => {}
        }
        end(&mut child, &self.spec).await?;
        Ok(None)
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
    if let Some(user) = &spec.user {
        // As root, setting the user also drops the supplementary groups.
        command.uid(user.uid).gid(user.gid);
    }
    die_with_us(&mut command, spec.stop);
    command.spawn().with_context(|| format!("cannot run {}", spec.program.display()))
}

fn die_with_us(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    let tie = move || {
        // Behind the change of user, which would reset it.
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have ended before.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec, only two system calls are made; nothing is allocated or locked.
    unsafe { command.pre_exec(tie) };
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
    tail_from(path, 0)
}

/// The end of what a log got behind its first `mark` bytes.
pub(crate) fn tail_from(path: &Path, mark: u64) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        // A shorter log was rotated.
        let mark = if mark <= length { mark } else { 0 };
        file.seek(SeekFrom::Start(length.saturating_sub(QUOTE_MAX as u64).max(mark)))?;
        let mut text = Vec::new();
        file.take(QUOTE_MAX as u64).read_to_end(&mut text)?;
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
            user: None,
            stop: Signal::TERM,
            grace: Duration::from_millis(300),
        }
    }

    #[tokio::test]
    async fn a_child_that_dies_is_started_again_and_one_that_ignores_us_is_killed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let layout = layout(dir.path())?;
        let child = Supervised::start(shell("trap '' TERM; echo $GREETING; sleep 60"), &layout);
        let record = async || Record::read(&layout.pid_file("test")).filter(Record::alive);
        child.ready(Duration::from_secs(5), async || record().await.is_some()).await?;
        let first = record().await.context("no record")?;
        first.signal(Signal::KILL)?;
        let other = async || record().await.is_some_and(|record| record != first);
        child.ready(Duration::from_secs(5), other).await?;
        child.ready(Duration::from_secs(5), async || tail(&layout.log("test")).contains("hello")).await?;
        let last = record().await.context("no record")?;
        child.stop().await;
        assert!(!last.alive() && Record::read(&layout.pid_file("test")).is_none());
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

    #[tokio::test]
    async fn a_child_that_cannot_start_is_told_with_its_log() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let layout = layout(dir.path())?;
        let child = Supervised::start(shell("echo no such luck >&2; exit 1"), &layout);
        let Err(error) = child.ready(Duration::from_secs(20), async || false).await else { bail!("ready") };
        assert!(error.to_string().contains("no such luck"), "{error}");
        child.stop().await;
        Ok(())
    }
}
