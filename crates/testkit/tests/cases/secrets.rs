// SPDX-License-Identifier: Apache-2.0
//! Secrets must not appear in logs or on command lines.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

use anyhow::{Context as _, Result};
use serde_json::json;
use wrenn_api::{FileOperation, SignFile};
use wrenn_client::Client;
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

/// Uses the token of a port in a URL, and returns it.
async fn traffic_token(stack: &Stack, id: &str) -> Result<String> {
    let client = Client::new(&stack.url(), Some(stack.api.key()))?;
    let port = client.port(id.parse()?, 8000).await?;
    let token = port.token.context("no token")?;
    let (_, at) = port.url.rsplit_once(':').context("no port")?;
    let url = format!("http://127.0.0.1:{at}/?wrenn_traffic_token={token}");
    let host = port.url.trim_start_matches("http://").to_owned();
    // Nothing listens there: what is logged of a failure must not quote it either.
    reqwest::Client::new().get(url).header("host", host).send().await?;
    Ok(token)
}

/// Uses a signed URL twice, once with another signature, and returns its signature.
async fn signature(stack: &Stack, id: &str) -> Result<String> {
    stack.api.write(id, "/tmp/signed", b"x".to_vec()).await?.expect(204)?;
    let what = SignFile {
        path: "/tmp/signed".into(),
        operation: FileOperation::Read,
        expires_in_sec: None,
        user: None,
    };
    let url = Client::new(&stack.url(), Some(stack.api.key()))?.sign_file(id.parse()?, &what).await?.url;
    let signature = url.split("signature=").nth(1).context("no signature")?;
    let signature = signature.split('&').next().unwrap_or_default().to_owned();
    for url in [url.clone(), format!("{url}x")] {
        reqwest::get(url).await?;
    }
    Ok(signature)
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
    let of_port = traffic_token(&stack, &id).await?;
    let signature = signature(&stack, &id).await?;
    let secrets = [
        ("the API key", stack.api.key()),
        ("a variable", VALUE),
        ("a guest's token", &token),
        ("a port's token", &of_port),
        ("a signature", &signature),
    ];
    for (place, text) in public_texts(&stack)? {
        for (what, secret) in secrets {
            let found = text.windows(secret.len()).any(|window| window == secret.as_bytes());
            anyhow::ensure!(!found, "{what} is in {place}");
        }
    }
    stack.api.remove(&id).await?;
    Ok(())
}
