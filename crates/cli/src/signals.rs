// SPDX-License-Identifier: Apache-2.0
//! Signals that stop this program.

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
