// SPDX-License-Identifier: Apache-2.0
//! Processes of Wrenn are killed with SIGKILL; sandboxes keep running.

mod dice;
mod model;
mod sequence;

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use serde_json::json;
use wrenn_testkit::{Stack, wait_until};

pub(crate) use self::sequence::operations_in_any_order;
use super::support::{start_counter, still_counts};

/// The agent is killed and restarted: it adopts the running sandbox.
pub(crate) async fn the_agent(stack: Arc<Stack>) -> Result<()> {
    let kept = stack.api.create(&json!({})).await?;
    let pid = start_counter(&stack, &kept).await?;
    stack.kill_and_wait("agent").await?;
    let path = format!("/v1/sandboxes/{kept}/exec");
    let answers = async || {
        let reply = stack.api.post(&path, &json!({"cmd": "true"})).await.ok()?;
        (reply.status == 200).then_some(())
    };
    wait_until("exec in the adopted sandbox", Duration::from_secs(30), answers).await?;
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
