// SPDX-License-Identifier: Apache-2.0
//! Registry of processes: starts them within the limits of the machine, and finds them.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use tokio::{
    io::unix::AsyncFd,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use super::{
    cgroup::{Cgroup, Cgroups},
    drains::{DRAINS, Drains},
    handle::Process,
    input::Input,
    output::{Channel, From, Hold, Log, Reader},
    pipes::nonblocking,
    retention::{self, Retention},
    spawn::{self, Running, SpawnError, Spec},
    supervision::{Following, Limits, pump},
    table::{Description, READABLE, Selector, Table},
};
use crate::{out_of_memory::Kills, reaper::Reaper};

/// Upper limit of concurrently running processes started through the API.
const RUNNING: usize = 4096;
/// Memory in bytes per running process, from which their limit is computed.
const RUNNING_MEMORY: usize = 256 << 10;
/// Memory in bytes per terminal, whose screen is kept, from which their limit is computed.
const TERMINAL_MEMORY: usize = 8 << 20;
/// Additional running processes of root, so that others can be killed when the limit is reached.
const RESERVE: usize = 16;

/// Errors of starting a process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(
        "{0} processes are running, the limit of this sandbox; end some, as root if need be: {RESERVE} more may be root's"
    )]
    TooMany(usize),
    #[error("{0} terminals are open, the limit of this sandbox: end some")]
    TooManyTerminals(usize),
    #[error("a running process has the tag '{0}': choose another one, or end that process")]
    TagTaken(String),
    #[error("cannot watch the process: {0}")]
    Io(#[from] io::Error),
}

impl StartError {
    /// Returns whether the request is the cause, and not the state of the machine.
    pub(crate) fn is_callers(&self) -> bool {
        match self {
            Self::Spawn(SpawnError::Resources { .. } | SpawnError::Hung { .. }) => false,
            Self::Spawn(_) | Self::TagTaken(_) => true,
            Self::TooMany(_) | Self::TooManyTerminals(_) | Self::Io(_) => false,
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
    /// Maximum number of processes with a terminal.
    pub(crate) terminals: usize,
    /// Time for which an ended process can be read.
    pub(crate) readable: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        let running = (retention::memory() / RUNNING_MEMORY).clamp(64, RUNNING);
        let terminals = (retention::memory() / TERMINAL_MEMORY).clamp(8, 128);
        Self { kept: retention::default_limit(), drains: DRAINS, running, terminals, readable: READABLE }
    }
}

/// Registry of processes.
pub(crate) struct Registry {
    reaper: Arc<Reaper>,
    kills: Arc<Kills>,
    cgroups: Cgroups,
    retention: Arc<Retention>,
    drains: Arc<Drains>,
    bounds: Bounds,
    places: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    terminals: Arc<Semaphore>,
    table: Mutex<Table>,
}

impl Registry {
    /// Creates an empty registry.
    pub(crate) fn new(reaper: Arc<Reaper>, kills: Arc<Kills>, bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            reaper,
            kills,
            cgroups: Cgroups::open(),
            retention: Retention::new(bounds.kept),
            drains: Arc::new(Drains::new(bounds.drains)),
            bounds,
            places: Arc::new(Semaphore::new(bounds.running)),
            reserve: Arc::new(Semaphore::new(RESERVE)),
            terminals: Arc::new(Semaphore::new(bounds.terminals)),
            table: Mutex::new(Table::new(bounds.readable)),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists the running processes with their commands.
    pub(crate) fn running(&self) -> Vec<(Arc<Process>, Arc<Description>)> {
        self.table().running()
    }

    /// Finds a running process, with `ended` also one that has ended; if several had the tag, the last.
    pub(crate) fn find(&self, selector: &Selector, ended: bool) -> Option<Arc<Process>> {
        self.table().find(selector, ended)
    }

    /// Starts a process; the returned reader is attached before the process runs.
    pub(crate) async fn start(
        self: &Arc<Self>,
        spec: Spec,
        description: Description,
        tag: Option<String>,
        limits: Limits,
    ) -> Result<(Arc<Process>, Reader), StartError> {
        // In a task of its own: a client that disconnects meanwhile must not leave an unregistered process.
        let registry = Arc::clone(self);
        let starting = tokio::spawn(async move {
            if let Some(tag) = &tag
                && !registry.table().reserve(tag)
            {
                return Err(StartError::TagTaken(tag.clone()));
            }
            let started = registry.start_tagged(spec, description, tag.clone(), limits).await;
            tag.inspect(|tag| registry.table().release(tag));
            started
        });
        starting.await.map_err(io::Error::other)?
    }

    /// Starts a process whose tag is reserved.
    async fn start_tagged(
        self: &Arc<Self>,
        spec: Spec,
        mut description: Description,
        tag: Option<String>,
        limits: Limits,
    ) -> Result<(Arc<Process>, Reader), StartError> {
        let place = self.place(spec.user.uid).ok_or(StartError::TooMany(self.bounds.running))?;
        let terminal = spec.pty.map(|_| Arc::clone(&self.terminals).try_acquire_owned()).transpose();
        let terminal = terminal.map_err(|_| StartError::TooManyTerminals(self.bounds.terminals))?;
        description.shorten();
        let log = Log::new(&self.retention, spec.pty);
        // A terminal has clients that come and go, and none of them may stop it.
        let hold = if spec.pty.is_some() { Hold::Briefly } else { Hold::Always };
        let reader = log.read(hold, From::Beginning).map_err(io::Error::other)?;
        let (pty, user) = (spec.pty.is_some(), spec.user.name.clone());
        let (running, group) = self.spawn(spec).await?;
        let wired = match wire(running.input, running.outputs, pty) {
            Ok(wired) => wired,
            Err(error) => {
                // Kill it, because its output could not be read.
                self.reaper.signal_group(running.pid, libc::SIGKILL);
                return Err(error.into());
            }
        };
        let (ended, end_seen) = watch::channel(false);
        let pid = running.pid as u32;
        let process = Arc::new(Process {
            pid,
            tag,
            pty,
            user,
            started_at: SystemTime::now(),
            log: Arc::clone(&log),
            input: Input::new(pid, wired.input, end_seen.clone()),
            terminal: Mutex::new(wired.terminal),
            cgroup: Mutex::new(group),
            timed_out: AtomicBool::new(false),
            reaper: Arc::clone(&self.reaper),
        });
        let mut pumps = JoinSet::new();
        for (channel, fd) in wired.outputs {
            pumps.spawn(pump(Arc::clone(&self.drains), channel, fd, Arc::clone(&log), end_seen.clone()));
        }
        self.table().add(Arc::clone(&process), Arc::new(description));
        let following = Following {
            process: Arc::clone(&process),
            status: running.status,
            limits,
            pumps,
            ended,
            kills: Arc::clone(&self.kills),
        };
        tokio::spawn(Arc::clone(self).follow(following, (place, terminal)));
        Ok((process, reader))
    }

    /// Starts a program in a cgroup of its own.
    async fn spawn(self: &Arc<Self>, spec: Spec) -> Result<(Running, Option<Cgroup>), StartError> {
        let registry = Arc::clone(self);
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
        Ok((begun?, group))
    }

    /// Follows a process to its end, and keeps its places until then.
    async fn follow(
        self: Arc<Self>,
        following: Following,
        places: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    ) {
        let process = Arc::clone(&following.process);
        following.follow().await;
        self.table().end(process);
        drop(places);
    }

    /// Returns a permit to run a process of a user, or `None` at the limit.
    fn place(&self, uid: u32) -> Option<OwnedSemaphorePermit> {
        let usual = Arc::clone(&self.places).try_acquire_owned().ok();
        usual.or_else(|| Arc::clone(&self.reserve).try_acquire_owned().ok().filter(|_| uid == 0))
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
