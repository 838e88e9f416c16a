// SPDX-License-Identifier: Apache-2.0
//! Processes of Wrenn are killed with SIGKILL; sandboxes keep running.

mod dice;
mod model;
mod sequence;

use std::{fs, sync::Arc, time::Duration};

use anyhow::Result;
use serde_json::json;
use wrenn_testkit::{Frozen, Stack, wait_until};

pub(crate) use self::sequence::operations_in_any_order;
use super::support::{delete_wholly, nothing_remains, pause, start_counter, still_counts};

/// The agent is killed and restarted: it adopts the running sandbox.
pub(crate) async fn the_agent(stack: Arc<Stack>) -> Result<()> {
    let kept = stack.api.create(&json!({})).await?;
    let pid = start_counter(&stack, &kept).await?;
    let path = format!("/v1/sandboxes/{kept}/exec");
    for _ in 0..3 {
        let old = stack.child("agent")?;
        rustix::process::kill_process(old, rustix::process::Signal::KILL)?;
        // The sandbox runs all the time: nothing but the agent's absence is a reason to refuse a command.
        let mut refused = None;
        let answers = async || {
            let reply = stack.api.post(&path, &json!({"cmd": "true"})).await.ok()?;
            if reply.status != 200 && reply.status != 503 {
                refused = Some(String::from_utf8_lossy(&reply.bytes).into_owned());
            }
            (reply.status == 200).then_some(())
        };
        wait_until("exec in the adopted sandbox", Duration::from_secs(30), answers).await?;
        anyhow::ensure!(refused.is_none(), "{refused:?}");
        stack.restarted("agent", old).await?;
    }
    still_counts(&stack, &kept, &pid).await?;
    let status = stack.api.get(&format!("/v1/sandboxes/{kept}")).await?.json();
    anyhow::ensure!(status["status"] == "running", "{status}");
    stack.api.remove(&kept).await?;
    Ok(())
}

/// The control plane is killed and restarted: the sandbox is not affected.
pub(crate) async fn the_control_plane(stack: Arc<Stack>) -> Result<()> {
    let kept = stack.api.create(&json!({})).await?;
    let pid = start_counter(&stack, &kept).await?;
    stack.kill_and_wait("server").await?;
    still_counts(&stack, &kept, &pid).await?;
    stack.api.remove(&kept).await?;
    Ok(())
}

/// A snapshot that its host completes after the control plane was killed, and has given it up, is not left there.
pub(crate) async fn a_snapshot_that_is_given_up_leaves_nothing(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    // The host waits for the microVM meanwhile.
    let frozen = Frozen::new(stack.vmm(&id)?)?;
    let (api, body) = (stack.api.clone(), json!({"sandbox_id": id, "name": "given-up"}));
    let asked = tokio::spawn(async move { api.post("/v1/snapshots", &body).await });
    let is_there = async |there: bool| {
        let count = stack.sql("SELECT count(*) FROM snapshots").ok()?;
        (there == (count != "0")).then_some(())
    };
    wait_until("the snapshot to be marked", Duration::from_secs(10), async || is_there(true).await).await?;
    stack.kill_and_wait("server").await?;
    drop(asked.await);
    // It may also be given up only when the host has ended it.
    drop(wait_until("the end of its lease", Duration::from_secs(15), async || is_there(false).await).await);
    drop(frozen);
    // A pause begins when the snapshot has ended.
    pause(&stack, &id).await?;
    wait_until("the end of the snapshot", Duration::from_secs(60), async || is_there(false).await).await?;
    nothing_remains(&stack, "snapshot.").await?;
    let records = fs::read_dir(stack.state_dir.join("agent/named_snapshots"))?.count();
    anyhow::ensure!(records == 0, "{records} records of snapshots are left");
    delete_wholly(&stack, &id).await
}
