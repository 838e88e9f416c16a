// SPDX-License-Identifier: Apache-2.0
//! Memory of the agent per idle sandbox.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use rustix::process::Pid;
use serde_json::json;
use wrenn_testkit::Stack;

use crate::row::Row;

/// Sandboxes before the first measurement, so that one-time allocations are not counted.
const FIRST: usize = 2;
/// Sandboxes created between the two measurements.
const MORE: usize = 16;
/// Pause after the last create, in which background work ends.
const SETTLE: Duration = Duration::from_secs(3);

/// Resident memory of a process in KiB.
fn resident(pid: Pid) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in status")?;
    let number = line.split_whitespace().next().and_then(|text| text.parse().ok());
    number.with_context(|| format!("VmRSS is {line:?}"))
}

async fn create(stack: &Stack, count: usize) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(stack.api.create(&json!({ "memory_mb": 128 })).await?);
    }
    tokio::time::sleep(SETTLE).await;
    Ok(ids)
}

async fn remove(stack: &Stack, ids: &[String]) -> Result<()> {
    for id in ids {
        stack.api.remove(id).await?;
    }
    Ok(())
}

/// Compares the agent's memory with few and with many sandboxes.
pub(crate) async fn agent_memory(stack: &Stack) -> Result<Row> {
    let agent = stack.child("agent")?;
    remove(stack, &create(stack, FIRST).await?).await?;
    let first = create(stack, FIRST).await?;
    let before = resident(agent)?;
    let more = create(stack, MORE).await?;
    let after = resident(agent)?;
    remove(stack, &[first, more].concat()).await?;
    let each = (after - before) / MORE as f64;
    let what = "agent's resident memory for an idle sandbox (KiB)";
    Ok(Row::figure(what, "KiB", each, MORE, 300.0))
}
