// SPDX-License-Identifier: Apache-2.0
//! Child process that is killed when this process exits for whatever reason, and when its time limit is over.

use std::{
    fmt,
    process::{Child, Command},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Interval between checks whether the process has exited.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// Child process; dropping it kills the process.
pub(super) struct ChildProcess {
    pid: u32,
    deadline: Arc<Mutex<Instant>>,
    end: Arc<Mutex<Option<String>>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Builds a command for [`ChildProcess::start`]. It runs in a session of its own, so that Ctrl-C in the
/// foreground does not reach it and it may read from a terminal that a command passes to it.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "setsid", program]);
    command
}

impl ChildProcess {
    /// Starts a command built by [`command`]; `on_end` runs after it has exited.
    pub(super) fn start(
        mut command: Command,
        limit: Duration,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let deadline = Arc::new(Mutex::new(Instant::now() + limit));
        let until = deadline.clone();
        let end = Arc::new(Mutex::new(None));
        let ended = end.clone();
        let (stop, stopped) = mpsc::channel();
        let (started, pid) = mpsc::channel();
        // The kernel kills the process when the thread that started it exits (PDEATHSIG), so that thread must
        // live as long as the process. The caller's thread may belong to a pool.
        let thread = thread::Builder::new()
            .name("lab".into())
            .spawn(move || {
                let child = match command.spawn() {
                    Ok(child) => child,
                    Err(error) => return drop(started.send(Err(error))),
                };
                // Close this process's copies of the file descriptors that the child inherits.
                drop(command);
                drop(started.send(Ok(child.id())));
                let why = watch(child, &stopped, &until);
                *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                on_end();
            })
            .context("no thread for a process of the lab")?;
        let pid = pid
            .recv()
            .context("the thread of a process of the lab has ended")?
            .context("cannot run setpriv: install util-linux")?;
        Ok(Self { pid, deadline, end, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Moves the deadline forward: the process is killed after `left`.
    pub(super) fn end_within(&self, left: Duration) {
        let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        *deadline = (*deadline).min(Instant::now() + left);
    }

    /// Returns why the process has exited, or `None` while it runs.
    pub(super) fn ended(&self) -> Option<String> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Kills the process and waits for its exit.
    pub(super) fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread has no code that panics, and nothing could be done about a panic.
            drop(thread.join());
        }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for ChildProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildProcess")
            .field("pid", &self.pid)
            .field("ended", &self.ended())
            .finish_non_exhaustive()
    }
}

/// Waits until the process exits, a stop is requested or the time limit is over; returns the reason.
fn watch(mut child: Child, stopped: &mpsc::Receiver<()>, deadline: &Mutex<Instant>) -> String {
    let begin = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return format!("has exited: {status}"),
            Ok(None) => {}
            Err(error) => return format!("cannot be waited for: {error}"),
        }
        let ended = stopped.recv_timeout(LOOK);
        let until = *deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let why = match ended {
            _ if Instant::now() > until => {
                format!("was killed: its time limit was over after {:.0?}", begin.elapsed())
            }
            Err(RecvTimeoutError::Timeout) => continue,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => "was stopped".to_owned(),
        };
        drop(child.kill());
        drop(child.wait());
        return why;
    }
}
