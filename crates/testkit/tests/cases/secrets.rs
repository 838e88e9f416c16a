// SPDX-License-Identifier: Apache-2.0
//! Secrets must not appear in logs or on command lines.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

use anyhow::Result;
use serde_json::json;
use wrenn_testkit::{Stack, envd::address_and_token, processes};

/// Secret value of an environment variable of a sandbox.
const VALUE: &str = "correct-horse-battery-staple-9731";

/// Returns the token with which the agent authenticates to envd.
fn access_token(stack: &Stack, id: &str) -> Result<String> {
    let path = stack.state_dir.join("agent/sandboxes").join(id).join("journal.json");
    let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
    anyhow::ensure!(mode == 0o600, "{} can be read by others: {mode:o}", path.display());
    address_and_token(stack, id).map(|(_, token)| token)
}

/// Returns all logs and command lines with their names.
fn public_texts(stack: &Stack) -> Result<Vec<(String, Vec<u8>)>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(stack.state_dir.join("logs"))? {
        let path = entry?.path();
        texts.push((path.display().to_string(), fs::read(&path)?));
    }
    texts.push(("up.log".to_owned(), stack.up_log()));
    anyhow::ensure!(texts.len() >= 5, "these logs only: {texts:?}");
    for process in processes() {
        texts.push((format!("the command line of {:?}", process.pid), process.args.join(" ").into_bytes()));
    }
    Ok(texts)
}

/// Runs after all other cases, so that their logs are searched too.
pub(crate) async fn none_in_logs_or_command_lines(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256, "envs": {"PASSWORD": VALUE}})).await?;
    let ran = stack.api.exec(&id, &["sh", "-c", "echo $PASSWORD"]).await?;
    anyhow::ensure!(ran["stdout"] == format!("{VALUE}\n"), "{ran}");
    let path = format!("/v1/sandboxes/{id}/exec");
    let given = json!({"cmd": "sh", "args": ["-c", "sleep 5"], "envs": {"OTHER": VALUE}, "timeout_sec": 1});
    stack.api.post(&path, &given).await?.expect(200)?;
    let failing = json!({"cmd": "no-such-command", "envs": {"OTHER": VALUE}});
    stack.api.post(&path, &failing).await?.expect(404)?;
    // A rejected request must not be quoted either.
    let refused = json!({"cmd": "true", "envs": {"A=B": VALUE}});
    stack.api.post(&path, &refused).await?.expect(400)?;
    let token = access_token(&stack, &id)?;
    let secrets = [("the API key", stack.api.key()), ("a variable", VALUE), ("a guest's token", &token)];
    for (place, text) in public_texts(&stack)? {
        for (what, secret) in secrets {
            let found = text.windows(secret.len()).any(|window| window == secret.as_bytes());
            anyhow::ensure!(!found, "{what} is in {place}");
        }
    }
    stack.api.remove(&id).await?;
    Ok(())
}
