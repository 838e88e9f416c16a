// SPDX-License-Identifier: Apache-2.0
//! The commands `wrenn sandbox pause`, `resume` and `ping`, and `wrenn snapshot`: what they do, print and refuse.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_api::{Sandbox, SandboxStatus};
use wrenn_testkit::Stack;

use super::{stderr, wrenn};
use crate::cases::support::{record, start_counter, still_counts};

/// Id of no sandbox.
const UNKNOWN: &str = "sb00000000000000000000000a1";

/// Runs `wrenn`, which must succeed without a word on standard error; returns what it prints.
async fn prints(stack: &Arc<Stack>, args: &[&str]) -> Result<String> {
    let output = wrenn(stack, args, None).await?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs `wrenn`, which must print this line and nothing else.
async fn prints_line(stack: &Arc<Stack>, args: &[&str], line: &str) -> Result<()> {
    let printed = prints(stack, args).await?;
    ensure!(printed == format!("{line}\n"), "{args:?} prints {printed:?} instead of {line:?}");
    Ok(())
}

/// Runs `wrenn`, which must fail, print nothing, and say all these texts.
async fn refused(stack: &Arc<Stack>, args: &[&str], told: &[&str]) -> Result<()> {
    let output = wrenn(stack, args, None).await?;
    let text = stderr(&output);
    ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{args:?}: {output:?}");
    ensure!(told.iter().all(|part| text.contains(*part)), "{args:?}: {text:?} has not all of {told:?}");
    Ok(())
}

/// Returns the sandbox as the API has it.
async fn now(stack: &Stack, id: &str) -> Result<Sandbox> {
    Ok(serde_json::from_value(record(stack, id).await.context("no record")?)?)
}

/// Output of a command in a sandbox.
async fn output(stack: &Stack, id: &str, command: &[&str]) -> Result<Value> {
    Ok(stack.api.exec(id, command).await?["stdout"].clone())
}

/// Boots a paused sandbox from its disk, which has the file, and fails if the counter goes on.
async fn boots(stack: &Arc<Stack>, id: &str) -> Result<()> {
    prints_line(stack, &["sandbox", "resume", "--from-disk", id], id).await?;
    let (kept, counters) = (
        output(stack, id, &["cat", "note"]).await?,
        output(stack, id, &["pgrep", "-c", "-f", "/tmp/beat"]).await?,
    );
    ensure!(kept == "kept\n" && counters == "0\n", "the file has {kept}, and {counters} counters run");
    Ok(())
}

/// Sandboxes are paused and resumed by name, by id and by its beginning: their processes go on, or they boot from their
/// disks. What cannot be is told with its cause.
pub(crate) async fn sandboxes_are_paused_and_resumed(stack: Arc<Stack>) -> Result<()> {
    let name = "cli-paused";
    let id = stack.api.create(&json!({"memory_mb": 256, "name": name, "timeout_sec": 3600})).await?;
    let id = id.as_str();
    let pid = start_counter(&stack, id).await?;
    output(&stack, id, &["sh", "-c", "echo kept > note; sync"]).await?;

    prints_line(&stack, &["sandbox", "pause", name], id).await?;
    ensure!(now(&stack, id).await?.status == SandboxStatus::Paused, "it is not paused");
    // It stays paused.
    let told: Value = serde_json::from_str(&prints(&stack, &["--json", "sandbox", "pause", id]).await?)?;
    ensure!(told["id"] == id && told["status"] == "paused", "{told}");
    refused(&stack, &["sandbox", "ping", name], &[id, "paused", "invalid_state"]).await?;

    prints_line(&stack, &["sandbox", "resume", &id[..26], "--idle-timeout", "2h"], id).await?;
    let resumed = now(&stack, id).await?;
    ensure!(resumed.status == SandboxStatus::Running && resumed.timeout_sec == 7200, "{resumed:?}");
    // Nothing has used it in between.
    prints_line(&stack, &["sandbox", "ping", name], id).await?;
    let pinged = now(&stack, id).await?;
    let put_off = resumed.expires_at.is_some() && pinged.expires_at > resumed.expires_at;
    ensure!(put_off, "{pinged:?} after a ping, {resumed:?} before");
    still_counts(&stack, id, &pid).await?;

    prints_line(&stack, &["sandbox", "pause", id], id).await?;
    boots(&stack, id).await?;

    stack.api.remove(id).await?;
    for (command, sandbox, cause) in [
        ("pause", id, "is stopped"),
        ("pause", name, "not_found"),
        ("pause", UNKNOWN, "not_found"),
        ("resume", id, "is stopped"),
        ("resume", UNKNOWN, "not_found"),
        ("ping", id, "was deleted"),
        ("ping", UNKNOWN, "not_found"),
    ] {
        refused(&stack, &["sandbox", command, sandbox], &[sandbox, cause]).await?;
    }
    Ok(())
}

/// Columns of a snapshot in the list, if it is there.
async fn listed(stack: &Arc<Stack>, name: &str) -> Result<Option<Vec<String>>> {
    let table = prints(stack, &["snapshot", "ls"]).await?;
    ensure!(table.starts_with("NAME "), "no header: {table}");
    let mut rows = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    Ok(rows.find(|row| row.first().is_some_and(|first| first == name)))
}

/// Snapshots are made with names given or made up, listed and removed. A sandbox from one has its process, also when the
/// snapshot is gone. What cannot be is told with its cause.
pub(crate) async fn snapshots_are_made_and_removed(stack: Arc<Stack>) -> Result<()> {
    let name = "cli-kept";
    let id = stack.api.create(&json!({"memory_mb": 256, "name": "cli-source"})).await?;
    let pid = start_counter(&stack, &id).await?;
    prints_line(&stack, &["snapshot", "create", "cli-source", "--name", name], name).await?;
    still_counts(&stack, &id, &pid).await?;
    let row = listed(&stack, name).await?.context("it is not listed")?;
    ensure!(row.len() == 10 && row[1..7] == ["minimal", "1", "256", "MiB", "5120", "MiB"], "{row:?}");

    let taken = ["snapshot", "create", &id, "--name", name];
    refused(&stack, &taken, &[name, "template_name_taken"]).await?;
    let of_none = ["snapshot", "create", UNKNOWN, "--name", "cli-other"];
    refused(&stack, &of_none, &[UNKNOWN, "not_found"]).await?;

    let clone = stack.api.create(&json!({"template": name})).await?;
    still_counts(&stack, &clone, &pid).await?;
    let made_up = prints(&stack, &["snapshot", "create", &id]).await?;
    let made_up = made_up.trim();
    ensure!(listed(&stack, made_up).await?.is_some(), "{made_up:?} is not listed");

    prints_line(&stack, &["snapshot", "rm", name, made_up], &format!("{name}\n{made_up}")).await?;
    for gone in [name, made_up] {
        ensure!(listed(&stack, gone).await?.is_none(), "{gone} is still listed");
        refused(&stack, &["snapshot", "rm", gone], &[gone, "not_found"]).await?;
    }
    still_counts(&stack, &clone, &pid).await?;
    for sandbox in [&clone, &id] {
        stack.api.remove(sandbox).await?;
    }
    refused(&stack, &["snapshot", "create", &id], &[id.as_str(), "is stopped"]).await
}
