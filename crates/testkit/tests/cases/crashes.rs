//! Parts of Wrenn are killed without warning; sandboxes go on.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use wrenn_testkit::{Stack, wait_until};

/// Starts a counter in the sandbox and gives its process id.
async fn start_counter(stack: &Stack, id: &str) -> Result<String> {
    let script =
        "setsid sh -c 'while :; do date +%s%N > /tmp/beat; sleep 0.2; done' > /dev/null 2>&1 & echo $!";
    let ran = stack.api.exec(id, &["sh", "-c", script]).await?;
    Ok(ran["stdout"].as_str().unwrap_or_default().trim().to_owned())
}

/// The counter is the same process, and still counts.
async fn still_counts(stack: &Stack, id: &str, pid: &str) -> Result<()> {
    let alive = stack.api.exec(id, &["kill", "-0", pid]).await?;
    anyhow::ensure!(alive["exit_code"] == 0, "process {pid} is gone: {alive}");
    let beat = async || Some(stack.api.exec(id, &["cat", "/tmp/beat"]).await.ok()?["stdout"].clone());
    let first = beat().await;
    let later = async || beat().await.filter(|now| Some(now) != first.as_ref());
    wait_until("the counter counts", Duration::from_secs(20), later).await?;
    Ok(())
}

/// The agent dies and comes back: it adopts what runs.
pub(crate) async fn the_agent(stack: &Stack) -> Result<()> {
    let kept = stack.api.create(&json!({})).await?;
    let pid = start_counter(stack, &kept).await?;
    stack.kill_and_wait("agent").await?;
    let path = format!("/v1/sandboxes/{kept}/exec");
    let answers = async || {
        let reply = stack.api.post(&path, &json!({"cmd": "true"})).await.ok()?;
        (reply.status == 200).then_some(())
    };
    wait_until("exec in the adopted sandbox", Duration::from_secs(30), answers).await?;
    still_counts(stack, &kept, &pid).await?;
    let status = stack.api.get(&format!("/v1/sandboxes/{kept}")).await?.json();
    anyhow::ensure!(status["status"] == "running", "{status}");
    stack.api.remove(&kept).await?;
    Ok(())
}

/// The control plane dies and comes back: nothing happened to the sandboxes.
pub(crate) async fn the_control_plane(stack: &Stack) -> Result<()> {
    let kept = stack.api.create(&json!({})).await?;
    let pid = start_counter(stack, &kept).await?;
    stack.kill_and_wait("server").await?;
    still_counts(stack, &kept, &pid).await?;
    stack.api.remove(&kept).await?;
    Ok(())
}
