// SPDX-License-Identifier: Apache-2.0
//! Case of a pause for idleness that fails.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_api::ErrorCode;
use wrenn_control::Limits;
use wrenn_testkit::{Events, wait_until};

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
};

const WHY: &str = "the host's disk is full: delete something";

/// The sandbox runs on and says why, and its pause is tried again by itself.
pub(crate) async fn a_pause_that_fails_is_told_and_tried_again(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent();
    agent.now().pause_fails.push((ErrorCode::InsufficientStorage, WHY));
    let mut events = Events::open(&fixture.api, None).await?;
    let id = fixture.api.create(&json!({"timeout_sec": 1})).await?;

    let failed = async || fixture.record(&id).await.ok().filter(|record| !record["error"].is_null());
    let told = wait_until("a record that says why", SOON, failed).await?;
    let error = json!({
        "code": "insufficient_storage",
        "message": format!("it was idle for its timeout and could not be paused: {WHY}"),
    });
    ensure!(told["status"] == "running" && told["error"] == error, "{told}");
    let paused = fixture.wait_status(&id, "paused").await?;
    ensure!(paused["error"].is_null(), "{paused}");
    ensure!(agent.calls_of(&id) == ["pause", "pause"], "{:?}", agent.calls_of(&id));
    ensure!(agent.now().destroys.is_empty(), "{:?}", agent.now().destroys);

    // What was told on the way: only while it ran, and only after the first pause.
    let (own, _) = events.until(&id, "sandbox.paused").await?;
    let mut kinds: Vec<_> = own.iter().map(|event| event.kind.trim_start_matches("sandbox.")).collect();
    kinds.dedup();
    ensure!(kinds == ["starting", "running", "pausing", "running", "pausing", "paused"], "{kinds:?}");
    let with_error = own.iter().filter(|event| !event.data["sandbox"]["error"].is_null());
    let told: Vec<(&str, &Value)> =
        with_error.map(|event| (event.kind.as_str(), &event.data["sandbox"]["error"])).collect();
    ensure!(told == [("sandbox.running", &error)], "{told:?}");
    let last = own.last().context("no event")?;
    ensure!(last.data["sandbox"]["status"] == "paused", "{last:?}");
    fixture.stop().await
}
