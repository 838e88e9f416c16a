// SPDX-License-Identifier: Apache-2.0
//! Processes: their list, their processor time, and stopping them.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use wrenn_os::process;

/// Running process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Process id.
    pub pid: Pid,
    /// Process id of the parent.
    pub parent: i32,
    /// Command line.
    pub args: Vec<String>,
}

impl Process {
    /// Returns the file name of the program.
    pub fn program(&self) -> &str {
        let first = self.args.first().map_or("", String::as_str);
        let path = first.split([' ', ':']).next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }

    /// Returns whether this is the Firecracker of a sandbox: the name of its jail begins with a sandbox id.
    pub fn is_jailed_sandbox(&self) -> bool {
        let id = self.args.iter().skip_while(|arg| *arg != "--id").nth(1);
        self.program() == "firecracker" && id.is_some_and(|id| id.starts_with("sb") && id.len() > 27)
    }

    /// Counts the open file descriptors.
    pub fn open_files(&self) -> Result<usize> {
        let dir = process::directory(self.pid.as_raw_pid()).join("fd");
        Ok(fs::read_dir(dir).with_context(|| format!("{self:?} is gone"))?.count())
    }
}

/// Processor time of a process with all its threads. Fails if it is gone.
pub fn processor_time(pid: Pid) -> Result<Duration> {
    let stat = process::stat(&process::directory(pid.as_raw_pid()))?;
    let ticks = stat.with_context(|| format!("{pid:?} is gone"))?.ticks;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// Reads a process; `None` if it is gone.
fn read(pid: i32) -> Option<Process> {
    let dir = process::directory(pid);
    let stat = process::stat(&dir).ok()??;
    let mut args = process::arguments(&dir).ok()?;
    // A NUL ends the last argument, too.
    while args.pop_if(|arg| arg.is_empty()).is_some() {}
    Some(Process { pid: Pid::from_raw(pid)?, parent: stat.parent, args })
}

/// Process stopped by SIGSTOP together with its children; dropping this resumes them.
#[derive(Debug)]
pub struct Frozen {
    pids: Vec<Pid>,
}

impl Frozen {
    /// Stops the process first, then its children, so that it cannot start more of them.
    pub fn new(pid: Pid) -> Result<Self> {
        let mut frozen = Self { pids: vec![pid] };
        kill_process(pid, Signal::STOP).with_context(|| format!("cannot stop {pid:?}"))?;
        let children = processes().into_iter().filter(|process| process.parent == pid.as_raw_pid());
        for child in children {
            // A child that has exited meanwhile need not be stopped.
            if kill_process(child.pid, Signal::STOP).is_ok() {
                frozen.pids.push(child.pid);
            }
        }
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for &pid in &self.pids {
            let _ = kill_process(pid, Signal::CONT);
        }
    }
}

/// Lists all processes.
pub fn processes() -> Vec<Process> {
    process::all().unwrap_or_default().into_iter().filter_map(read).collect()
}
