//! All processes started here: the running ones and the last that ended.

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

use bytes::Bytes;
use rustix::termios::Winsize;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    cgroup::{Cgroup, Cgroups},
    drains::{DRAINS, Drains},
    ending::describe,
    input::{Input, InputError},
    output::{CHUNK, Channel, Chunk, Hold, Log, Reader},
    retention::{self, Retention},
    spawn::{self, SpawnError, Spec, nonblocking},
};
use crate::reaper::Reaper;

/// Ended processes whose end, and output as far as it is kept, can still be read.
const RETAINED: usize = 256;
/// Processes running at once that were started over the API, at most.
const RUNNING: usize = 4096;
/// Memory for which one of them may run.
const RUNNING_MEMORY: usize = 256 << 10;
/// How long output is awaited after the process ended while a descendant holds its pipes.
const GRACE: Duration = Duration::from_millis(200);
/// Bytes of arguments and environment that a listing shows of each process.
const LISTED: usize = 16 << 10;

/// What is started, for listings.
pub(crate) struct Description {
    pub(crate) cmd: String,
    pub(crate) args: Vec<String>,
    pub(crate) envs: Vec<(String, String)>,
    pub(crate) cwd: Option<String>,
}

impl Description {
    /// Keeps as many arguments and variables as have room, in their order: this is memory of PID 1.
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

/// One process.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) tag: Option<String>,
    pub(crate) pty: bool,
    log: Arc<Log>,
    input: Input,
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

/// Why no process was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("{0} processes are running, the limit of this sandbox; end some first")]
    TooMany(usize),
    #[error("cannot watch the process: {0}")]
    Io(#[from] io::Error),
}

/// Bounds that tests make smaller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes of output kept of all processes together.
    pub(crate) kept: usize,
    /// Pipes of daemons that are read away.
    pub(crate) drains: usize,
    /// Processes running at once.
    pub(crate) running: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        let running = (retention::memory() / RUNNING_MEMORY).clamp(64, RUNNING);
        Self { kept: retention::default_limit(), drains: DRAINS, running }
    }
}

/// All processes.
pub(crate) struct Registry {
    reaper: Arc<Reaper>,
    cgroups: Cgroups,
    retention: Arc<Retention>,
    drains: Drains,
    bounds: Bounds,
    places: Arc<Semaphore>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    running: Vec<(Arc<Process>, Arc<Description>)>,
    ended: VecDeque<Arc<Process>>,
}

impl Registry {
    /// An empty registry.
    pub(crate) fn new(reaper: Arc<Reaper>, bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            reaper,
            cgroups: Cgroups::open(),
            retention: Retention::new(bounds.kept),
            drains: Drains::new(bounds.drains),
            bounds,
            places: Arc::new(Semaphore::new(bounds.running)),
            table: Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process; the reader is attached before it runs.
    pub(crate) async fn start(
        self: &Arc<Self>,
        spec: Spec,
        description: Description,
        tag: Option<String>,
        deadline: Option<std::time::Instant>,
    ) -> Result<(Arc<Process>, Reader), StartError> {
        // Its own task: a client that goes away meanwhile must not leave a process that nobody knows.
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
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| StartError::TooMany(self.bounds.running))?;
        description.shorten();
        let log = self.retention.log();
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
                // Nobody could ever read or end it.
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

    /// Follows one process to its end.
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
        self.retention.ended(&process.log);
        let mut table = self.table();
        table.running.retain(|(p, _)| !Arc::ptr_eq(p, &process));
        // A pid comes back some day; the newer process has it then.
        table.ended.retain(|p| p.pid != process.pid);
        table.ended.push_back(process);
        if table.ended.len() > RETAINED {
            table.ended.pop_front();
        }
        drop(table);
        drop(place);
    }

    /// The running processes and what was started.
    pub(crate) fn running(&self) -> Vec<(Arc<Process>, Arc<Description>)> {
        self.table().running.clone()
    }

    /// A running process; with `ended` also one that has ended. Of several with a tag, the newest.
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

/// What the supervisor of a process has.
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
    pub(crate) async fn write(&self, data: &[u8]) -> Result<(), InputError> {
        self.input.write(data).await
    }

    /// Closes standard input, once what is being written is written.
    pub(crate) fn close_input(&self) {
        self.input.close();
    }

    /// Resizes the terminal; false when there is none.
    pub(crate) fn resize(&self, size: Winsize) -> bool {
        let terminal = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        terminal.as_ref().is_some_and(|fd| rustix::termios::tcsetwinsize(fd, size).is_ok())
    }
}

/// Moves output into the log until end of file, or until a while after the process ended.
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
                // An error means that the supervisor is gone, which is an end too.
                let _ = ended.wait_for(|e| *e).await;
                until = Some(Instant::now() + GRACE);
            }
            tokio::time::sleep_until(until.unwrap_or_else(Instant::now)).await;
        };
        tokio::select! {
            // Output first: the grace is only for silence.
            biased;
            read = read(&fd) => match read {
                Ok(data) if !data.is_empty() => log.append(Chunk { channel, data }).await,
                _ => return,
            },
            () = grace => break,
        }
        if until.is_some_and(|at| Instant::now() > at) {
            // A descendant that never stops writing does not delay the end either.
            drain(channel, &fd, &log).await;
            break;
        }
    }
    // A descendant still has the pipe: keep it from being killed by a write that nobody reads.
    registry.drains.add(fd);
}

/// Takes what is there now, at most what the largest pipe holds.
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

/// The next output; nothing at end of file.
pub(super) async fn read(fd: &AsyncFd<OwnedFd>) -> io::Result<Bytes> {
    fd.async_io(Interest::READABLE, read_now).await
}

/// What is there. The memory is taken only when there is something: an idle process costs none.
fn read_now(fd: &OwnedFd) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(CHUNK);
    rustix::io::read(fd, rustix::buffer::spare_capacity(&mut piece))?;
    piece.shrink_to_fit();
    Ok(piece.into())
}
