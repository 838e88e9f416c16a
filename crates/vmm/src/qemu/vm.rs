//! One QEMU microVM.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use super::{
    command::{console_log, qmp_socket, vmm_log},
    qmp::Qmp,
};
use crate::{
    BootSpec, Exit, MicroVm, ProcessId, Stats, VmmError,
    process::{self, Watched},
};

/// How long QEMU may take until its control socket answers.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How much of a guest's console is kept. Between two checks a guest can exceed it by what it writes in
/// [`CONSOLE_CHECK`].
const CONSOLE_MAX: u64 = 1 << 20;
const CONSOLE_CHECK: Duration = Duration::from_secs(1);
/// How much of a log goes into an error.
const LOG_TAIL: u64 = 4096;

/// A QEMU process and its files.
pub(super) struct QemuVm {
    watched: Arc<Watched>,
    run_dir: PathBuf,
    console_cap: tokio::task::JoinHandle<()>,
}

impl Drop for QemuVm {
    fn drop(&mut self) {
        self.console_cap.abort();
    }
}

fn failed(action: &str, source: io::Error) -> VmmError {
    VmmError::Io { action: action.to_owned(), source }
}

/// The last `max` bytes of a file; nothing when it cannot be read.
fn tail(path: &Path, max: u64) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(max)))?;
        let mut content = Vec::new();
        file.take(max).read_to_end(&mut content)?;
        Ok(content)
    };
    read().unwrap_or_default()
}

/// Drops the older half of a console log that has grown too long. QEMU appends, so its next line follows
/// what is kept; what it writes in between is lost.
fn cap_console(path: &Path, max: u64) -> io::Result<()> {
    if fs::metadata(path)?.len() <= max {
        return Ok(());
    }
    let kept = tail(path, max / 2);
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.set_len(0)?;
    file.write_all(&kept)
}

fn handle(watched: Watched, run_dir: &Path) -> QemuVm {
    let console = console_log(run_dir);
    let console_cap = tokio::spawn(async move {
        loop {
            sleep(CONSOLE_CHECK).await;
            let console = console.clone();
            // A console that cannot be cut is cut at the next turn.
            let _ = tokio::task::spawn_blocking(move || cap_console(&console, CONSOLE_MAX)).await;
        }
    });
    QemuVm { watched: Arc::new(watched), run_dir: run_dir.to_owned(), console_cap }
}

/// Starts QEMU and waits until the guest runs.
pub(super) async fn start(mut command: Command, spec: &BootSpec) -> Result<QemuVm, VmmError> {
    let spawned = tokio::task::spawn_blocking(move || command.spawn());
    let child = spawned.await.map_err(|e| failed("start the VMM", e.into()))?;
    let child = child.map_err(|source| failed("start the VMM", source))?;
    let ended =
        || VmmError::Ended { log: String::from_utf8_lossy(&tail(&vmm_log(&spec.run_dir), LOG_TAIL)).into() };
    // The child is reaped through its pidfd; `Child` would only forget it.
    let id = process::identify(child.id() as i32);
    let watched = id.map(Watched::open).transpose().map_err(|source| failed("watch the VMM", source))?;
    let vm = handle(watched.flatten().ok_or_else(ended)?, &spec.run_dir);

    let begin = Instant::now();
    loop {
        if !process::is_alive(vm.watched.id()) {
            vm.watched.exited().await;
            return Err(ended());
        }
        if let Ok(mut qmp) = Qmp::connect(&qmp_socket(&spec.run_dir)).await
            && qmp.execute("query-status", "start").await?["status"] == "running"
        {
            return Ok(vm);
        }
        if begin.elapsed() > START_LIMIT {
            vm.kill().await?;
            return Err(VmmError::Deadline { action: "start", limit: START_LIMIT });
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Takes up a QEMU that runs already.
pub(super) fn adopt(run_dir: &Path, recorded: Option<&ProcessId>) -> Result<Option<QemuVm>, VmmError> {
    let recorded = recorded.filter(|id| process::belongs_to(id, run_dir)).cloned();
    let Some(id) = recorded.or_else(|| process::find(run_dir)) else { return Ok(None) };
    let watched = Watched::open(id).map_err(|source| failed("watch the VMM", source))?;
    Ok(watched.map(|watched| handle(watched, run_dir)))
}

impl QemuVm {
    async fn control(&self, command: &str, action: &'static str) -> Result<(), VmmError> {
        let mut qmp = Qmp::connect(&qmp_socket(&self.run_dir)).await?;
        qmp.execute(command, action).await.map(drop)
    }
}

#[async_trait]
impl MicroVm for QemuVm {
    fn process(&self) -> ProcessId {
        self.watched.id().clone()
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.control("stop", "pause").await
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.control("cont", "resume").await
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.watched.kill().map_err(|source| failed("kill the VMM", source))?;
        let gone = tokio::time::timeout(KILL_LIMIT, self.watched.exited()).await;
        gone.map(drop).map_err(|_| VmmError::Deadline { action: "end", limit: KILL_LIMIT })
    }

    async fn exited(&self) -> Exit {
        let status = self.watched.exited().await;
        let log = vmm_log(&self.run_dir);
        let read = tokio::task::spawn_blocking(move || tail(&log, LOG_TAIL)).await.unwrap_or_default();
        Exit { status, log: String::from_utf8_lossy(&read).into_owned() }
    }

    fn stats(&self) -> Result<Stats, VmmError> {
        let (ticks, pages) =
            process::usage(self.watched.id()).map_err(|e| failed("read the VMM's usage", e))?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Stats {
            cpu_time: Duration::from_millis(ticks * 1000 / per_second),
            rss_bytes: pages * rustix::param::page_size() as u64,
        })
    }

    async fn console(&self, max: usize) -> Vec<u8> {
        let path = console_log(&self.run_dir);
        tokio::task::spawn_blocking(move || tail(&path, max as u64)).await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_console_keeps_its_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [vec![b'a'; 900], vec![b'b'; 200]].concat()).unwrap();
        cap_console(file.path(), 1000).unwrap();
        let kept = fs::read(file.path()).unwrap();
        assert_eq!(kept, [vec![b'a'; 300], vec![b'b'; 200]].concat());
        cap_console(file.path(), 1000).unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().len(), 500);
        assert_eq!(tail(file.path(), 3), b"bbb");
    }
}
