// SPDX-License-Identifier: Apache-2.0
//! Supervision of one running process: its output is moved into the log, its deadline kept, its exit recorded.

use std::{
    os::fd::OwnedFd,
    process::ExitStatus,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::unix::AsyncFd,
    sync::{oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    drains::Drains,
    ending::describe,
    handle::Process,
    output::{CHUNK, Channel, Chunk, End, Log},
    pipes::{read, read_now},
};
use crate::out_of_memory::Kills;

/// Time that output is awaited after a process has exited while a descendant has its pipes open.
const GRACE: Duration = Duration::from_millis(200);

/// Time between the hangup of an idle terminal and the kill of what ignores it.
const HANGUP: Duration = Duration::from_secs(5);

/// A pipe that is read this often without a pause between two reads is busy. It is then left for [`FILL`] before each read to
/// fill, because every read costs as much as the chunk that it becomes: programs write 4 or 8 KiB at a time.
const BUSY: u32 = 8;
const FILL: Duration = Duration::from_millis(1);
/// Time between two reads that is no pause; [`FILL`] is rounded up to a tick of the runtime's clock.
const PAUSE: Duration = Duration::from_millis(5);

/// When a process is ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Time at which it is killed.
    pub(crate) deadline: Option<std::time::Instant>,
    /// Time after which its terminal hangs up if no client reads it, and nothing is written to or by it.
    pub(crate) idle: Option<Duration>,
}

/// State of a process's supervisor.
pub(super) struct Following {
    pub(super) process: Arc<Process>,
    pub(super) status: oneshot::Receiver<ExitStatus>,
    pub(super) limits: Limits,
    /// Tasks that move its output.
    pub(super) pumps: JoinSet<()>,
    /// Tells the pumps and writers of its exit.
    pub(super) ended: watch::Sender<bool>,
    /// What the kernel kills for want of memory.
    pub(super) kills: Arc<Kills>,
}

impl Following {
    /// Waits for the exit of the process, which it ends at its limits, and records it after the last output.
    pub(super) async fn follow(self) {
        let Self { process, mut status, limits, mut pumps, ended, kills } = self;
        let expiry = async {
            match limits.deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let idle = async {
            match limits.idle {
                Some(limit) => process.log.idle(limit).await,
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            result = &mut status => result,
            () = expiry => {
                process.time_out();
                status.await
            }
            () = idle => tokio::select! {
                result = &mut status => result,
                () = hang_up(&process) => status.await,
            },
        };
        ended.send_replace(true);
        process.input.close();
        while pumps.join_next().await.is_some() {}
        let timed_out = process.timed_out.load(Ordering::Relaxed);
        let out_of_memory = process.ran_out_of_memory();
        let victim = if out_of_memory { process.victim(&kills).await } else { None };
        process.log.finish(End { out_of_memory, victim, ..describe(result.ok(), timed_out) });
        process.terminal.lock().unwrap_or_else(PoisonError::into_inner).take();
        process.leave_cgroup();
        process.log.retire();
    }
}

/// Ends what runs in a terminal as when a modem line is cut; shells pass the signal on to their jobs and exit.
async fn hang_up(process: &Arc<Process>) {
    for (signal, wait) in [(libc::SIGHUP, HANGUP), (libc::SIGKILL, Duration::ZERO)] {
        let signalled = Arc::clone(process);
        let _ = tokio::task::spawn_blocking(move || signalled.signal(signal)).await;
        tokio::time::sleep(wait).await;
    }
}

/// Moves output into the log until end of file, or until [`GRACE`] after the exit.
pub(super) async fn pump(
    drains: Arc<Drains>,
    channel: Channel,
    fd: AsyncFd<OwnedFd>,
    log: Arc<Log>,
    mut ended: watch::Receiver<bool>,
) {
    let mut until: Option<Instant> = None;
    let (mut last, mut reads) = (Instant::now(), 0);
    loop {
        let grace = async {
            if until.is_none() {
                // An error means that the supervisor is gone, which is also an exit.
                let _ = ended.wait_for(|e| *e).await;
                until = Some(Instant::now() + GRACE);
            }
            tokio::time::sleep_until(until.unwrap_or_else(Instant::now)).await;
        };
        tokio::select! {
            // Read first: the grace period is only for silence.
            biased;
            read = read(&fd) => match read {
                Ok(data) if !data.is_empty() => {
                    let full = data.len() == CHUNK;
                    log.append(Chunk { channel, data }).await;
                    reads = if last.elapsed() < PAUSE { reads + 1 } else { 0 };
                    // A terminal holds no more than a page.
                    if reads > BUSY && !full && channel != Channel::Pty {
                        tokio::time::sleep(FILL).await;
                    }
                    last = Instant::now();
                }
                _ => return,
            },
            () = grace => break,
        }
        if until.is_some_and(|at| Instant::now() > at) {
            // A descendant that never stops writing must not delay the exit either.
            break;
        }
    }
    // The runtime may not have noticed yet what is there.
    drain(channel, &fd, &log).await;
    // A descendant still has the pipe open: drain it, so that SIGPIPE does not kill the descendant.
    drains.add(fd);
}

/// Reads what is available, at most the capacity of the largest pipe.
async fn drain(channel: Channel, fd: &AsyncFd<OwnedFd>, log: &Log) {
    let mut left: usize = 1 << 20;
    while left > 0 {
        let Ok(data) = read_now(fd.get_ref()) else { return };
        if data.is_empty() {
            return;
        }
        left = left.saturating_sub(data.len());
        log.append(Chunk { channel, data }).await;
    }
}
