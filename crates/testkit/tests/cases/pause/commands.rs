// SPDX-License-Identifier: Apache-2.0
//! Commands in work when their sandbox is paused: their callers are told, and they go on.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::task::JoinHandle;
use wrenn_testkit::{Reply, Stack, in_lab, short_or_long, wait_until};

use super::{COUNTER, small};
use crate::cases::support::{delete_wholly, pause, resume, sh, still_counts};

/// Writes more than what envd keeps of a command's output, and the time into a file.
const TALKS: &str = "echo $$ > /tmp/talks; while :; do
        head -c 100000 /dev/zero | tr '\\0' x; date +%s%N > /tmp/beat; sleep 0.05
    done";

/// Waits for a number that a command writes into a file.
pub(super) async fn number(stack: &Stack, id: &str, path: &str) -> Result<String> {
    let written = async || sh(stack, id, &format!("cat {path}")).await.ok().filter(|text| !text.is_empty());
    wait_until(path, Duration::from_secs(20), written).await
}

/// Starts a command that writes all the time; returns its caller. Its process id is in `/tmp/talks`.
pub(super) fn talk(stack: &Arc<Stack>, id: &str) -> JoinHandle<Result<Reply>> {
    let path = format!("/v1/sandboxes/{id}/exec");
    let body = json!({"cmd": "sh", "args": ["-c", TALKS], "timeout_sec": 600});
    let stack = stack.clone();
    tokio::spawn(async move { stack.api.post(&path, &body).await })
}

/// A command whose caller waits for its end goes on after a resume and in a clone; its caller is told of the pause.
pub(crate) async fn commands_in_work_go_on(stack: Arc<Stack>) -> Result<()> {
    let id = small(&stack).await?;
    let caller = talk(&stack, &id);
    let pid = number(&stack, &id, "/tmp/talks").await?;
    let snapshot = json!({"sandbox_id": id, "name": "at-work"});
    stack.api.post("/v1/snapshots", &snapshot).await?.expect(201)?;
    ensure!(!caller.is_finished(), "a snapshot has ended the command");
    pause(&stack, &id).await?;
    let told =
        tokio::time::timeout(Duration::from_secs(5), caller).await.context("the caller waits")???;
    told.expect_error(409, "invalid_state")?;
    resume(&stack, &id).await?;
    still_counts(&stack, &id, &pid).await?;
    let clone = stack.api.create(&json!({"template": "at-work"})).await?;
    still_counts(&stack, &clone, &pid).await?;
    // For longer than unread output could hold it up.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for id in [&id, &clone] {
        still_counts(&stack, id, &pid).await?;
        delete_wholly(&stack, id).await?;
    }
    stack.api.delete("/v1/snapshots/at-work").await?.expect(204).map(drop)
}

/// A resume that comes while the pause is in work is done after it, in several sandboxes at a time.
pub(crate) async fn a_resume_during_a_pause_is_done(stack: Arc<Stack>) -> Result<()> {
    let all = (0..short_or_long(2, 8)).map(|_| paused_and_resumed(&stack, short_or_long(2, 25)));
    futures::future::try_join_all(all).await.map(drop)
}

/// Pauses and resumes a sandbox so many times, each resume amid its pause.
async fn paused_and_resumed(stack: &Stack, rounds: usize) -> Result<()> {
    let id = small(stack).await?;
    let pid = sh(stack, &id, COUNTER).await?;
    for round in 0..rounds {
        let (paused, resumed) = tokio::join!(pause(stack, &id), async {
            let path = format!("/v1/sandboxes/{id}");
            let begun = async || {
                let status = stack.api.get(&path).await.ok()?.json()["status"].clone();
                (status == "pausing" || status == "paused").then_some(())
            };
            wait_until("the pause", Duration::from_secs(20), begun).await?;
            resume(stack, &id).await
        });
        paused.and(resumed).with_context(|| format!("in round {round}"))?;
        let now = sh(stack, &id, "kill -0 $(cat /tmp/pid) && cat /tmp/pid").await?;
        ensure!(now == pid, "the process is {now} in round {round}, and was {pid}");
    }
    delete_wholly(stack, &id).await
}

/// A guest has the right time after a pause, whatever it had before, and its own clock does not go back.
pub(crate) async fn a_wrong_clock_is_right_after_a_pause(stack: Arc<Stack>) -> Result<()> {
    let id = small(&stack).await?;
    let monotonic = "python3 -c 'import time; print(time.monotonic_ns())'";
    let before: u64 =
        sh(&stack, &id, &format!("date -s '-1 hour' > /dev/null; {monotonic}")).await?.parse()?;
    pause(&stack, &id).await?;
    resume(&stack, &id).await?;
    super::clock_is_right(&stack, &id).await?;
    let after: u64 = sh(&stack, &id, monotonic).await?.parse()?;
    ensure!(after > before, "the monotonic clock was at {before} ns, and is at {after} ns");
    // Not the time of the pause, which was not a part of the guest's life.
    ensure!(in_lab() || after - before < 120_000_000_000, "it went from {before} to {after} ns");
    delete_wholly(&stack, &id).await
}
