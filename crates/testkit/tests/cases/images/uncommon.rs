// SPDX-License-Identifier: Apache-2.0
//! Images that have less than usual, and one whose entrypoint does more.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wrenn_testkit::{Stack, wait_until};

use super::{KEPT, made::SERVED, run};
use crate::cases::{
    broken_builds::failed,
    builds::{build, context, stdout},
    cli::{stderr, wrenn},
    support::delete_wholly,
};

/// An image of one program without libraries runs, and is built on: files are copied for numbers that have no account. A step that
/// needs a shell says so.
pub(super) async fn one_program_is_enough(stack: &Arc<Stack>) -> Result<()> {
    let image = "uploaded:e2e-bare:1";
    let ran = wrenn(stack, &run(image, &[]), None).await?;
    ensure!(ran.status.success() && ran.stdout == b"alone\n", "{ran:?}");
    let ran = wrenn(stack, &run(image, &["--", "/busybox", "pwd"]), None).await?;
    ensure!(ran.status.success() && ran.stdout == b"/\n", "{ran:?}");

    let recipe = format!(
        "FROM {image}\nRUN [\"/busybox\", \"mkdir\", \"/made\"]\nCOPY --chown=1234:4321 --chmod=640 hello /made/\n\
         RUN [\"/busybox\", \"stat\", \"-c\", \"%n %u:%g %a %s\", \"/made/hello\"]\n"
    );
    let context = context(&recipe, &[("hello", "hello\n")])?;
    let (code, built, told) = build(stack, "e2e-bare", context.path()).await?;
    ensure!(code == Some(0) && built["status"] == "succeeded", "{built} {told}");
    ensure!(told.contains("/made/hello 1234:4321 640 6\n"), "{told}");
    stdout(stack, &["template", "rm", "e2e-bare"]).await?;

    let build = failed(stack, "e2e-shell", &format!("FROM {image}\nRUN echo hello\n")).await?;
    let message = build["error"]["message"].as_str().unwrap_or_default();
    ensure!(build["error"]["step"] == 2 && message.contains("/bin/sh"), "{build}");
    Ok(())
}

/// The entrypoint of a server's image begins as root, gives the data to another user, goes on as that, and becomes the command: that
/// of the image, or that of a recipe. A command that is given to `run` is started without it.
pub(super) async fn a_server_steps_down_from_root(stack: &Arc<Stack>) -> Result<()> {
    let image = "uploaded:e2e-server:1";
    let ran = wrenn(stack, &run(image, &[]), None).await?;
    let told = String::from_utf8_lossy(&ran.stdout).into_owned();
    ensure!(ran.status.success() && told == SERVED, "{told}\n{}", stderr(&ran));
    let alone = ["--", "sh", "-c", "id -un; [ -e /var/data ] || echo untouched"];
    let ran = wrenn(stack, &run(image, &alone), None).await?;
    ensure!(ran.status.success() && ran.stdout == b"root\nuntouched\n", "{ran:?}");

    let script = "echo $0 $1 as $(id -un), $(cat $DATA/state) > $DATA/told; exec sleep 1000000";
    let command = json!(["sh", "-c", script, "serve", "two words"]);
    let context = context(&format!("FROM {image}\nCMD {command}\n"), &[])?;
    let (code, built, told) = build(stack, "e2e-server", context.path()).await?;
    ensure!(code == Some(0) && built["status"] == "succeeded", "{built} {told}");
    let id = stack.api.create(&json!({"template": "e2e-server"})).await?;
    let mut last = json!(null);
    let serves = async || {
        last = stack.api.exec(&id, &["cat", "/var/data/told"]).await.ok()?;
        (last["stdout"] == "serve two words as app, ready\n").then_some(())
    };
    let waited = wait_until("the server's words", KEPT, serves).await;
    waited.with_context(|| format!("it has told {last}"))?;
    delete_wholly(stack, &id).await?;
    stdout(stack, &["template", "rm", "e2e-server"]).await.map(drop)
}
