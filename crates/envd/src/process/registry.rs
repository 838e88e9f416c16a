// SPDX-License-Identifier: Apache-2.0
//! Registry of all started processes: the running ones and the last exited ones.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    process::ExitStatus,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::termios::Winsize;
use tokio::{
    io::unix::AsyncFd,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    cgroup::{Cgroup, Cgroups},
    drains::{DRAINS, Drains},
    ending::describe,
    input::{Input, InputError},
    output::{Channel, Chunk, Hold, Log, Reader},
    pipes::{nonblocking, read, read_now},
    retention::{self, Retention},
    spawn::{self, SpawnError, Spec},
};
use crate::reaper::Reaper;

/// Number of exited processes whose exit and remaining output can still be read.
const RETAINED: usize = 256;
/// Upper limit of concurrently running processes started through the API.
const RUNNING: usize = 4096;
/// Memory in bytes per running process, from which their limit is computed.
const RUNNING_MEMORY: usize = 256 << 10;
/// Additional running processes of root, so that others can be killed when the limit is reached.
const RESERVE: usize = 16;
/// Time that output is awaited after a process has exited while a descendant has its pipes open.
const GRACE: Duration = Duration::from_millis(200);
/// Maximum bytes of arguments and environment kept per process for listings.
const LISTED: usize = 16 << 10;

/// Command of a process, for listings.
pub(crate) struct Description {
    pub(crate) cmd: String,
    pub(crate) args: Vec<String>,
    pub(crate) envs: Vec<(String, String)>,
    pub(crate) cwd: Option<String>,
}

impl Description {
    /// Truncates arguments and variables to [`LISTED`] bytes, because this is memory of PID 1.
    fn shorten(&mut self) {
        let mut left = LISTED;
        let mut fits = |size: usize| {
            left = left.saturating_sub(size);
            left > 0
        };
        for text in [Some(&mut self.cmd), self.cwd.as_mut()].into_iter().flatten() {
            if !fits(text.len()) {
                text.clear();
            }
        }
        let args = self.args.iter().take_while(|arg| fits(arg.len() + size_of::<String>())).count();
        self.args.truncate(args);
        let envs = self.envs.iter().take_while(|(k, v)| fits(k.len() + v.len() + 2 * size_of::<String>()));
        let envs = envs.count();
        self.envs.truncate(envs);
        self.args.shrink_to_fit();
        self.envs.shrink_to_fit();
    }
}

/// Started process.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) tag: Option<String>,
    pub(crate) pty: bool,
    log: Arc<Log>,
    input: Input,
    /// Terminal, for resizing.
    terminal: Mutex<Option<OwnedFd>>,
    cgroup: Mutex<Option<Cgroup>>,
    timed_out: AtomicBool,
    reaper: Arc<Reaper>,
}

/// Selects a process.
pub(crate) enum Selector {
    Pid(u32),
    Tag(String),
}

/// Errors of starting a process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(
        "{0} processes are running, the limit of this sandbox; end some, as root if need be: {RESERVE} more may be root's"
    )]
    TooMany(usize),
    #[error("cannot watch the process: {0}")]
    Io(#[from] io::Error),
}

impl StartError {
    /// Returns whether the request is the cause, and not the state of the machine.
    pub(crate) fn is_callers(&self) -> bool {
        match self {
            Self::Spawn(SpawnError::Resources { .. } | SpawnError::Hung { .. }) => false,
            Self::Spawn(_) => true,
            Self::TooMany(_) | Self::Io(_) => false,
        }
    }
}

/// Limits, which tests can reduce.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Maximum bytes of output kept for all processes together.
    pub(crate) kept: usize,
    /// Maximum number of drained pipes of daemons.
    pub(crate) drains: usize,
    /// Maximum number of running processes.
    pub(crate) running: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        let running = (retention::memory() / RUNNING_MEMORY).clamp(64, RUNNING);
        Self { kept: retention::default_limit(), drains: DRAINS, running }
    }
}

/// Registry of processes.
pub(crate) struct Registry {
    reaper: Arc<Reaper>,
    cgroups: Cgroups,
    retention: Arc<Retention>,
    drains: Drains,
    bounds: Bounds,
    places: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    running: Vec<(Arc<Process>, Arc<Description>)>,
    ended: VecDeque<Arc<Process>>,
}

impl Registry {
    /// Creates an empty registry.
    pub(crate) fn new(reaper: Arc<Reaper>, bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            reaper,
            cgroups: Cgroups::open(),
            retention: Retention::new(bounds.kept),
            drains: Drains::new(bounds.drains),
            bounds,
            places: Arc::new(Semaphore::new(bounds.running)),
            reserve: Arc::new(Semaphore::new(RESERVE)),
            table: Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process; the returned reader is attached before the process runs.
    pub(crate) async fn start(
        self: &Arc<Self>,
        spec: Spec,
        description: Description,
        tag: Option<String>,
        deadline: Option<std::time::Instant>,
    ) -> Result<(Arc<Process>, Reader), StartError> {
        // In a task of its own: a client that disconnects meanwhile must not leave an unregistered process.
        let registry = Arc::clone(self);
        let starting =
            tokio::spawn(async move { registry.start_task(spec, description, tag, deadline).await });
        starting.await.map_err(io::Error::other)?
    }

    async fn start_task(
        self: Arc<Self>,
        spec: Spec,
        mut description: Description,
        tag: Option<String>,
        deadline: Option<std::time::Instant>,
    ) -> Result<(Arc<Process>, Reader), StartError> {
        let place = self.place(spec.user.uid).ok_or(StartError::TooMany(self.bounds.running))?;
        description.shorten();
        let log = Log::new(&self.retention);
        let reader = log.read(Hold::Always);
        let pty = spec.pty.is_some();
        let registry = Arc::clone(&self);
        let (forked, group) = tokio::task::spawn_blocking(move || {
            let group = registry.cgroups.create();
            let forked = spawn::spawn(&registry.reaper, spec, group.as_ref());
            (forked, group)
        })
        .await
        .map_err(io::Error::other)?;
        let begun = match forked {
            Ok(forked) => forked.running(&self.reaper).await,
            Err(error) => Err(error),
        };
        let running = match begun {
            Ok(running) => running,
            Err(error) => {
                group.into_iter().for_each(|g| self.cgroups.remove(g));
                return Err(error.into());
            }
        };

        let wired = match wire(running.input, running.outputs, pty) {
            Ok(wired) => wired,
            Err(error) => {
                // Kill it, because its output could not be read.
                self.reaper.signal_group(running.pid, libc::SIGKILL);
                group.into_iter().for_each(|g| self.cgroups.remove(g));
                return Err(error.into());
            }
        };
        let (ended, end_seen) = watch::channel(false);
        let pid = running.pid as u32;
        let process = Arc::new(Process {
            pid,
            tag,
            pty,
            log: Arc::clone(&log),
            input: Input::new(pid, wired.input, end_seen.clone()),
            terminal: Mutex::new(wired.terminal),
            cgroup: Mutex::new(group),
            timed_out: AtomicBool::new(false),
            reaper: Arc::clone(&self.reaper),
        });
        let mut pumps = JoinSet::new();
        for (channel, fd) in wired.outputs {
            pumps.spawn(pump(Arc::clone(&self), channel, fd, Arc::clone(&log), end_seen.clone()));
        }
        self.table().running.push((Arc::clone(&process), Arc::new(description)));
        let following = Following { process: Arc::clone(&process), pumps, ended, place };
        tokio::spawn(self.supervise(following, running.status, deadline));
        Ok((process, reader))
    }

    /// Returns a permit to run a process of a user, or `None` at the limit.
    fn place(&self, uid: u32) -> Option<OwnedSemaphorePermit> {
        let usual = Arc::clone(&self.places).try_acquire_owned().ok();
        usual.or_else(|| Arc::clone(&self.reserve).try_acquire_owned().ok().filter(|_| uid == 0))
    }

    /// Supervises one process until its exit.
    async fn supervise(
        self: Arc<Self>,
        following: Following,
        mut status: oneshot::Receiver<ExitStatus>,
        deadline: Option<std::time::Instant>,
    ) {
        let Following { process, mut pumps, ended, place } = following;
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
        process.input.close();
        while pumps.join_next().await.is_some() {}
        process.log.finish(describe(result.ok(), process.timed_out.load(Ordering::Relaxed)));
        process.terminal.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(group) = process.cgroup.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.cgroups.remove(group);
        }
        process.log.retire();
        let mut table = self.table();
        table.running.retain(|(p, _)| !Arc::ptr_eq(p, &process));
        // Process ids are reused; the newer process gets it.
        table.ended.retain(|p| p.pid != process.pid);
        table.ended.push_back(process);
        if table.ended.len() > RETAINED {
            table.ended.pop_front();
        }
        drop(table);
        drop(place);
    }

    /// Lists the running processes with their commands.
    pub(crate) fn running(&self) -> Vec<(Arc<Process>, Arc<Description>)> {
        self.table().running.clone()
    }

    /// Finds a running process, with `ended` also an exited one. If several have the tag, the newest.
    pub(crate) fn find(&self, selector: &Selector, ended: bool) -> Option<Arc<Process>> {
        let matches = |p: &&Arc<Process>| match selector {
            Selector::Pid(pid) => p.pid == *pid,
            Selector::Tag(tag) => p.tag.as_ref() == Some(tag),
        };
        let table = self.table();
        let running = table.running.iter().rev().map(|(process, _)| process).find(matches);
        running.or_else(|| table.ended.iter().rev().filter(|_| ended).find(matches)).cloned()
    }
}

/// State of a process's supervisor.
struct Following {
    process: Arc<Process>,
    pumps: JoinSet<()>,
    ended: watch::Sender<bool>,
    place: OwnedSemaphorePermit,
}

impl Process {
    /// Attaches a client.
    pub(crate) fn read(&self) -> Reader {
        self.log.read(Hold::Briefly)
    }

    /// Returns whether it has exited and all its output is in the log.
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

    /// Sends SIGTERM to the process group.
    pub(crate) fn terminate(&self) -> bool {
        self.reaper.signal_group(self.pid as i32, libc::SIGTERM)
    }

    /// Writes all of `data` as fast as the process reads it.
    pub(crate) async fn write(&self, data: &[u8]) -> Result<(), InputError> {
        self.input.write(data).await
    }

    /// Closes standard input after pending writes.
    pub(crate) fn close_input(&self) {
        self.input.close();
    }

    /// Resizes the terminal; returns false if there is none.
    pub(crate) fn resize(&self, size: Winsize) -> bool {
        let terminal = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        terminal.as_ref().is_some_and(|fd| rustix::termios::tcsetwinsize(fd, size).is_ok())
    }
}

/// Moves output into the log until end of file, or until [`GRACE`] after the exit.
async fn pump(
    registry: Arc<Registry>,
    channel: Channel,
    fd: AsyncFd<OwnedFd>,
    log: Arc<Log>,
    mut ended: watch::Receiver<bool>,
) {
    let mut until: Option<Instant> = None;
    loop {
        let grace = async {
            if until.is_none() {
                // An error means that the supervisor is gone, which is also an exit.
                let _ = ended.wait_for(|e| *e).await;
                until = Some(Instant::now() + GRACE);
            }
            tokio::time::sleep_until(until.unwrap_or_else(Instant::now)).await;
        };
        tokio::select! {
            // Read first: the grace period is only for silence.
            biased;
            read = read(&fd) => match read {
                Ok(data) if !data.is_empty() => log.append(Chunk { channel, data }).await,
                _ => return,
            },
            () = grace => break,
        }
        if until.is_some_and(|at| Instant::now() > at) {
            // A descendant that never stops writing must not delay the exit either.
            drain(channel, &fd, &log).await;
            break;
        }
    }
    // A descendant still has the pipe open: drain it, so that SIGPIPE does not kill the descendant.
    registry.drains.add(fd);
}

/// Reads what is available, at most the capacity of the largest pipe.
async fn drain(channel: Channel, fd: &AsyncFd<OwnedFd>, log: &Log) {
    let mut left: usize = 1 << 20;
    while left > 0 {
        let Ok(data) = read_now(fd.get_ref()) else { return };
        if data.is_empty() {
            return;
        }
        left = left.saturating_sub(data.len());
        log.append(Chunk { channel, data }).await;
    }
}

/// Ends of a process's pipes or terminal in envd, registered with the runtime.
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
    // SAFETY: the OwnedFd inside is not replaced or closed before the AsyncFd is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
