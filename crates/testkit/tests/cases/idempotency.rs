// SPDX-License-Identifier: Apache-2.0
//! Creates whose response is lost.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use wrenn_testkit::Stack;

/// Sends a create and closes the connection after `patience` without reading the response.
async fn send_and_leave(stack: &Stack, key: &str, body: &Value, patience: Duration) -> Result<()> {
    let address = stack.url().trim_start_matches("http://").to_owned();
    let body = body.to_string();
    let request = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nHost: {address}\r\nX-API-Key: {}\r\nIdempotency-Key: {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        stack.api.key(),
        body.len()
    );
    let mut stream = TcpStream::connect(&address).await?;
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    // Vary how far the server gets before it sees the closed connection.
    tokio::time::sleep(patience).await;
    Ok(())
}

async fn ask(stack: &Stack, key: &str, body: &Value) -> Result<String> {
    let request = stack.api.request(Method::POST, "/v1/sandboxes").header("Idempotency-Key", key);
    let answer = stack.api.send(request.json(body)).await?.expect(201)?.json();
    Ok(answer["id"].as_str().context("no id")?.to_owned())
}

/// Lists the sandboxes with this memory size; no other case uses it.
async fn with_memory(stack: &Stack, memory_mb: u32) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for list in ["/v1/sandboxes?limit=100", "/v1/sandboxes?limit=100&status=stopped"] {
        let list = stack.api.get(list).await?.expect(200)?.json();
        let mine = list.as_array().into_iter().flatten().filter(|sandbox| sandbox["memory_mb"] == memory_mb);
        all.extend(mine.filter_map(|sandbox| sandbox["id"].as_str()).map(str::to_owned));
    }
    Ok(all)
}

/// Thirty creates with one key and lost responses make one sandbox.
pub(crate) async fn lost_answers_make_one_sandbox(stack: Arc<Stack>) -> Result<()> {
    let body = json!({"memory_mb": 131});
    for number in 0..30 {
        send_and_leave(&stack, "lost-30", &body, Duration::from_micros(number * 300)).await?;
    }
    let id = ask(&stack, "lost-30", &body).await?;
    let made = with_memory(&stack, 131).await?;
    anyhow::ensure!(made == [id.clone()], "{made:?} were made, {id} was returned");
    stack.api.remove(&id).await?;
    Ok(())
}

/// A create that the server has accepted is completed although the client has left, and a retry returns it.
pub(crate) async fn leaving_interrupts_no_create(stack: Arc<Stack>) -> Result<()> {
    let body = json!({"memory_mb": 133});
    let keys: Vec<String> = (0..6).map(|number| format!("left-{number}")).collect();
    for (number, key) in (0..).zip(&keys) {
        send_and_leave(&stack, key, &body, Duration::from_micros(400 + number * 600)).await?;
        let id = ask(&stack, key, &body).await.with_context(|| format!("the retry with {key}"))?;
        stack.api.remove(&id).await?;
    }
    let made = with_memory(&stack, 133).await?;
    anyhow::ensure!(made.len() == keys.len(), "{} keys made {made:?}", keys.len());
    Ok(())
}
