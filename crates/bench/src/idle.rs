// SPDX-License-Identifier: Apache-2.0
//! What idle sandboxes cost the agent: memory and processor time.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use rustix::process::Pid;
use serde_json::json;
use wrenn_testkit::{Stack, processor_time};

use crate::row::Row;

/// Sandboxes before the first measurement, so that one-time allocations are not counted.
const FIRST: usize = 2;
/// Sandboxes created between the two measurements.
const MORE: usize = 16;
/// Pause after the last create, in which background work ends.
const SETTLE: Duration = Duration::from_secs(3);
/// How long the agent's processor time is watched: it is known in hundredths of a second.
const WATCHED: Duration = Duration::from_secs(60);
/// Number of sandboxes for which the goal of the processor time is.
const OF: f64 = 100.0;

/// Resident memory of a process in KiB.
pub(crate) fn resident(pid: Pid) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in status")?;
    let number = line.split_whitespace().next().and_then(|text| text.parse().ok());
    number.with_context(|| format!("VmRSS is {line:?}"))
}

/// Part of one processor that a process uses.
async fn share(pid: Pid) -> Result<f64> {
    let before = processor_time(pid)?;
    tokio::time::sleep(WATCHED).await;
    let used = processor_time(pid)?.saturating_sub(before);
    Ok(used.as_secs_f64() / WATCHED.as_secs_f64())
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

/// Compares the agent with few and with many sandboxes.
pub(crate) async fn agent(stack: &Stack) -> Result<Vec<Row>> {
    let agent = stack.child("agent")?;
    remove(stack, &create(stack, FIRST).await?).await?;
    let first = create(stack, FIRST).await?;
    let (before, share_before) = (resident(agent)?, share(agent).await?);
    let more = create(stack, MORE).await?;
    let (after, share_after) = (resident(agent)?, share(agent).await?);
    remove(stack, &[first, more].concat()).await?;
    let each = (after - before) / MORE as f64;
    // All that it does for one counts, not only the sampler.
    let of_many = (share_after - share_before) / MORE as f64 * OF * 100.0;
    let memory = "agent's resident memory for an idle sandbox (KiB)";
    let sampling = "agent's processor time for 100 idle sandboxes, sampling included (% of one core)";
    Ok(vec![Row::figure(memory, "KiB", each, MORE, 300.0), Row::figure(sampling, "%", of_many, MORE, 2.0)])
}
