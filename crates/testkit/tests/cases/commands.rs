// SPDX-License-Identifier: Apache-2.0
//! Commands: output, exit status, timeouts.

use std::sync::Arc;

use anyhow::Result;
use futures::{TryStreamExt as _, stream::FuturesUnordered};
use serde_json::{Value, json};
use wrenn_testkit::{Stack, short_or_long};

use super::support::sh;

/// Number of commands at a time: in the long form as many as a team may run of those that take more than a minute. In the short form
/// an emulated guest starts all of them in time also beside other tests.
fn many() -> usize {
    short_or_long(32, 200)
}

/// Standard output, standard error, exit status, environment, directory and user.
pub(crate) async fn output_and_exit_status(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"envs": {"A": "sandbox", "B": "sandbox"}})).await?;
    let body = json!({
        "cmd": "sh",
        "args": ["-c", "echo $A $B; pwd; id -un; echo oops >&2; exit 3"],
        "envs": {"B": "request"},
        "cwd": "/tmp",
    });
    let ran = stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(200)?.json();
    anyhow::ensure!(ran["stdout"] == "sandbox request\n/tmp\nwrenn-user\n", "{ran}");
    anyhow::ensure!(ran["stderr"] == "oops\n" && ran["exit_code"] == 3, "{ran}");
    let killed = stack.api.exec(&id, &["sh", "-c", "kill -9 $$"]).await?;
    anyhow::ensure!(killed["exit_code"] == 137, "{killed}");
    let root = stack.api.exec(&id, &["sudo", "id", "-u"]).await?;
    anyhow::ensure!(root["stdout"] == "0\n", "{root}");
    stack.api.remove(&id).await?;
    Ok(())
}

/// Bytes that are not UTF-8 arrive as base 64.
pub(crate) async fn output_that_is_not_text(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let ran = stack.api.exec(&id, &["printf", "\\377\\000a"]).await?;
    anyhow::ensure!(ran["encoding"] == "base64" && ran["stdout"] == "/wBh", "{ran}");
    stack.give_back(id);
    Ok(())
}

/// The response reports the timeout and has the output so far; no descendant process survives.
pub(crate) async fn a_timeout_kills_the_process_group(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    let body = json!({
        "cmd": "sh",
        "args": ["-c", "echo before; sleep 1000 & setsid sleep 1000 & sleep 1000; echo after"],
        "timeout_sec": 2,
    });
    let ran = stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(200)?.json();
    anyhow::ensure!(ran["timed_out"] == true && ran["stdout"] == "before\n", "{ran}");
    let left = stack.api.exec(&id, &["pgrep", "sleep"]).await?;
    anyhow::ensure!(left["exit_code"] == 1, "still running: {left}");
    stack.give_back(id);
    Ok(())
}

/// Runs short commands that write 64 KiB just before they exit.
pub(crate) async fn no_byte_of_a_short_command_is_lost(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
    for round in 0..short_or_long(20, 500) {
        let script = format!("head -c 65536 /dev/zero | tr '\\0' x; echo {round}");
        let ran = stack.api.exec(&id, &["sh", "-c", &script]).await?;
        let expected = format!("{}{round}\n", "x".repeat(65536));
        let got = ran["stdout"].as_str().unwrap_or_default();
        anyhow::ensure!(got == expected, "round {round}: {} of {} bytes", got.len(), expected.len());
    }
    stack.give_back(id);
    Ok(())
}

/// Many commands run in one sandbox at a time, and each gets its own output.
pub(crate) async fn many_at_once_are_kept_apart(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 512})).await?;
    // A lock lets none of them go on before all of them run.
    let count = format!("until [ $(ls /tmp/many | wc -l) = {} ]; do sleep 0.5; done", many());
    let hold = json!({"cmd": "flock", "args": ["-x", "/tmp/gate", "sh", "-c", count], "background": true});
    sh(&stack, &id, "mkdir -m 777 /tmp/many").await?;
    stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &hold).await?.expect(202)?;
    sh(&stack, &id, "while flock -n -s /tmp/gate true; do sleep 0.1; done").await?;
    let script = "exec 9< /tmp/gate; : > /tmp/many/$0; flock -s 9; printf %065535d $0";
    let run = async |number: usize| {
        let body = json!({"cmd": "sh", "args": ["-c", script, number.to_string()], "timeout_sec": 300});
        let ran = stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(200)?.json();
        let (expected, got) = (format!("{number:065535}"), ran["stdout"].as_str().unwrap_or_default());
        let told = |mut ran: Value, length: usize| {
            ran["stdout"] = json!(format!("{length} bytes"));
            format!("command {number}: {ran}")
        };
        anyhow::ensure!(got == expected, told(ran.clone(), got.len()));
        anyhow::Ok(())
    };
    // The first failure is told, and not that of the first command.
    (0..many()).map(run).collect::<FuturesUnordered<_>>().try_collect::<()>().await?;
    stack.api.remove(&id).await.map(drop)
}

/// `wrenn run` prints the output of the command and returns its exit status.
pub(crate) async fn the_command_line_passes_the_exit_status_on(stack: Arc<Stack>) -> Result<()> {
    let run = stack.clone();
    let output = tokio::task::spawn_blocking(move || {
        run.wrenn(&["run", "--", "sh", "-c", "python3 -c 'print(6*7)'; echo oops >&2; exit 3"])
    })
    .await??;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.stdout == b"42\n" && output.status.code() == Some(3), "{output:?}");
    anyhow::ensure!(stderr.contains("oops"), "{stderr}");
    Ok(())
}
