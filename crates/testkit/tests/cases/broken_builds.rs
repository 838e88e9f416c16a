// SPDX-License-Identifier: Apache-2.0
//! Builds in which something goes wrong: steps that misbehave in their guest, and stores of the control plane that go away.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wrenn_testkit::{Stack, short_or_long, wait_until};

use super::{builds::stdout, support::delete_wholly};

const PATH: &str = "/v1/templates/builds";
/// Time limit for a step to begin, or a build to end.
const SOON: Duration = Duration::from_secs(180);
/// The same for one that prints much.
const PRINTED: Duration = Duration::from_secs(1800);
/// What it prints, again and again.
const LINE: &str = "0123456789abcdef";

/// Asks for a build, and returns its path.
async fn ask(stack: &Stack, name: &str, recipe: &str) -> Result<String> {
    let body = json!({"name": name, "recipe": recipe, "memory_mb": 256, "disk_size_mb": 1024});
    let build = stack.api.post(PATH, &body).await?.expect(201)?.json();
    Ok(format!("{PATH}/{}", build["id"].as_str().context("no id")?))
}

/// Waits until a build is as it should be, and returns it.
async fn wait(stack: &Stack, path: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_within(SOON, stack, path, what, is).await
}

/// The same with another time limit.
async fn wait_within(
    limit: Duration,
    stack: &Stack,
    path: &str,
    what: &str,
    is: impl Fn(&Value) -> bool,
) -> Result<Value> {
    // A server that restarts does not answer.
    let found = async || {
        let reply = stack.api.get(path).await.ok()?;
        (reply.status == 200).then(|| reply.json()).filter(&is)
    };
    wait_until(&format!("{path}: {what}"), limit, found).await
}

/// Whether a build has ended.
fn has_ended(build: &Value) -> bool {
    !matches!(build["status"].as_str(), Some("pending" | "running"))
}

/// Builds what fails, removes its sandbox, and returns the build.
pub(crate) async fn failed(stack: &Stack, name: &str, recipe: &str) -> Result<Value> {
    let path = ask(stack, name, recipe).await?;
    let build = wait(stack, &path, "its end", has_ended).await?;
    ensure!(build["status"] == "failed" && build["version"].is_null(), "{recipe}: {build}");
    delete_wholly(stack, build["sandbox_id"].as_str().context("no sandbox")?).await?;
    Ok(build)
}

/// A step that fills the disk, one that makes tasks without end, one that hangs, and one that ends its guest fail with what they did,
/// and no other build notices.
pub(crate) async fn steps_that_misbehave_are_told(stack: Arc<Stack>) -> Result<()> {
    let fills = "FROM minimal\nRUN n=0; while fallocate -l 64M /full$n; do n=$((n+1)); done; \
        dd if=/dev/zero of=/rest bs=1M; exit 28\n";
    let build = failed(&stack, "e2e-fills", fills).await?;
    ensure!(build["error"]["code"] == "build_failed" && build["steps"][1]["exit_code"] == 28, "{build}");

    let forks = "FROM minimal\nRUN --timeout=8s bomb() { bomb | bomb & }; bomb; sleep 1000\n";
    let build = failed(&stack, "e2e-forks", forks).await?;
    ensure!(build["error"]["step"] == 2 && build["steps"][1]["status"] == "failed", "{build}");

    // The limit is also for the beginning of the command.
    let hangs = "FROM minimal\nRUN --timeout=30s echo begun; sleep 1000\n";
    let build = failed(&stack, "e2e-hangs", hangs).await?;
    let message = build["error"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("step 2 (line 2) did not end within 30 s"), "{build}");
    ensure!(message.contains("--timeout") && build["error"]["code"] == "build_failed", "{build}");

    // As a reset, with which envd ends, too.
    let ends = "FROM minimal\n\
        RUN --timeout=60s echo 1 > /proc/sys/kernel/sysrq; echo b > /proc/sysrq-trigger; sleep 1000\n";
    let path = ask(&stack, "e2e-ends", ends).await?;
    let build = wait(&stack, &path, "its end", has_ended).await?;
    ensure!(build["status"] == "failed" && build["error"]["step"] == 2, "{build}");
    let message = build["error"]["message"].as_str().unwrap_or_default();
    ensure!(!message.contains("--timeout"), "its guest did not end: {build}");
    if let Some(sandbox) = build["sandbox_id"].as_str() {
        delete_wholly(&stack, sandbox).await?;
    }

    let path = ask(&stack, "e2e-fine", "FROM minimal\nRUN true\n").await?;
    let build = wait(&stack, &path, "its end", has_ended).await?;
    ensure!(build["status"] == "succeeded", "{build}");
    stack.api.delete("/v1/templates/e2e-fine").await?.expect(204).map(drop)
}

/// A step that prints far more than is kept goes on to its end; the log has the beginning, and says once that there is more.
pub(crate) async fn what_is_printed_without_bound_is_cut(stack: Arc<Stack>) -> Result<()> {
    let mib = short_or_long(64, 1024);
    let recipe = format!(
        "FROM minimal\nRUN --timeout=25m yes {LINE} | head -c {mib}M; echo end > /end\nRUN cat /end\n"
    );
    let path = ask(&stack, "e2e-prints", &recipe).await?;
    let build = wait_within(PRINTED, &stack, &path, "its end", has_ended).await?;
    ensure!(build["status"] == "succeeded", "{build}");
    // A machine that stands still costs the worker its lease, and the next one begins again.
    let attempts = build["attempt"].as_u64().context("no attempt")? as usize;
    let id = build["id"].as_str().context("no id")?;
    let log = stdout(&stack, &["template", "logs", id]).await?;
    let told = log.matches("output beyond 4 MiB is not kept").count();
    ensure!(
        (1..=attempts).contains(&told) && log.contains("      end\n"),
        "it is told {told} times; {build}"
    );
    // Each line is one byte longer. A few are cut where an entry of the log ends.
    let (lines, most) = (log.matches(LINE).count(), (4 << 20) / (LINE.len() + 1));
    let kept = most * 9 / 10..=(most + 1) * attempts;
    ensure!(kept.contains(&lines), "{lines} lines are kept, of at most {most} in each attempt");
    stack.api.delete("/v1/templates/e2e-prints").await?.expect(204).map(drop)
}

/// A build whose control plane loses PostgreSQL, and then Redis, ends well without a human.
pub(crate) async fn stores_that_go_away_end_no_build(stack: Arc<Stack>) -> Result<()> {
    let recipe = "FROM minimal\nRUN date +%s%N > /first\nRUN for n in $(seq 10); do echo $n; sleep 1; done\n";
    let path = ask(&stack, "e2e-outage", recipe).await?;
    let last_runs = |build: &Value| build["steps"][2]["status"] == "running";
    wait(&stack, &path, "its last step", last_runs).await?;
    stack.kill_and_wait("postgres").await?;
    stack.kill_and_wait("redis-server").await?;
    let build = wait(&stack, &path, "its end", has_ended).await?;
    ensure!(build["status"] == "succeeded" && build["error"].is_null(), "{build}");
    // What was done before is not done again.
    ensure!(build["steps"][1]["exit_code"] == 0, "{build}");
    let id = stack.api.create(&json!({"template": "e2e-outage", "memory_mb": 256})).await?;
    let ran = stack.api.exec(&id, &["cat", "/first"]).await?;
    ensure!(ran["exit_code"] == 0, "{ran}");
    delete_wholly(&stack, &id).await?;
    stack.api.delete("/v1/templates/e2e-outage").await?.expect(204).map(drop)
}
