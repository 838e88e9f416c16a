// SPDX-License-Identifier: Apache-2.0
//! Records of processes that outlive their parent, so that a reused pid is never mistaken for them.

use std::{fs, io, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};
use wrenn_os::{atomic_file, process::identify};

const POLL: Duration = Duration::from_millis(50);
/// Time limit for the end of a killed process.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Identity of a process, also if its pid is reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Process id.
    pub(crate) pid: i32,
    start_time: u64,
    boot: String,
}

impl Record {
    /// Identifies a running process.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).context("no process number")?;
        let id = look(pid)?.with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, start_time: id, boot: boot()? })
    }

    /// Reads a pid file; `None` if it is missing or invalid. Fails if it cannot be read.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok().filter(|&pid| pid > 0)?;
        let start_time = words.next()?.parse().ok()?;
        Some(Self { pid, start_time, boot: words.next()?.to_owned() })
    }

    /// Returns the process of a pid file if it still runs. Fails if that cannot be checked.
    pub(crate) fn running(path: &Path) -> Result<Option<Self>> {
        let Some(record) = Self::read(path)? else { return Ok(None) };
        Ok(record.alive()?.then_some(record))
    }

    /// Writes a pid file.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let line = format!("{} {} {}\n", self.pid, self.start_time, self.boot);
        atomic_file::write(path, line.as_bytes(), 0o644, None)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Returns whether it still runs. Fails if that cannot be checked: then it must not count as ended.
    pub(crate) fn alive(&self) -> Result<bool> {
        Ok(boot()? == self.boot && look(self.pid)? == Some(self.start_time))
    }

    /// Sends a signal; no error if it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        // The pidfd pins the process: the check still holds when the signal is sent.
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        };
        if !self.alive()? {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot signal process {}: run as root", self.pid))
            }
        }
    }

    /// Waits for its end; false if it still runs after `limit`.
    pub(crate) async fn gone(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        // If this cannot be checked, it does not count as ended.
        while self.alive().unwrap_or(true) {
            if Instant::now() > deadline {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }

    /// Sends `signal`, and kills it after `grace`.
    pub(crate) async fn stop(&self, signal: Signal, grace: Duration) -> Result<()> {
        self.signal(signal)?;
        if self.gone(grace).await {
            return Ok(());
        }
        self.signal(Signal::KILL)?;
        ensure!(self.gone(KILL_LIMIT).await, "process {} does not end even by SIGKILL", self.pid);
        Ok(())
    }
}

/// Boot id of the machine.
fn boot() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the boot id")?;
    Ok(text.trim().to_owned())
}

/// Start time of a process; `None` for one that has ended or is a zombie.
fn look(pid: i32) -> Result<Option<u64>> {
    let found = identify(pid).with_context(|| format!("cannot look at process {pid}"))?;
    Ok(found.map(|id| id.start_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_found_again_and_stopped() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x.pid");
        let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
        Record::of(child.id())?.write(&path)?;
        let record = Record::read(&path)?.context("no record")?;
        assert!(record.alive()?);
        record.stop(Signal::TERM, Duration::from_secs(5)).await?;
        assert!(!record.alive()?);
        child.wait()?;
        Ok(())
    }

    #[test]
    fn a_reused_number_is_not_the_same_process() -> Result<()> {
        let mut record = Record::of(std::process::id())?;
        assert!(record.alive()?);
        record.start_time += 1;
        assert!(!record.alive()?);
        record.signal(Signal::KILL)
    }

    #[test]
    fn a_broken_pid_file_names_no_process() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x.pid");
        for text in ["", "12", "-1 2 3", "0 2 3", "a b c"] {
            fs::write(&path, text)?;
            assert_eq!(Record::read(&path)?, None, "{text:?}");
        }
        assert_eq!(Record::read(&dir.path().join("absent"))?, None);
        assert!(Record::read(dir.path()).is_err(), "what cannot be read may name one");
        Ok(())
    }
}
