//! Collects every ended child, orphans included, and hands the status of our own children to who waits.
//!
//! One thread waits with WNOWAIT (the zombie stays), takes the lock and only then reaps. Children are
//! spawned and signalled under the same lock, so a status is never lost before its pid is registered and a
//! signal never reaches a reused pid.

use std::{
    collections::HashMap,
    io,
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitStatus},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use tokio::sync::oneshot;

/// The children of this process.
pub(crate) struct Reaper {
    children: Mutex<Children>,
    spawned: Condvar,
}

#[derive(Default)]
struct Children {
    waiting: HashMap<i32, oneshot::Sender<ExitStatus>>,
    generation: u64,
}

impl Reaper {
    /// Starts the reaper's thread.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self { children: Mutex::default(), spawned: Condvar::new() });
        let shared = Arc::clone(&reaper);
        thread::Builder::new().name("reaper".into()).stack_size(128 << 10).spawn(move || shared.run())?;
        Ok(reaper)
    }

    /// Starts a child; the receiver gets its status. Blocks until the child has executed its program.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<(i32, oneshot::Receiver<ExitStatus>)> {
        let mut children = self.lock();
        // The handle is dropped without a wait: the reaper's thread does that.
        #[allow(clippy::zombie_processes)]
        let pid = command.spawn()?.id() as i32;
        let (tx, rx) = oneshot::channel();
        children.waiting.insert(pid, tx);
        children.generation += 1;
        self.spawned.notify_all();
        Ok((pid, rx))
    }

    /// Signals the process group that a child leads; false when the child has ended.
    pub(crate) fn signal_group(&self, pid: i32, signal: i32) -> bool {
        let children = self.lock();
        // SAFETY: kill has no memory effects; pid is a child that is not reaped, so it names its group.
        children.waiting.contains_key(&pid) && unsafe { libc::kill(-pid, signal) } == 0
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
                // Nobody to wait for: sleep until something is spawned.
                let mut children = self.lock();
                while children.generation == seen {
                    children = self.spawned.wait(children).unwrap_or_else(PoisonError::into_inner);
                }
                seen = children.generation;
            }
        }
    }

    fn reap(&self, pid: i32) {
        let mut children = self.lock();
        let mut status = 0;
        // SAFETY: `status` outlives the call. WNOHANG: a spawn that failed may have collected it already.
        let reaped = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
        if reaped == pid
            && let Some(waiter) = children.waiting.remove(&pid)
        {
            // Nobody may be waiting any more; that is fine.
            let _ = waiter.send(ExitStatus::from_raw(status));
        }
    }
}
