// SPDX-License-Identifier: Apache-2.0
//! A VMM's process and run directory, common to all drivers.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
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
    BootSpec, Exit, ProcessId, Stats, VmmError, logs,
    process::{self, Watched},
};

/// Time limit for the end of a killed process.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Maximum size on disk of each log, in bytes. Between two checks a guest can exceed it by its output within
/// [`CHECK`].
const LOG_MAX: u64 = 1 << 20;
const CHECK: Duration = Duration::from_secs(1);
/// Maximum length of a kernel's last line, in bytes.
const LAST_LINE: u64 = 256;
/// Line that is added to the log of a VMM that was killed after its page server had ended.
const PAGES_LOST: &str = "the microVM was killed because the page server of its memory had ended\n";
/// Length of the log's end that is added to an error, in bytes.
const LOG_TAIL: u64 = 4096;

/// Log of the guest's console.
pub(crate) fn console_log(run_dir: &Path) -> PathBuf {
    run_dir.join("console.log")
}

/// Log of the VMM's standard error.
pub(crate) fn vmm_log(run_dir: &Path) -> PathBuf {
    run_dir.join("vmm.log")
}

/// Log file that some VMMs write themselves.
pub(crate) fn own_log(run_dir: &Path) -> PathBuf {
    run_dir.join("log")
}

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

/// Length of a log, punched holes included.
fn length(log: &Path) -> u64 {
    fs::symlink_metadata(log).map_or(0, |meta| meta.len())
}

/// Returns whether the last line of this log, without its timestamp, is `line`.
fn ends_with(log: &Path, line: &str) -> bool {
    let tail = logs::tail(log, LAST_LINE);
    tail.trim_ascii_end().ends_with(line.as_bytes())
}

/// Reasons to kill a VMM's process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Care {
    /// Last console line of a guest that has shut down, for a VMM that does not end then.
    pub(crate) farewell: Option<&'static str>,
    /// Length of the console log before this guest started: a former guest of the directory may have written
    /// the same line.
    pub(crate) before: u64,
    /// Memory of the guest in MiB: a snapshot in the run directory may have this size, and little more.
    pub(crate) memory_mb: u32,
}

/// Additional size of a run directory, for logs and a snapshot's state, in bytes.
const RUN_DIR_EXTRA: u64 = 64 << 20;
/// Maximum number of files in a run directory; a VMM creates a handful.
const RUN_DIR_FILES: usize = 64;

/// Returns whether the run directory contains more than a VMM writes.
fn overfull(run_dir: &Path, memory_mb: u32) -> bool {
    let Ok(entries) = fs::read_dir(run_dir) else { return false };
    let (mut files, mut bytes) = (0, 0);
    for entry in entries.flatten().take(RUN_DIR_FILES + 1) {
        files += 1;
        bytes += fs::symlink_metadata(entry.path()).map_or(0, |meta| meta.blocks() * 512);
    }
    files > RUN_DIR_FILES || bytes > (u64::from(memory_mb) << 20) + RUN_DIR_EXTRA
}

impl Care {
    /// Returns the reason to kill the VMM of this directory, if any.
    fn verdict(self, run_dir: &Path) -> Option<&'static str> {
        let console = console_log(run_dir);
        let said = length(&console) > self.before;
        if said && self.farewell.is_some_and(|line| ends_with(&console, line)) {
            return Some("its guest has shut down");
        }
        overfull(run_dir, self.memory_mb).then_some("it fills its directory with what no VMM writes")
    }
}

/// A watched VMM process and its files.
pub(crate) struct Running {
    watched: Arc<Watched>,
    run_dir: PathBuf,
    _cap: AbortOnDropHandle<()>,
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
        let files = [console_log(run_dir), vmm_log(run_dir), own_log(run_dir)];
        let (looked_after, dir) = (watched.clone(), run_dir.to_owned());
        let cap = tokio::spawn(async move {
            loop {
                sleep(CHECK).await;
                let (files, dir) = (files.clone(), dir.clone());
                let look = move || {
                    // If freeing the start of a log fails, the next turn tries again.
                    files.iter().for_each(|file| drop(logs::cap(file, LOG_MAX)));
                    care.verdict(&dir)
                };
                if let Ok(Some(reason)) = tokio::task::spawn_blocking(look).await {
                    tracing::warn!(process = looked_after.id().pid, reason, "killing a VMM");
                    // If this fails, the next turn tries again.
                    let _ = looked_after.kill();
                }
            }
        });
        Self { watched, run_dir: run_dir.to_owned(), _cap: AbortOnDropHandle::new(cap), pages: None }
    }

    /// Starts the process by `spawn`, on a blocking thread.
    pub(crate) async fn start(
        spec: &BootSpec,
        care: Care,
        spawn: impl FnOnce() -> io::Result<u32> + Send + 'static,
    ) -> Result<Self, VmmError> {
        let (run_dir, console) = (&*spec.run_dir, console_log(&spec.run_dir));
        let work = move || {
            let before = length(&console);
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
                sleep(CHECK).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_that_fills_its_directory_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let care = Care { farewell: None, before: 0, memory_mb: 0 };
        let file = fs::File::create(dir.path().join("memory.new")).unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(care.verdict(dir.path()), None, "holes take no room");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RUN_DIR_EXTRA + 4096).unwrap();
        assert!(care.verdict(dir.path()).is_some());
        assert_eq!(Care { memory_mb: 1, ..care }.verdict(dir.path()), None);
        drop(file);
        fs::remove_file(dir.path().join("memory.new")).unwrap();
        (0..=RUN_DIR_FILES).for_each(|n| drop(fs::File::create(dir.path().join(n.to_string())).unwrap()));
        assert!(care.verdict(dir.path()).is_some());
    }

    #[test]
    fn a_former_guests_farewell_is_not_this_ones() {
        let dir = tempfile::tempdir().unwrap();
        let farewell = "reboot: System halted";
        let care = Care { farewell: Some(farewell), before: 0, memory_mb: 0 };
        assert_eq!(care.verdict(dir.path()), None);
        fs::write(console_log(dir.path()), format!("[ 1.0] {farewell}\n")).unwrap();
        assert!(care.verdict(dir.path()).is_some());
        let next = Care { before: length(&console_log(dir.path())), ..care };
        assert_eq!(next.verdict(dir.path()), None);
        fs::write(console_log(dir.path()), format!("[ 1.0] {farewell}\n").repeat(2)).unwrap();
        assert!(next.verdict(dir.path()).is_some());
    }

    #[test]
    fn a_farewell_is_the_last_line_and_no_other() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let said = |text: &str| {
            std::fs::write(log.path(), text).unwrap();
            ends_with(log.path(), "reboot: System halted")
        };
        assert!(said("Welcome\r\n[   12.345678] reboot: System halted\r\n"));
        assert!(!said("[   12.345678] reboot: System halted\r\nlogin: "));
        assert!(!said(""));
    }
}
