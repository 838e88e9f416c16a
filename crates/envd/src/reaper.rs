// SPDX-License-Identifier: Apache-2.0
//! Reaps all exited children including orphans, and reports the status of envd's own children.
//!
//! One thread waits with WNOWAIT (the zombie stays), takes the lock and then reaps. Children are forked,
//! registered and signalled under the same lock, so a status is never lost before its pid is registered, and
//! a signal never reaches a reused pid. The lock is held during the fork but not until the exec, so that a
//! program on a hanging file system blocks nothing else.
//!
//! A child never gets the pid of one of those that ended last: clients were told it, and still mean that one.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    ptr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use tokio::sync::oneshot;

/// Number of children whose pids are not given to others after their end: more than can still be read.
const REMEMBERED: usize = 1024;

/// Children of this process.
pub(crate) struct Reaper {
    children: Mutex<Children>,
    forked: Condvar,
}

#[derive(Default)]
struct Children {
    waiting: HashMap<i32, oneshot::Sender<ExitStatus>>,
    /// Pids of those that ended last, at most [`REMEMBERED`].
    ended: VecDeque<i32>,
    generation: u64,
}

impl Reaper {
    /// Starts the reaper thread.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self { children: Mutex::default(), forked: Condvar::new() });
        let shared = Arc::clone(&reaper);
        thread::Builder::new().name("reaper".into()).stack_size(128 << 10).spawn(move || shared.run())?;
        Ok(reaper)
    }

    /// Forks a child with all signals blocked; the receiver gets its exit status. A child that gets the pid of an ended one
    /// exits at once, and the next one is taken. Pids count up, so as many attempts as there are such pids are enough; only if
    /// somebody has set `kernel.pid_max` to less, the last attempt takes what it gets.
    ///
    /// # Safety
    /// `child` runs in a copy of a process with several threads: it may only make async-signal-safe calls.
    pub(crate) unsafe fn fork(
        &self,
        child: impl FnOnce() -> Infallible,
    ) -> io::Result<(i32, oneshot::Receiver<ExitStatus>)> {
        let mut children = self.lock();
        let pid = blocking_signals(|| {
            let mut attempts = children.ended.len();
            loop {
                // Parent and child decide alike.
                let taken = |pid| attempts > 0 && children.ended.contains(&pid);
                // SAFETY: the caller guarantees what the child does. One that is not wanted makes two system calls.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    // SAFETY: as above.
                    if taken(unsafe { libc::getpid() }) {
                        unsafe { libc::_exit(0) };
                    }
                    match child() {}
                }
                if pid < 0 {
                    return Err(io::Error::last_os_error());
                }
                if !taken(pid) {
                    return Ok(pid);
                }
                // SAFETY: the call has no memory effects. The child exits at once; the thread below does not reap it,
                // because that needs the lock.
                unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
                attempts -= 1;
            }
        })?;
        let (tx, rx) = oneshot::channel();
        children.waiting.insert(pid, tx);
        children.generation += 1;
        self.forked.notify_all();
        Ok((pid, rx))
    }

    /// Signals the process group of a child; returns false if the child has exited.
    pub(crate) fn signal_group(&self, pid: i32, signal: i32) -> bool {
        let children = self.lock();
        // SAFETY: kill has no memory effects; pid is an unreaped child that leads its group.
        children.waiting.contains_key(&pid) && unsafe { libc::kill(-pid, signal) } == 0
    }

    /// Signals a child that may not lead a process group yet.
    pub(crate) fn signal(&self, pid: i32, signal: i32) {
        let children = self.lock();
        if children.waiting.contains_key(&pid) {
            // SAFETY: kill has no memory effects; pid is an unreaped child.
            unsafe { libc::kill(pid, signal) };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Children> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut seen = 0;
        loop {
            // SAFETY: zero is a valid siginfo_t, and the kernel fills it.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            // SAFETY: `info` outlives the call.
            let result =
                unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT) };
            if result == 0 {
                // SAFETY: waitid succeeded, so the pid field is set.
                self.reap(unsafe { info.si_pid() });
            } else if io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD) {
                // No children: sleep until the next fork.
                let mut children = self.lock();
                while children.generation == seen {
                    children = self.forked.wait(children).unwrap_or_else(PoisonError::into_inner);
                }
                seen = children.generation;
            }
        }
    }

    fn reap(&self, pid: i32) {
        let mut children = self.lock();
        let mut status = 0;
        // SAFETY: `status` outlives the call. With WNOHANG, because the zombie exists or was reaped
        // elsewhere.
        let reaped = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
        if reaped == pid
            && let Some(waiter) = children.waiting.remove(&pid)
        {
            if children.ended.len() >= REMEMBERED {
                children.ended.pop_front();
            }
            children.ended.push_back(pid);
            // Sending fails if nothing waits for the status any more.
            let _ = waiter.send(ExitStatus::from_raw(status));
        }
    }
}

/// Runs `work` with all signals blocked, because a signal handler of envd must not run in a child.
fn blocking_signals<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: both sets are initialised by the calls before they are read.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let result = work();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, because a reaper takes the children of any other one, too.
    #[tokio::test]
    async fn a_child_whose_program_does_not_begin_holds_nobody_up_and_no_pid_comes_again() {
        let reaper = Reaper::start().unwrap();
        let hangs = || loop {
            // SAFETY: pause has no memory effects.
            unsafe { libc::pause() };
        };
        // SAFETY: the child makes no other call.
        let (hung, status) = unsafe { reaper.fork(hangs) }.unwrap();
        // SAFETY: neither does this child.
        let (first, ended) = unsafe { reaper.fork(|| libc::_exit(7)) }.unwrap();
        assert_eq!(ended.await.unwrap().code(), Some(7));
        reaper.signal(hung, libc::SIGKILL);
        assert_eq!(status.await.unwrap().signal(), Some(libc::SIGKILL));
        assert!([first, hung].iter().all(|pid| reaper.lock().ended.contains(pid)), "forgotten");

        // As if the next ones had been given before.
        let before = first + 1..first + 200;
        reaper.lock().ended.extend(before.clone());
        // SAFETY: neither does this child.
        let (next, ended) = unsafe { reaper.fork(|| libc::_exit(8)) }.unwrap();
        assert_eq!(ended.await.unwrap().code(), Some(8));
        assert!(!before.contains(&next), "{next} came again");
        // One that gets such a pid is nobody's.
        assert!(reaper.lock().waiting.is_empty());
    }
}
