// SPDX-License-Identifier: Apache-2.0
//! Processes from `/proc`: their list, their processor time, and stopping them.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

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
        let dir = format!("/proc/{}/fd", self.pid.as_raw_nonzero());
        Ok(fs::read_dir(&dir).with_context(|| format!("{self:?} is gone"))?.count())
    }
}

/// Processor time of a process with all its threads. Fails if it is gone.
pub fn processor_time(pid: Pid) -> Result<Duration> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let stat = fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
    // The command name is in parentheses and may contain any character.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let mut times = fields.skip(11).take(2).map(str::parse::<u64>);
    let mut next = || times.next().with_context(|| format!("no times in {path}"))?.context("no number");
    let ticks = next()? + next()?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

fn read(pid: &str) -> Option<Process> {
    let dir = Path::new("/proc").join(pid);
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    // The command name is in parentheses and may contain any character; state and parent follow it.
    let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
    let cmdline = fs::read(dir.join("cmdline")).ok()?;
    let args =
        String::from_utf8_lossy(&cmdline).trim_end_matches('\0').split('\0').map(str::to_owned).collect();
    Some(Process { pid: Pid::from_raw(pid.parse().ok()?)?, parent, args })
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
        let children = processes().into_iter().filter(|process| process.parent == pid.as_raw_nonzero().get());
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
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|name| read(&name))
        .collect()
}
