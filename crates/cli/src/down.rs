// SPDX-License-Identifier: Apache-2.0
//! `wrenn down`: stops the processes of `wrenn up`, also of one that has died.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;

use crate::{
    config::Config,
    layout::Layout,
    memory_limits,
    output::{Format, note},
    process::Record,
};

/// Time limit for `wrenn up` to stop its parts.
const UP_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for a part that lost its `wrenn up`; the kernel has already signalled it.
const PART_LIMIT: Duration = Duration::from_secs(15);
/// Names of the parts, in the order in which they are stopped.
pub(crate) const PARTS: &[&str] = &["server", "agent", "redis", "postgres"];

/// Runs `wrenn down`.
pub(crate) async fn run(config: &Config, format: Format) -> Result<u8> {
    let layout = Layout::new(&config.machine().state_dir);
    let running = Record::running(&layout.pid_file("up"))?;
    if layout.state().exists() {
        ensure!(rustix::process::geteuid().is_root(), "wrenn down needs root: run it with sudo");
    }
    if let Some(up) = &running {
        note("stopping ...");
        up.stop(Signal::TERM, UP_LIMIT).await.context("wrenn up does not stop")?;
        let _ = fs::remove_file(layout.pid_file("up"));
    }
    let mut left = 0;
    if layout.run().exists() {
        left = stop_leftovers(&layout).await?;
    }
    if layout.agent().exists() {
        cleanup(&layout).await?;
    }
    if layout.host_id_file().exists() {
        memory_limits::remove(&layout).await?;
    }
    let state = if running.is_some() || left > 0 { "stopped" } else { "nothing was running" };
    let value = json!({ "was_running": running.is_some(), "left_over_processes": left });
    format.print(&value, || format!("Wrenn: {state}."))?;
    Ok(0)
}

/// Stops the parts of a `wrenn up` that has died, and returns their number.
pub(crate) async fn stop_leftovers(layout: &Layout) -> Result<usize> {
    let mut count = 0;
    for &name in PARTS {
        let path = layout.pid_file(name);
        if let Some(record) = Record::running(&path)? {
            note(&format!("ending {name} (process {}) of a wrenn up that died", record.pid));
            let signal = if name == "postgres" { Signal::INT } else { Signal::TERM };
            record.stop(signal, PART_LIMIT).await?;
            count += 1;
        }
        let _ = fs::remove_file(path);
    }
    Ok(count)
}

/// Removes the agent's kernel resources; it must have ended.
pub(crate) async fn cleanup(layout: &Layout) -> Result<()> {
    let dir = layout.agent();
    let work = tokio::task::spawn_blocking(move || wrenn_host::cleanup(&dir));
    let done = work.await.context("the clean-up broke off")?;
    done.with_context(|| format!("cannot remove all that the agent made; see {}", layout.agent().display()))
}
