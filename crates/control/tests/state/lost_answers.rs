// SPDX-License-Identifier: Apache-2.0
//! Cases of creates whose response is lost.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::json;
use wrenn_control::Limits;
use wrenn_testkit::{Api, short_or_long};

use crate::{
    fixture::{Fixture, post_unread},
    stores::Stores,
};

/// Sends a create and closes the connection after `patience` without reading the response.
async fn send_and_leave(api: &Api, key: &str, patience: Duration) -> Result<()> {
    let field = format!("Idempotency-Key: {key}\r\n");
    let _unread = post_unread(api, "/v1/sandboxes", &field, "{}").await?;
    // Vary how far the server gets before it sees the closed connection.
    tokio::time::sleep(patience).await;
    Ok(())
}

async fn ask(api: &Api, key: &str) -> Result<String> {
    let request = api.request(Method::POST, "/v1/sandboxes").header("Idempotency-Key", key);
    let answer = api.send(request.json(&json!({}))).await?.expect(201)?.json();
    Ok(answer["id"].as_str().context("no id")?.to_owned())
}

/// Lists all sandboxes, whatever became of them.
async fn all(api: &Api) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for list in ["/v1/sandboxes?limit=100", "/v1/sandboxes?limit=100&status=stopped"] {
        let list = api.get(list).await?.expect(200)?.json();
        let ids = list.as_array().into_iter().flatten().filter_map(|sandbox| sandbox["id"].as_str());
        all.extend(ids.map(str::to_owned));
    }
    Ok(all)
}

/// Creates with one key whose responses are lost make one sandbox.
pub(crate) async fn lost_answers_make_one_sandbox(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    for number in 0..short_or_long(30, 100) {
        send_and_leave(&fixture.api, "lost", Duration::from_micros(number * 300)).await?;
    }
    let id = ask(&fixture.api, "lost").await?;
    let made = all(&fixture.api).await?;
    ensure!(made == [id.clone()], "{made:?} were made, {id} was returned");
    let on_host: Vec<String> = fixture.agent().now().sandboxes.keys().cloned().collect();
    ensure!(on_host == made, "its host has {on_host:?}, {id} was returned");
    fixture.stop().await
}

/// A create that the server has accepted is completed although the client has left, and a retry returns it.
pub(crate) async fn leaving_interrupts_no_create(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    fixture.agent().now().takes = Duration::from_millis(20);
    let keys: Vec<String> = (0..12).map(|number| format!("left-{number}")).collect();
    for (number, key) in (0..).zip(&keys) {
        send_and_leave(&fixture.api, key, Duration::from_micros(400 + number * 300)).await?;
        let asked = ask(&fixture.api, key).await;
        let id = asked.with_context(|| format!("the retry with {key}"))?;
        fixture.api.remove(&id).await?;
    }
    let made = all(&fixture.api).await?;
    ensure!(made.len() == keys.len(), "{} keys made {made:?}", keys.len());
    fixture.stop().await
}
