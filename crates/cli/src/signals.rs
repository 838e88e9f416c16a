// SPDX-License-Identifier: Apache-2.0
//! Signals that stop this program, and those by which `wrenn up` is told what becomes of its sandboxes.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Listener for SIGINT, SIGTERM and SIGHUP; these no longer end the program by themselves.
#[derive(Debug)]
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// Exit status of a program ended by the signal of this name.
pub(crate) fn exit_status(name: &str) -> u8 {
    match name {
        "SIGINT" => 130,
        "SIGTERM" => 143,
        _ => 129,
    }
}

impl Stop {
    pub(crate) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal and returns its name.
    pub(crate) async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }

    /// Returns a token that the first signal cancels.
    pub(crate) fn token(mut self) -> CancellationToken {
        let token = CancellationToken::new();
        let cancel = token.clone();
        tokio::spawn(async move {
            let name = self.received().await;
            tracing::info!("{name}: stopping");
            cancel.cancel();
        });
        token
    }
}

/// What becomes of the sandboxes when `wrenn up` ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// They are paused.
    Pause,
    /// They are removed.
    Destroy,
    /// They run on for the next `wrenn up`.
    Leave,
}

impl Ending {
    /// Signal that asks `wrenn up` for this ending.
    pub(crate) fn signal(self) -> rustix::process::Signal {
        match self {
            Self::Pause => rustix::process::Signal::TERM,
            Self::Destroy => rustix::process::Signal::USR1,
            Self::Leave => rustix::process::Signal::USR2,
        }
    }
}

/// Listener for the signals that end `wrenn up`.
#[derive(Debug)]
pub(crate) struct UpStop {
    stop: Stop,
    destroy: Signal,
    leave: Signal,
}

impl UpStop {
    pub(crate) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            stop: Stop::new()?,
            destroy: listen(SignalKind::user_defined1())?,
            leave: listen(SignalKind::user_defined2())?,
        })
    }

    /// Waits for a signal and returns its name and the ending that it asks for.
    pub(crate) async fn received(&mut self) -> (&'static str, Ending) {
        tokio::select! {
            name = self.stop.received() => (name, Ending::Pause),
            _ = self.destroy.recv() => ("SIGUSR1", Ending::Destroy),
            _ = self.leave.recv() => ("SIGUSR2", Ending::Leave),
        }
    }
}
