//! All processes started here: the running ones and the last that ended.

use std::{
    collections::VecDeque,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    process::ExitStatus,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rustix::termios::Winsize;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    cgroup::{Cgroup, Cgroups},
    output::{Channel, Chunk, End, Log, Reader},
    spawn::{self, SpawnError, Spec, nonblocking},
};
use crate::reaper::Reaper;

/// Ended processes whose output can still be read.
const RETAINED: usize = 256;
/// Processes running at once that were started over the API.
const RUNNING: usize = 4096;
/// How long output is awaited after the process ended while a descendant holds its pipes.
const GRACE: Duration = Duration::from_millis(200);
const PIPE_CHUNK: usize = 32 << 10;
const PTY_CHUNK: usize = 16 << 10;

/// What is started, for listings.
pub(crate) struct Description {
    pub(crate) cmd: String,
    pub(crate) args: Vec<String>,
    pub(crate) envs: Vec<(String, String)>,
    pub(crate) cwd: Option<String>,
    pub(crate) tag: Option<String>,
}

/// One process.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) description: Description,
    pub(crate) pty: bool,
    log: Arc<Log>,
    input: tokio::sync::Mutex<Option<AsyncFd<OwnedFd>>>,
    /// The terminal, for resizing.
    terminal: Mutex<Option<OwnedFd>>,
    cgroup: Mutex<Option<Cgroup>>,
    timed_out: AtomicBool,
    reaper: Arc<Reaper>,
}

/// Which process a call is about.
pub(crate) enum Selector {
    Pid(u32),
    Tag(String),
}

/// Why input was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("standard input of process {0} is closed; start it with stdin: true")]
    Closed(u32),
    #[error("process {0} stopped reading its input: {1}")]
    Write(u32, io::Error),
}

/// Why no process was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("{RUNNING} processes are running, the limit of one sandbox; end some first")]
    TooMany,
    #[error("cannot watch the process: {0}")]
    Io(#[from] io::Error),
}

/// All processes.
pub(crate) struct Registry {
    reaper: Arc<Reaper>,
    cgroups: Cgroups,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    running: Vec<Arc<Process>>,
    ended: VecDeque<Arc<Process>>,
}

impl Registry {
    /// An empty registry.
    pub(crate) fn new(reaper: Arc<Reaper>) -> Arc<Self> {
        Arc::new(Self { reaper, cgroups: Cgroups::open(), table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process; the reader is attached before it runs.
    pub(crate) async fn start(
        self: &Arc<Self>,
        spec: Spec,
        description: Description,
        deadline: Option<std::time::Instant>,
    ) -> Result<(Arc<Process>, Reader), StartError> {
        // Its own task: a client that goes away meanwhile must not leave a process that nobody knows.
        let registry = Arc::clone(self);
        let starting = tokio::spawn(async move { registry.start_task(spec, description, deadline).await });
        starting.await.map_err(io::Error::other)?
    }

    async fn start_task(
        self: Arc<Self>,
        spec: Spec,
        description: Description,
        deadline: Option<std::time::Instant>,
    ) -> Result<(Arc<Process>, Reader), StartError> {
        if self.table().running.len() >= RUNNING {
            return Err(StartError::TooMany);
        }
        let log = Arc::new(Log::default());
        let reader = log.read();
        let registry = Arc::clone(&self);
        let (spawned, group, pty) = tokio::task::spawn_blocking(move || {
            let group = registry.cgroups.create();
            match spawn::spawn(&registry.reaper, &spec, group.as_ref()) {
                Ok(spawned) => Ok((spawned, group, spec.pty.is_some())),
                Err(error) => {
                    group.into_iter().for_each(|g| registry.cgroups.remove(g));
                    Err(error)
                }
            }
        })
        .await
        .map_err(io::Error::other)??;

        let wired = match wire(spawned.input, spawned.outputs, pty) {
            Ok(wired) => wired,
            Err(error) => {
                // Nobody could ever read or end it.
                self.reaper.signal_group(spawned.pid, libc::SIGKILL);
                group.into_iter().for_each(|g| self.cgroups.remove(g));
                return Err(error.into());
            }
        };
        let process = Arc::new(Process {
            pid: spawned.pid as u32,
            description,
            pty,
            log: Arc::clone(&log),
            input: tokio::sync::Mutex::new(wired.input),
            terminal: Mutex::new(wired.terminal),
            cgroup: Mutex::new(group),
            timed_out: AtomicBool::new(false),
            reaper: Arc::clone(&self.reaper),
        });
        let (ended, end_seen) = watch::channel(false);
        let mut pumps = JoinSet::new();
        for (channel, fd) in wired.outputs {
            pumps.spawn(pump(channel, fd, Arc::clone(&log), end_seen.clone()));
        }
        self.table().running.push(Arc::clone(&process));
        tokio::spawn(self.supervise(Arc::clone(&process), spawned.status, pumps, ended, deadline));
        Ok((process, reader))
    }

    /// Follows one process to its end.
    async fn supervise(
        self: Arc<Self>,
        process: Arc<Process>,
        mut status: oneshot::Receiver<ExitStatus>,
        mut pumps: JoinSet<()>,
        ended: watch::Sender<bool>,
        deadline: Option<std::time::Instant>,
    ) {
        let expiry = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            result = &mut status => result,
            () = expiry => {
                process.timed_out.store(true, Ordering::Relaxed);
                process.kill();
                status.await
            }
        };
        ended.send_replace(true);
        while pumps.join_next().await.is_some() {}
        process.log.finish(describe(result.ok(), process.timed_out.load(Ordering::Relaxed)));
        *process.input.lock().await = None;
        process.terminal.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(group) = process.cgroup.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.cgroups.remove(group);
        }
        let mut table = self.table();
        table.running.retain(|p| !Arc::ptr_eq(p, &process));
        // A pid comes back some day; the newer process has it then.
        table.ended.retain(|p| p.pid != process.pid);
        table.ended.push_back(process);
        if table.ended.len() > RETAINED {
            table.ended.pop_front();
        }
    }

    /// The running processes.
    pub(crate) fn running(&self) -> Vec<Arc<Process>> {
        self.table().running.clone()
    }

    /// A running process; with `ended` also one that has ended. Of several with a tag, the newest.
    pub(crate) fn find(&self, selector: &Selector, ended: bool) -> Option<Arc<Process>> {
        let matches = |p: &&Arc<Process>| match selector {
            Selector::Pid(pid) => p.pid == *pid,
            Selector::Tag(tag) => p.description.tag.as_ref() == Some(tag),
        };
        let table = self.table();
        let running = table.running.iter().rev().find(matches);
        running.or_else(|| table.ended.iter().rev().filter(|_| ended).find(matches)).cloned()
    }
}

impl Process {
    /// Attaches a client.
    pub(crate) fn read(&self) -> Reader {
        self.log.read()
    }

    /// Whether it has ended and all its output is in the log.
    pub(crate) fn ended(&self) -> bool {
        self.log.ended()
    }

    /// Kills the process and its descendants.
    pub(crate) fn kill(&self) -> bool {
        let group = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        let all = group.as_ref().is_some_and(Cgroup::kill);
        drop(group);
        self.reaper.signal_group(self.pid as i32, libc::SIGKILL) || all
    }

    /// Asks the process group to end.
    pub(crate) fn terminate(&self) -> bool {
        self.reaper.signal_group(self.pid as i32, libc::SIGTERM)
    }

    /// Writes all of `data`, as fast as the process takes it.
    pub(crate) async fn write(&self, mut data: &[u8]) -> Result<(), InputError> {
        let slot = self.input.lock().await;
        let input = slot.as_ref().ok_or(InputError::Closed(self.pid))?;
        while !data.is_empty() {
            let written = input
                .async_io(Interest::WRITABLE, |fd| rustix::io::write(fd, data).map_err(io::Error::from))
                .await
                .map_err(|cause| InputError::Write(self.pid, cause))?;
            data = &data[written..];
        }
        Ok(())
    }

    /// Closes standard input.
    pub(crate) async fn close_input(&self) {
        *self.input.lock().await = None;
    }

    /// Resizes the terminal; false when there is none.
    pub(crate) fn resize(&self, size: Winsize) -> bool {
        let terminal = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        terminal.as_ref().is_some_and(|fd| rustix::termios::tcsetwinsize(fd, size).is_ok())
    }
}

fn describe(status: Option<ExitStatus>, timed_out: bool) -> End {
    let signal = status.and_then(|s| s.signal());
    match (status.and_then(|s| s.code()), signal) {
        (Some(code), _) => {
            End { exit_code: code, exited: true, status: format!("exit status {code}"), timed_out }
        }
        (None, Some(signal)) => End {
            exit_code: -1,
            exited: false,
            status: format!("signal: {}", signal_name(signal)),
            timed_out,
        },
        (None, None) => End { exit_code: -1, exited: false, status: "status unknown".into(), timed_out },
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        other => return format!("signal {other}"),
    };
    name.into()
}

/// Moves output into the log until end of file, or until a while after the process ended.
async fn pump(channel: Channel, fd: AsyncFd<OwnedFd>, log: Arc<Log>, mut ended: watch::Receiver<bool>) {
    let size = if channel == Channel::Pty { PTY_CHUNK } else { PIPE_CHUNK };
    let mut buffer = vec![0; size];
    let mut until: Option<Instant> = None;
    loop {
        let grace = async {
            if until.is_none() {
                // An error means that the supervisor is gone, which is an end too.
                let _ = ended.wait_for(|e| *e).await;
                until = Some(Instant::now() + GRACE);
            }
            tokio::time::sleep_until(until.unwrap_or_else(Instant::now)).await;
        };
        tokio::select! {
            // Output first: the grace is only for silence.
            biased;
            read = read(&fd, &mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(n) => log.append(Chunk { channel, data: Bytes::copy_from_slice(&buffer[..n]) }).await,
            },
            () = grace => break,
        }
        if until.is_some_and(|at| Instant::now() > at) {
            // A descendant that never stops writing does not delay the end either.
            drain(channel, &fd, &log, &mut buffer).await;
            break;
        }
    }
    // A descendant still has the pipe: keep it from being killed by a write that nobody reads.
    tokio::spawn(async move { while read(&fd, &mut buffer).await.is_ok_and(|n| n > 0) {} });
}

/// Takes what is there now, at most what the largest pipe holds.
async fn drain(channel: Channel, fd: &AsyncFd<OwnedFd>, log: &Log, buffer: &mut [u8]) {
    let mut left: usize = 1 << 20;
    while left > 0 {
        let Ok(n @ 1..) = rustix::io::read(fd.get_ref(), &mut *buffer) else { return };
        left = left.saturating_sub(n);
        log.append(Chunk { channel, data: Bytes::copy_from_slice(&buffer[..n]) }).await;
    }
}

/// Our ends of a process's channels, ready for use.
struct Wired {
    input: Option<AsyncFd<OwnedFd>>,
    terminal: Option<OwnedFd>,
    outputs: Vec<(Channel, AsyncFd<OwnedFd>)>,
}

fn wire(input: Option<OwnedFd>, outputs: Vec<(Channel, OwnedFd)>, pty: bool) -> io::Result<Wired> {
    let terminal = if pty { input.as_ref().map(OwnedFd::try_clone).transpose()? } else { None };
    let input = input.map(watched).transpose()?;
    let outputs = outputs.into_iter().map(|(channel, fd)| Ok((channel, watched(fd)?)));
    Ok(Wired { input, terminal, outputs: outputs.collect::<io::Result<_>>()? })
}

/// Registers a pipe or terminal with the runtime.
fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    nonblocking(&fd)?;
    // SAFETY: the OwnedFd inside is never replaced or closed before the AsyncFd is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

async fn read(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    fd.async_io(Interest::READABLE, |fd| rustix::io::read(fd, &mut *buffer).map_err(io::Error::from)).await
}
