//! Records of processes that outlive their parent, so that a reused pid is never mistaken for them.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};

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
        let start_time = start_time(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, start_time, boot: boot()? })
    }

    /// Reads a pid file; nothing when it is absent or not one.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok().filter(|&pid| pid > 0)?;
        let start_time = words.next()?.parse().ok()?;
        Some(Self { pid, start_time, boot: words.next()?.to_owned() })
    }

    /// Writes a pid file.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let beside = path.with_extension("pid.new");
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&beside)?;
            writeln!(file, "{} {} {}", self.pid, self.start_time, self.boot)?;
            fs::rename(&beside, path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Whether it still runs.
    pub(crate) fn alive(&self) -> bool {
        boot().is_ok_and(|boot| boot == self.boot) && start_time(self.pid) == Some(self.start_time)
    }

    /// Sends a signal; no error if it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        // The descriptor pins the process, so that the check holds when the signal is sent.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if !self.alive() {
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
        while self.alive() {
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

/// Field 22 of `/proc/PID/stat`; nothing for a process that is gone or only waits to be reaped.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything, so count from its closing bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
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
        let record = Record::read(&path).context("no record")?;
        assert!(record.alive());
        record.stop(Signal::TERM, Duration::from_secs(5)).await?;
        assert!(!record.alive());
        child.wait()?;
        Ok(())
    }

    #[test]
    fn a_reused_number_is_not_the_same_process() -> Result<()> {
        let mut record = Record::of(std::process::id())?;
        assert!(record.alive());
        record.start_time += 1;
        assert!(!record.alive());
        record.signal(Signal::KILL)
    }

    #[test]
    fn a_broken_pid_file_names_no_process() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x.pid");
        for text in ["", "12", "-1 2 3", "0 2 3", "a b c"] {
            fs::write(&path, text)?;
            assert_eq!(Record::read(&path), None, "{text:?}");
        }
        Ok(())
    }
}
