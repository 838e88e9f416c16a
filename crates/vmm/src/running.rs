//! A VMM's process with its run directory, whatever VMM it is.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use tokio::time::sleep;

use crate::{
    Exit, ProcessId, Stats, VmmError, logs,
    process::{self, Watched},
};

/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How much of each log is kept. Between two checks a guest can exceed it by what it writes in [`CHECK`].
const LOG_MAX: u64 = 1 << 20;
const CHECK: Duration = Duration::from_secs(1);
/// How much of a log goes into an error.
const LOG_TAIL: u64 = 4096;

/// What the guest wrote to its console.
pub(crate) fn console_log(run_dir: &Path) -> PathBuf {
    run_dir.join("console.log")
}

/// What the VMM itself wrote to its standard error.
pub(crate) fn vmm_log(run_dir: &Path) -> PathBuf {
    run_dir.join("vmm.log")
}

/// What the VMM logged to a file of its own, if it does.
pub(crate) fn own_log(run_dir: &Path) -> PathBuf {
    run_dir.join("log")
}

pub(crate) fn failed(action: impl Into<String>, source: io::Error) -> VmmError {
    VmmError::Io { action: action.into(), source }
}

/// The last lines of the VMM's logs.
pub(crate) fn last_words(run_dir: &Path) -> String {
    let logs = [own_log(run_dir), vmm_log(run_dir)].map(|path| logs::tail(&path, LOG_TAIL));
    String::from_utf8_lossy(&logs.concat()).into_owned()
}

/// A VMM process that is watched, and its files.
pub(crate) struct Running {
    watched: Watched,
    run_dir: PathBuf,
    cap: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cap.abort();
    }
}

impl Running {
    fn new(watched: Watched, run_dir: &Path) -> Self {
        let files = [console_log(run_dir), vmm_log(run_dir), own_log(run_dir)];
        let cap = tokio::spawn(async move {
            loop {
                sleep(CHECK).await;
                let files = files.clone();
                // A log that cannot be cut is cut at the next turn.
                let cut = move || files.iter().for_each(|file| drop(logs::cap(file, LOG_MAX)));
                let _ = tokio::task::spawn_blocking(cut).await;
            }
        });
        Self { watched, run_dir: run_dir.to_owned(), cap }
    }

    /// Starts the process by `spawn`, on a thread that may block.
    pub(crate) async fn start(
        run_dir: &Path,
        spawn: impl FnOnce() -> io::Result<u32> + Send + 'static,
    ) -> Result<Self, VmmError> {
        let spawned = tokio::task::spawn_blocking(spawn).await;
        let pid =
            spawned.unwrap_or_else(|error| Err(error.into())).map_err(|e| failed("start the VMM", e))?;
        // The child is reaped through its pidfd.
        let watched = process::identify(pid as i32).map(Watched::open).transpose();
        let watched = watched.map_err(|error| failed("watch the VMM", error))?.flatten();
        let watched = watched.ok_or_else(|| {
            // It is our child and nobody else knows of it: until it is reaped, its pid is its own.
            process::reap(pid as i32);
            VmmError::Ended { log: last_words(run_dir) }
        })?;
        Ok(Self::new(watched, run_dir))
    }

    /// Takes up a process that runs already.
    pub(crate) fn adopt(run_dir: &Path, recorded: Option<&ProcessId>) -> Result<Option<Self>, VmmError> {
        let recorded = recorded.filter(|id| process::belongs_to(id, run_dir)).cloned();
        let Some(id) = recorded.or_else(|| process::find(run_dir)) else { return Ok(None) };
        let watched = Watched::open(id).map_err(|error| failed("watch the VMM", error))?;
        Ok(watched.map(|watched| Self::new(watched, run_dir)))
    }

    pub(crate) fn id(&self) -> &ProcessId {
        self.watched.id()
    }

    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// An error with the VMM's last lines if it has ended, and its remains are reaped.
    pub(crate) async fn check_alive(&self) -> Result<(), VmmError> {
        if process::is_alive(self.watched.id()) {
            return Ok(());
        }
        self.watched.exited().await;
        Err(VmmError::Ended { log: last_words(&self.run_dir) })
    }

    pub(crate) async fn kill(&self) -> Result<(), VmmError> {
        self.watched.kill().map_err(|error| failed("kill the VMM", error))?;
        let gone = tokio::time::timeout(KILL_LIMIT, self.watched.exited()).await;
        gone.map(drop).map_err(|_| VmmError::Deadline { action: "end", limit: KILL_LIMIT })
    }

    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), VmmError> {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        self.watched.signal(signal).map_err(|error| failed("stop the VMM or let it go on", error))
    }

    pub(crate) async fn exited(&self) -> Exit {
        let status = self.watched.exited().await;
        let run_dir = self.run_dir.clone();
        let log = tokio::task::spawn_blocking(move || last_words(&run_dir)).await.unwrap_or_default();
        Exit { status, log }
    }

    pub(crate) fn stats(&self) -> Result<Stats, VmmError> {
        let usage = process::usage(self.watched.id());
        let (ticks, pages) = usage.map_err(|error| failed("read the VMM's usage", error))?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Stats {
            cpu_time: Duration::from_millis(ticks * 1000 / per_second),
            rss_bytes: pages * rustix::param::page_size() as u64,
        })
    }

    pub(crate) async fn console(&self, max: usize) -> Vec<u8> {
        let path = console_log(&self.run_dir);
        tokio::task::spawn_blocking(move || logs::tail(&path, max as u64)).await.unwrap_or_default()
    }
}

/// Starts a prepared command. Its `Child` is forgotten: the pidfd stands for it.
pub(crate) fn spawn(mut command: Command) -> io::Result<u32> {
    command.spawn().map(|child| child.id())
}
