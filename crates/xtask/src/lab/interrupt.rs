// SPDX-License-Identifier: Apache-2.0
//! Ctrl-C handling: the foreground command gets the signal, and this process survives to stop the lab.

use std::thread;

use anyhow::{Context as _, Result};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

/// Installs a handler so that Ctrl-C does not end this process.
pub(super) fn outlive() -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().context("no runtime for signals")?;
    // `signal` installs the handler before it returns.
    let guard = runtime.enter();
    let mut signals = signal(SignalKind::interrupt()).context("no handler for Ctrl-C")?;
    drop(guard);
    thread::Builder::new()
        .name("ctrl-c".into())
        .spawn(move || runtime.block_on(async { while signals.recv().await.is_some() {} }))
        .context("no thread for signals")?;
    Ok(())
}
