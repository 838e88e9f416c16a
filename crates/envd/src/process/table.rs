// SPDX-License-Identifier: Apache-2.0
//! Table of processes: the running ones with their commands, and those that have ended a while ago at most.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::handle::Process;

/// Maximum number of ended processes whose exit and remaining output can still be read.
const ENDED: usize = 256;
/// Time for which an ended process can still be read, unless a test shortens it. The time of a pause does not count.
pub(super) const READABLE: Duration = Duration::from_secs(600);
/// Maximum bytes of arguments and environment kept per process for listings.
const LISTED: usize = 16 << 10;

/// Command of a process, for listings.
pub(crate) struct Description {
    pub(crate) cmd: String,
    pub(crate) args: Vec<String>,
    pub(crate) envs: Vec<(String, String)>,
    pub(crate) cwd: Option<String>,
}

impl Description {
    /// Truncates arguments and variables to [`LISTED`] bytes, because this is memory of PID 1.
    pub(super) fn shorten(&mut self) {
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

/// Selects a process.
pub(crate) enum Selector {
    Pid(u32),
    Tag(String),
}

impl Selector {
    fn matches(&self, process: &Process) -> bool {
        match self {
            Self::Pid(pid) => process.pid == *pid,
            Self::Tag(tag) => process.tag.as_ref() == Some(tag),
        }
    }
}

/// Processes by pid and tag.
pub(super) struct Table {
    running: Vec<(Arc<Process>, Arc<Description>)>,
    /// Tags of processes that are being started.
    starting: Vec<String>,
    ended: VecDeque<(Instant, Arc<Process>)>,
    /// Time for which those can be read.
    readable: Duration,
}

impl Table {
    /// Creates an empty table whose ended processes can be read for this time.
    pub(super) fn new(readable: Duration) -> Self {
        Self { running: Vec::new(), starting: Vec::new(), ended: VecDeque::new(), readable }
    }

    /// Reserves a tag for a process that is being started; returns false if another one has it.
    pub(super) fn reserve(&mut self, tag: &str) -> bool {
        let mut running = self.running.iter().filter_map(|(process, _)| process.tag.as_deref());
        let taken = self.starting.iter().any(|other| other == tag) || running.any(|other| other == tag);
        if !taken {
            self.starting.push(tag.to_owned());
        }
        !taken
    }

    /// Gives a reserved tag back, because its process runs or has not been started.
    pub(super) fn release(&mut self, tag: &str) {
        self.starting.retain(|other| other != tag);
    }

    /// Adds a running process.
    pub(super) fn add(&mut self, process: Arc<Process>, description: Arc<Description>) {
        self.running.push((process, description));
    }

    /// Moves a process to the ended ones.
    pub(super) fn end(&mut self, process: Arc<Process>) {
        self.running.retain(|(other, _)| !Arc::ptr_eq(other, &process));
        // The reaper gives no id again that can still be read. If the kernel has too few, the newer process gets it.
        self.ended.retain(|(at, other)| other.pid != process.pid && at.elapsed() < self.readable);
        self.ended.push_back((Instant::now(), process));
        if self.ended.len() > ENDED {
            self.ended.pop_front();
        }
    }

    /// Lists the running processes with their commands.
    pub(super) fn running(&self) -> Vec<(Arc<Process>, Arc<Description>)> {
        self.running.clone()
    }

    /// Finds a running process, with `ended` also one that has ended; if several had the tag, the last.
    pub(super) fn find(&self, selector: &Selector, ended: bool) -> Option<Arc<Process>> {
        let mut running = self.running.iter().map(|(process, _)| process);
        let mut readable = self.ended.iter().rev().filter(|(at, _)| ended && at.elapsed() < self.readable);
        let found = running.find(|process| selector.matches(process));
        found.or_else(|| Some(&readable.find(|(_, process)| selector.matches(process))?.1)).cloned()
    }
}
