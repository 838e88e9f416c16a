// SPDX-License-Identifier: Apache-2.0
//! One started process: its output, input, terminal and signals.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use rustix::termios::Winsize;

use super::{
    cgroup::Cgroup,
    input::{Input, InputError},
    output::{From, Hold, Log, OutOfRange, Reader, Shown},
};
use crate::{
    out_of_memory::{Kill, Kills},
    reaper::Reaper,
};

/// Started process.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) tag: Option<String>,
    /// Whether it has a terminal.
    pub(crate) pty: bool,
    /// Name of its user.
    pub(crate) user: String,
    pub(crate) started_at: SystemTime,
    pub(super) log: Arc<Log>,
    pub(super) input: Input,
    /// Terminal, for resizing.
    pub(super) terminal: Mutex<Option<OwnedFd>>,
    pub(super) cgroup: Mutex<Option<Cgroup>>,
    pub(super) timed_out: AtomicBool,
    pub(super) reaper: Arc<Reaper>,
}

impl Process {
    /// Attaches a client. Fails if it has not written so much yet.
    pub(crate) fn read(&self, from: From) -> Result<Reader, OutOfRange> {
        self.log.read(Hold::Briefly, from)
    }

    /// Returns whether it has exited and all its output is in the log.
    pub(crate) fn ended(&self) -> bool {
        self.log.ended()
    }

    /// Sends a signal to the process and all its descendants; returns how many processes got it.
    pub(crate) fn signal(&self, signal: i32) -> usize {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        let group = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        let reached = group.as_ref().map_or(0, |group| group.signal(signal));
        drop(group);
        // Without cgroups it is sent to the process group.
        if reached == 0 { usize::from(self.reaper.signal_group(self.pid as i32, signal)) } else { reached }
    }

    /// Kills the process and its descendants; returns how many they were.
    pub(crate) fn kill(&self) -> usize {
        let group = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        let killed = group.as_ref().map_or(0, Cgroup::kill);
        drop(group);
        killed.max(usize::from(self.reaper.signal_group(self.pid as i32, libc::SIGKILL)))
    }

    /// Kills it because its time is over.
    pub(super) fn time_out(&self) {
        self.timed_out.store(true, Ordering::Relaxed);
        self.kill();
    }

    /// Writes all of `data` as fast as the process reads it.
    pub(crate) async fn write(&self, data: &[u8]) -> Result<(), InputError> {
        self.log.written_to();
        self.input.write(data).await
    }

    /// Closes standard input after pending writes.
    pub(crate) fn close_input(&self) {
        self.input.close();
    }

    /// Resizes the terminal; returns false if there is none.
    pub(crate) fn resize(&self, size: Winsize) -> bool {
        let terminal = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        // The screen first: what a program draws for the new size comes later than the change.
        let resized = terminal.as_ref().is_some_and(|fd| {
            self.log.resize(size);
            rustix::termios::tcsetwinsize(fd, size).is_ok()
        });
        drop(terminal);
        resized
    }

    /// Returns what its terminal shows; `None` without one.
    pub(crate) fn shown(&self) -> Option<Shown> {
        self.log.shown()
    }

    /// Removes its cgroup, unless descendants that outlive it are there, which can be signalled as before.
    pub(super) fn leave_cgroup(&self) {
        let mut group = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        group.take_if(|group| group.is_empty());
    }

    /// Returns whether the kernel killed it or a descendant for want of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let group = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        group.as_ref().is_some_and(Cgroup::ran_out_of_memory)
    }

    /// Returns which one that was, if the kernel says so.
    pub(super) async fn victim(&self, kills: &Kills) -> Option<Kill> {
        let group = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.name()?;
        kills.of(self.pid, &group).await
    }
}
