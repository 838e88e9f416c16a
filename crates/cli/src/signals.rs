//! Signals that ask this program to end.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Listens for SIGINT, SIGTERM and SIGHUP; from then on they do not end the program by themselves.
#[derive(Debug)]
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// The exit status of a program that was ended by the signal of this name.
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

    /// Waits for one and gives its name.
    pub(crate) async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }

    /// A token that is cancelled by the first signal.
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
