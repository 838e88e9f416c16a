//! A process that ends when this one does, however that ends, and at the latest when its time is over.

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

/// How often its thread looks whether it has ended.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// A kept process; it is ended when this is dropped.
pub(super) struct Kept {
    pid: u32,
    deadline: Arc<Mutex<Instant>>,
    end: Arc<Mutex<Option<String>>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A command for [`Kept::start`]. It has a session of its own: a key pressed for what runs in the foreground is not
/// for it, and it may read from a terminal that a command hands to it.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "setsid", program]);
    command
}

impl Kept {
    /// Starts a command that [`command`] made; `on_end` runs when it has ended.
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
        // The kernel kills it when the thread that started it ends, so that thread must live as long as it
        // does: the caller's may be one of a pool.
        let thread = thread::Builder::new()
            .name("lab".into())
            .spawn(move || {
                let child = match command.spawn() {
                    Ok(child) => child,
                    Err(error) => return drop(started.send(Err(error))),
                };
                // What it inherits of ours is not kept open.
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

    /// Brings its deadline forward: it is killed when this much time is over.
    pub(super) fn end_within(&self, left: Duration) {
        let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        *deadline = (*deadline).min(Instant::now() + left);
    }

    /// Why it has ended, if it has.
    pub(super) fn ended(&self) -> Option<String> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it and waits for that.
    pub(super) fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic, and there would be nothing to do about it.
            drop(thread.join());
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("pid", &self.pid).field("ended", &self.ended()).finish_non_exhaustive()
    }
}

/// Waits for its end, for being told to stop, or for its time to be over.
fn watch(mut child: Child, stopped: &mpsc::Receiver<()>, deadline: &Mutex<Instant>) -> String {
    let begin = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return format!("has ended: {status}"),
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
