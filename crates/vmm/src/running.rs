// SPDX-License-Identifier: Apache-2.0
//! A VMM's process and run directory, common to all drivers.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    BootSpec, Exit, ProcessId, Stats, VmmError,
    care::{self, Care, Charge},
    logs::{self, console_log, own_log, vmm_log},
    process::{self, Watched},
};

/// Time limit for the end of a killed process.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Pause before another attempt to kill a VMM.
const AGAIN: Duration = Duration::from_secs(1);
/// Line that is added to the log of a VMM that was killed after its page server had ended.
const PAGES_LOST: &str = "the microVM was killed because the page server of its memory had ended\n";
/// Length of the log's end that is added to an error, in bytes.
const LOG_TAIL: u64 = 4096;

pub(crate) fn failed(action: impl Into<String>, source: io::Error) -> VmmError {
    let action = action.into();
    match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => VmmError::Full { action },
        _ => VmmError::Io { action, source },
    }
}

/// End of the VMM's logs.
pub(crate) fn last_words(run_dir: &Path) -> String {
    let logs = [own_log(run_dir), vmm_log(run_dir)].map(|path| logs::tail(&path, LOG_TAIL));
    String::from_utf8_lossy(&logs.concat()).into_owned()
}

/// A watched VMM process and its files.
pub(crate) struct Running {
    watched: Arc<Watched>,
    run_dir: PathBuf,
    _charge: Arc<Charge>,
    pages: Option<Pages>,
}

/// Page server of a VMM, and the task that ends the VMM when it has ended.
struct Pages {
    server: Arc<Watched>,
    /// Whether the server ended before the VMM.
    lost: Arc<AtomicBool>,
    _guard: AbortOnDropHandle<()>,
}

impl Running {
    fn new(watched: Watched, run_dir: &Path, care: Care) -> Self {
        let watched = Arc::new(watched);
        let charge = care::begin(care, watched.clone(), run_dir.to_owned());
        Self { watched, run_dir: run_dir.to_owned(), _charge: charge, pages: None }
    }

    /// Starts the process by `spawn`, on a blocking thread.
    pub(crate) async fn start(
        spec: &BootSpec,
        care: Care,
        spawn: impl FnOnce() -> io::Result<u32> + Send + 'static,
    ) -> Result<Self, VmmError> {
        let (run_dir, console) = (&*spec.run_dir, console_log(&spec.run_dir));
        let work = move || {
            let before = logs::length(&console);
            spawn().map(|pid| (pid, before))
        };
        let spawned = if spec.tied {
            on_thread_of_its_own(work, |&(pid, _)| wait_for_end(pid)).await
        } else {
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into()))
        };
        let (pid, before) = spawned.map_err(|error| failed("start the VMM", error))?;
        let care = Care { before, ..care };
        let watched = process::watch_child(pid).map_err(|error| failed("watch the VMM", error))?;
        let watched = watched.ok_or_else(|| VmmError::Ended { log: last_words(run_dir) })?;
        Ok(Self::new(watched, run_dir, care))
    }

    /// Adopts a running process.
    pub(crate) async fn adopt(
        run_dir: &Path,
        care: Care,
        recorded: Option<&ProcessId>,
    ) -> Result<Option<Self>, VmmError> {
        let (dir, recorded) = (run_dir.to_owned(), recorded.cloned());
        let find =
            move || process::of(&dir, recorded.as_ref()).map_err(|error| failed("look for the VMM", error));
        let found = blocking("look for the VMM", find).await?;
        let watched = found.map(Watched::open).transpose();
        let watched = watched.map_err(|error| failed("watch the VMM", error))?.flatten();
        Ok(watched.map(|watched| Self::new(watched, run_dir, care)))
    }

    /// The same with a page server of its guest's memory, without which the guest could only wait.
    pub(crate) fn with_pages(self, server: Watched) -> Self {
        let server = Arc::new(server);
        let (vmm, watched, lost) = (self.watched.clone(), server.clone(), Arc::new(AtomicBool::new(false)));
        let told = lost.clone();
        let guard = tokio::spawn(async move {
            watched.exited().await;
            // It ends by itself after its VMM has.
            if wrenn_os::process::is_alive(vmm.id()).unwrap_or(true) {
                tracing::warn!(process = vmm.id().pid, "killing a VMM whose page server has ended");
                told.store(true, Ordering::Relaxed);
            }
            while vmm.kill().is_err() {
                sleep(AGAIN).await;
            }
        });
        Self { pages: Some(Pages { server, lost, _guard: AbortOnDropHandle::new(guard) }), ..self }
    }

    pub(crate) fn id(&self) -> &ProcessId {
        self.watched.id()
    }

    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Fails with the end of the VMM's logs if it has ended, and reaps it.
    pub(crate) async fn check_alive(&self) -> Result<(), VmmError> {
        if wrenn_os::process::is_alive(self.watched.id()).map_err(|error| failed("look at the VMM", error))? {
            return Ok(());
        }
        self.watched.exited().await;
        Err(VmmError::Ended { log: last_words(&self.run_dir) })
    }

    pub(crate) async fn kill(&self) -> Result<(), VmmError> {
        end(&self.watched, "kill the VMM").await?;
        match &self.pages {
            Some(pages) => end(&pages.server, "end the page server").await,
            None => Ok(()),
        }
    }

    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), VmmError> {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        self.watched.signal(signal).map_err(|error| failed("stop the VMM or let it go on", error))
    }

    pub(crate) async fn exited(&self) -> Exit {
        let status = self.watched.exited().await;
        let run_dir = self.run_dir.clone();
        let mut log = tokio::task::spawn_blocking(move || last_words(&run_dir)).await.unwrap_or_default();
        if let Some(pages) = &self.pages {
            if let Err(error) = end(&pages.server, "end the page server").await {
                tracing::warn!(process = self.id().pid, %error, "a page server outlives its VMM");
            }
            if pages.lost.load(Ordering::Relaxed) {
                log.push_str(PAGES_LOST);
            }
        }
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

/// Kills a process and waits for its end.
pub(crate) async fn end(process: &Watched, action: &'static str) -> Result<(), VmmError> {
    process.kill().map_err(|error| failed(action, error))?;
    let gone = tokio::time::timeout(KILL_LIMIT, process.exited()).await;
    gone.map(drop).map_err(|_| VmmError::Deadline { action: "end", limit: KILL_LIMIT })
}

/// Runs `work`, which reads and writes files, on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, VmmError> + Send + 'static,
) -> Result<T, VmmError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(failed(action, error.into())))
}

/// Starts a child on a thread that lives until the child has ended: the parent-death signal is sent when the
/// thread that started the child ends, and threads of the runtime come and go.
async fn on_thread_of_its_own<T: Clone + Send + 'static>(
    start: impl FnOnce() -> io::Result<T> + Send + 'static,
    wait: impl FnOnce(&T) + Send + 'static,
) -> io::Result<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("starter".to_owned()).spawn(move || {
        let started = start();
        let child = started.as_ref().ok().cloned();
        // The receiver is gone, but the child still needs this thread.
        let _ = tell.send(started);
        if let Some(child) = child {
            wait(&child);
        }
    })?;
    told.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Waits for the end of a child without reaping it.
pub(crate) fn wait_for_end(pid: u32) {
    let Some(pid) = Pid::from_raw(pid as i32) else { return };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    while rustix::event::poll(&mut ended, None) == Err(rustix::io::Errno::INTR) {}
}

/// Starts a prepared command. The `Child` is dropped: the pidfd replaces it.
pub(crate) fn spawn(mut command: Command) -> io::Result<u32> {
    command.spawn().map(|child| child.id())
}
