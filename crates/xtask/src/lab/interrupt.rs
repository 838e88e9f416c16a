//! Ctrl-C: it reaches what runs in the foreground, and this process goes on to stop the lab.

use std::thread;

use anyhow::{Context as _, Result};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

/// Has Ctrl-C no longer end this process.
pub(super) fn outlive() -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().context("no runtime for signals")?;
    // The handler is in place when this returns.
    let guard = runtime.enter();
    let mut signals = signal(SignalKind::interrupt()).context("no handler for Ctrl-C")?;
    drop(guard);
    thread::Builder::new()
        .name("ctrl-c".into())
        .spawn(move || runtime.block_on(async { while signals.recv().await.is_some() {} }))
        .context("no thread for signals")?;
    Ok(())
}
