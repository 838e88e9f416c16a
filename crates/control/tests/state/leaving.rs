// SPDX-License-Identifier: Apache-2.0
//! Cases of clients that leave in the middle of a pause, a resume or a snapshot: it is completed without them.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use wrenn_control::Limits;
use wrenn_testkit::wait_until;

use crate::{
    agent::OPEN,
    fixture::{Fixture, SOON, post_unread},
    stores::Stores,
};

/// Sends a request, and leaves as soon as its call has come to the agent. Returns when the server has closed the
/// connection, so that nobody there waits for the end of the request any more.
async fn leave(fixture: &Fixture, id: &str, path: &str, body: &Value, call: &str) -> Result<()> {
    let mut connection = post_unread(&fixture.api, path, "", &body.to_string()).await?;
    let called = async || fixture.agent().calls_of(id).contains(&call).then_some(());
    wait_until(&format!("the {call} to begin"), SOON, called).await?;
    connection.shutdown().await?;
    let mut answer = Vec::new();
    let closed = timeout(SOON, connection.read_to_end(&mut answer)).await;
    closed.context("the server did not notice that the client left")??;
    ensure!(answer.is_empty(), "it was answered: {}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Leaves in the middle of a pause or a resume, in which the sandbox has the status `on_the_way`.
async fn leave_between(
    fixture: &Fixture,
    id: &str,
    (operation, body): (&str, &Value),
    call: &str,
    on_the_way: &str,
) -> Result<()> {
    let gate = &fixture.agent().life_gate;
    gate.forget_permits(usize::MAX);
    leave(fixture, id, &format!("/v1/sandboxes/{id}/{operation}"), body, call).await?;
    let record = fixture.record(id).await?;
    ensure!(record["status"] == on_the_way, "{record}");
    gate.add_permits(OPEN);
    Ok(())
}

pub(crate) async fn a_pause_is_completed(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let id = fixture.create().await?;
    leave_between(&fixture, &id, ("pause", &json!({})), "pause", "pausing").await?;
    let paused = fixture.wait_status(&id, "paused").await?;
    ensure!(paused["error"].is_null(), "{paused}");
    let path = format!("/v1/sandboxes/{id}/resume");
    fixture.api.post(&path, &json!({})).await?.expect(200)?;
    fixture.api.exec(&id, &["true"]).await?;
    let calls = fixture.agent().calls_of(&id);
    ensure!(calls == ["pause", "resume", "exec"], "{calls:?}");
    fixture.stop().await
}

/// Also one that a command causes, which is not started then.
pub(crate) async fn a_resume_is_completed(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    for (operation, body) in [("resume", json!({})), ("exec", json!({"cmd": "unwanted"}))] {
        let id = fixture.api.create(&json!({"auto_resume": true})).await?;
        fixture.pause(&id).await?;
        leave_between(&fixture, &id, (operation, &body), "resume", "resuming").await?;
        let resumed = fixture.wait_status(&id, "running").await?;
        ensure!(resumed["error"].is_null(), "{operation}: {resumed}");
        let ran = fixture.api.exec(&id, &["wanted"]).await?;
        ensure!(ran["stdout"] == "wanted", "{operation}: {ran}");
        let calls = fixture.agent().calls_of(&id);
        ensure!(calls == ["pause", "resume", "exec"], "{operation}: {calls:?}");
    }
    fixture.stop().await
}

pub(crate) async fn a_snapshot_is_completed(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (id, agent) = (fixture.create().await?, fixture.agent());
    let body = json!({"sandbox_id": id, "name": "kept"});
    let names = async || -> Result<Vec<Value>> {
        let all = fixture.api.get("/v1/snapshots").await?.expect(200)?.json();
        Ok(all.as_array().context("no list")?.iter().map(|one| one["name"].clone()).collect())
    };
    agent.snapshot_gate.forget_permits(usize::MAX);
    leave(&fixture, &id, "/v1/snapshots", &body, "snapshot").await?;
    ensure!(names().await?.is_empty(), "it is listed before it is made: {:?}", names().await?);
    agent.snapshot_gate.add_permits(OPEN);
    let listed = async || names().await.ok().filter(|names| !names.is_empty());
    let all = wait_until("the snapshot", SOON, listed).await?;
    ensure!(all == ["kept"], "{all:?}");
    // Whoever asks again learns that it is there; it and the sandbox can be used.
    fixture.api.post("/v1/snapshots", &body).await?.expect_error(409, "template_name_taken")?;
    fixture.api.exec(&id, &["true"]).await?;
    fixture.api.create(&json!({"template": "kept"})).await?;
    let calls = agent.calls_of(&id);
    ensure!(calls == ["snapshot", "exec"] && agent.now().snapshots.len() == 1, "{calls:?}");
    ensure!(names().await? == ["kept"], "{:?}", names().await?);
    fixture.stop().await
}
