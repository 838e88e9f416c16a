// SPDX-License-Identifier: Apache-2.0
//! Helpers of several test modules.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_testkit::{Reply, Stack, test_guests, wait_until};

/// Returns the record of a sandbox in any status.
pub(crate) async fn record(stack: &Stack, id: &str) -> Option<Value> {
    let reply = stack.api.get(&format!("/v1/capsules/{id}")).await.ok()?;
    (reply.status == 200).then(|| reply.json())
}

/// Returns the metrics of the server, as Prometheus gets them.
pub(crate) async fn exported(stack: &Stack) -> Result<String> {
    Ok(String::from_utf8(stack.api.get("/metrics").await?.expect(200)?.bytes)?)
}

/// Returns how many processes (`process`) or whole sandboxes (`machine`) were killed for want of memory, by the metrics.
pub(crate) async fn killed(stack: &Stack, of: &str) -> Result<u64> {
    let series = format!("wrenn_out_of_memory_total{{of=\"{of}\"}} ");
    let exported = exported(stack).await?;
    let count = exported.lines().find_map(|line| line.strip_prefix(&series));
    // A counter is there once something was counted.
    Ok(count.map(str::parse::<u64>).transpose()?.unwrap_or_default())
}

/// Waits until a sandbox has one of `statuses` and returns its record.
pub(crate) async fn wait_status(stack: &Stack, id: &str, statuses: &[&str], limit: u64) -> Result<Value> {
    let mut last = Value::Null;
    let settled = async || {
        last = record(stack, id).await?;
        statuses.contains(&last["status"].as_str()?).then(|| last.clone())
    };
    let what = format!("sandbox {id} in one of {statuses:?}");
    let found = wait_until(&what, Duration::from_secs(limit), settled).await;
    found.with_context(|| format!("it is last seen as {last}"))
}

/// Waits until a sandbox runs commands.
pub(crate) async fn wait_exec(stack: &Stack, id: &str, limit: u64) -> Result<()> {
    let path = format!("/v1/sandboxes/{id}/exec");
    let mut last = String::new();
    let answers = async || {
        let reply = stack.api.post(&path, &json!({"cmd": "true"})).await.ok()?;
        last = String::from_utf8_lossy(&reply.bytes).into_owned();
        (reply.status == 200).then_some(())
    };
    let ran = wait_until(&format!("a command in {id}"), Duration::from_secs(limit), answers).await;
    ran.with_context(|| format!("the last answer was {last}"))
}

/// Time limit for an answer other than that the host, or the control plane, is not there now.
const PATIENCE: Duration = Duration::from_secs(60);

/// Repeats a request as long as the host or the control plane is not there.
pub(crate) async fn patiently(request: &impl AsyncFn() -> Result<Reply>) -> Result<Reply> {
    let answer = async || request().await.ok().filter(|reply| reply.status != 503);
    wait_until("an answer other than 503", PATIENCE, answer).await
}

/// Fills the disk of a guest until so many MiB are free.
pub(crate) async fn leave_free(stack: &Stack, id: &str, mib: u32) -> Result<()> {
    let script = format!("fallocate -l $(($(df -BM --output=avail / | tr -dc 0-9) - {mib}))M /var/filler");
    sh(stack, id, &script).await.map(drop)
}

/// Lists the ids of sandboxes.
pub(crate) async fn listed(stack: &Stack) -> Result<Vec<String>> {
    let list = stack.api.get("/v1/sandboxes?limit=100").await?.expect(200)?.json();
    let all = list.as_array().context("no list")?;
    Ok(all.iter().filter_map(|sandbox| sandbox["id"].as_str()).map(str::to_owned).collect())
}

/// Deletes a sandbox, waits until it is stopped, and fails if the agent has not removed everything.
pub(crate) async fn delete_wholly(stack: &Stack, id: &str) -> Result<()> {
    stack.api.remove(id).await?;
    wait_status(stack, id, &["stopped"], 40).await?;
    nothing_remains(stack, id).await
}

/// Waits until the agent has removed everything of a sandbox.
pub(crate) async fn nothing_remains(stack: &Stack, id: &str) -> Result<()> {
    let mut left = Vec::new();
    let gone = async || {
        left = stack.remains(id);
        left.is_empty().then_some(())
    };
    let clean = wait_until(&format!("nothing of {id}"), Duration::from_secs(20), gone).await;
    clean.with_context(|| format!("the agent still has {left:#?}"))
}

/// Seconds for a script: longer than any takes on a busy machine.
const SCRIPT_SEC: u64 = 180;

/// Runs a shell script as root; returns its trimmed output.
pub(crate) async fn sh(stack: &Stack, id: &str, script: &str) -> Result<String> {
    let body = json!({"cmd": "sh", "args": ["-c", script], "user": "root", "timeout_sec": SCRIPT_SEC});
    let exec = stack.api.request(Method::POST, &format!("/v1/sandboxes/{id}/exec")).json(&body);
    let exec = exec.timeout(Duration::from_secs(SCRIPT_SEC + 30));
    let ran = stack.api.send(exec).await?.expect(200)?.json();
    anyhow::ensure!(ran["exit_code"] == 0, "{script}: {ran}");
    Ok(ran["stdout"].as_str().unwrap_or_default().trim().to_owned())
}

/// Posts to a sandbox; returns the answer, which must be a success.
pub(crate) async fn post(stack: &Stack, id: &str, verb: &str, body: &Value) -> Result<Value> {
    Ok(stack.api.post(&format!("/v1/sandboxes/{id}/{verb}"), body).await?.expect(200)?.json())
}

/// Pauses a sandbox.
pub(crate) async fn pause(stack: &Stack, id: &str) -> Result<Value> {
    let paused = post(stack, id, "pause", &json!({})).await?;
    anyhow::ensure!(paused["status"] == "paused" && paused["error"].is_null(), "{paused}");
    Ok(paused)
}

/// Resumes a sandbox with its memory.
pub(crate) async fn resume(stack: &Stack, id: &str) -> Result<Value> {
    let resumed = post(stack, id, "resume", &json!({})).await?;
    anyhow::ensure!(resumed["status"] == "running", "{resumed}");
    Ok(resumed)
}

/// Starts a counter process in the sandbox and returns its process id.
pub(crate) async fn start_counter(stack: &Stack, id: &str) -> Result<String> {
    let script =
        "setsid sh -c 'while :; do date +%s%N > /tmp/beat; sleep 0.2; done' > /dev/null 2>&1 & echo $!";
    let ran = stack.api.exec(id, &["sh", "-c", script]).await?;
    Ok(ran["stdout"].as_str().unwrap_or_default().trim().to_owned())
}

/// Fails unless the counter is the same process and still runs.
pub(crate) async fn still_counts(stack: &Stack, id: &str, pid: &str) -> Result<()> {
    let alive = stack.api.exec(id, &["kill", "-0", pid]).await?;
    anyhow::ensure!(alive["exit_code"] == 0, "process {pid} is gone: {alive}");
    let beat = async || Some(stack.api.exec(id, &["cat", "/tmp/beat"]).await.ok()?["stdout"].clone());
    let first = beat().await;
    let later = async || beat().await.filter(|now| Some(now) != first.as_ref());
    wait_until("the counter counts", Duration::from_secs(20), later).await?;
    Ok(())
}

/// Resets a guest from inside and returns the sandbox's record.
pub(crate) async fn power_off(stack: &Stack, id: &str) -> Result<Value> {
    // Not every VMM has a power button.
    let script = "echo 1 > /proc/sys/kernel/sysrq; echo b > /proc/sysrq-trigger; sleep 60";
    let body = json!({"cmd": "sudo", "args": ["sh", "-c", script], "timeout_sec": 60});
    let exec = stack.api.request(Method::POST, &format!("/v1/sandboxes/{id}/exec")).json(&body);
    // The waiting request must be answered when the guest exits, not at the timeout.
    let reply =
        stack.api.send(exec.timeout(Duration::from_secs(15))).await.context("the guest ended meanwhile")?;
    reply.expect_error(409, "invalid_state")?;
    wait_status(stack, id, &["error"], 30).await
}

/// Runs a case with a Wrenn of its own whose sandboxes are test guests on the real Firecracker.
pub(crate) async fn with_test_guests(case: impl AsyncFnOnce(&Stack) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let stack = Stack::start_with(test_guests::setup(dir.path())?).await?;
    let result = case(&stack).await;
    end(stack, result).await
}

/// Stops a Wrenn after its case and returns the first error.
pub(crate) async fn end(stack: Stack, result: Result<()>) -> Result<()> {
    let result = result.map_err(|error| anyhow::anyhow!("{error:#}\n{}", stack.logs()));
    let stopped = stack.stop().await;
    result.and(stopped)
}
