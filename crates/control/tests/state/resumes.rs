// SPDX-License-Identifier: Apache-2.0
//! Cases of resumes that the agent refuses.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_api::ErrorCode;
use wrenn_control::Limits;
use wrenn_rpc::host::v1::SandboxState;
use wrenn_testkit::Events;

use crate::{agent::OPEN, fixture::Fixture, stores::Stores};

const MESSAGE: &str = "the memory cannot be used: resume it with memory false";

/// The record of a sandbox whose memory was refused by a resume says so, until it is resumed.
pub(crate) async fn a_refused_resume_is_told_until_it_succeeds(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent();
    let mut events = Events::open(&fixture.api, None).await?;
    let codes = [
        (ErrorCode::SnapshotMissing, true),
        (ErrorCode::SnapshotDamaged, true),
        (ErrorCode::SnapshotIncompatible, true),
        // The memory is whole, and the next resume may succeed.
        (ErrorCode::InsufficientStorage, false),
    ];
    for (number, (code, is_told)) in codes.into_iter().enumerate() {
        let auto_resume = number % 2 == 0;
        let id = fixture.api.create(&json!({"auto_resume": auto_resume})).await?;
        let path = format!("/v1/sandboxes/{id}");
        fixture.pause(&id).await?;
        events.until(&id, "sandbox.paused").await?;
        agent.now().resume_fails.push((code, MESSAGE));
        let refused = if auto_resume {
            fixture.api.post(&format!("{path}/exec"), &json!({"cmd": "true"})).await?
        } else {
            fixture.api.post(&format!("{path}/resume"), &json!({})).await?
        };
        refused.expect_error(code.status(), code.as_str())?;
        let told = if is_told { json!({"code": code, "message": MESSAGE}) } else { Value::Null };
        let got = fixture.api.get(&path).await?.expect(200)?.json();
        ensure!(got["status"] == "paused" && got["error"] == told, "{got}");
        let (own, _) = events.until(&id, "sandbox.paused").await?;
        let event = own.last().context("no event")?;
        ensure!(event.data["sandbox"]["error"] == told, "{event:?}");
        // It is told once, and stays.
        fixture.rounds(agent, 2).await?;
        let later = fixture.api.get(&path).await?.expect(200)?.json();
        ensure!(later == got, "{later}, and before {got}");
        let resumed =
            fixture.api.post(&format!("{path}/resume"), &json!({"memory": number % 2 == 0})).await?;
        let resumed = resumed.expect(200)?.json();
        ensure!(resumed["status"] == "running" && resumed["error"].is_null(), "{resumed}");
        let paused = fixture.pause(&id).await?;
        ensure!(paused["status"] == "paused" && paused["error"].is_null(), "{paused}");
        events.until(&id, "sandbox.paused").await?;
    }
    fixture.stop().await
}

/// What the agent says of the memory it has lost is what stays in the record, whatever a resume is told.
pub(crate) async fn a_lost_memory_is_told_once(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (id, agent) = (fixture.create().await?, fixture.agent());
    fixture.pause(&id).await?;
    let lost = Some((ErrorCode::SnapshotMissing, "its memory was lost".to_owned()));
    agent.now().sandboxes.get_mut(&id).context("it is gone")?.failure = lost;
    fixture.rounds(agent, 1).await?;
    let told = fixture.record(&id).await?;
    ensure!(told["error"]["code"] == "snapshot_missing", "{told}");
    let path = format!("/v1/sandboxes/{id}/resume");
    fixture.api.post(&path, &json!({})).await?.expect_error(409, "snapshot_missing")?;
    let again = fixture.record(&id).await?;
    fixture.rounds(agent, 2).await?;
    let later = fixture.record(&id).await?;
    ensure!(again["error"] == told["error"] && later == again, "{told}, {again}, {later}");
    let booted = fixture.api.post(&path, &json!({"memory": false})).await?.expect(200)?.json();
    ensure!(booted["error"].is_null(), "{booted}");
    let state = agent.now().sandboxes.get(&id).map(|sandbox| sandbox.state);
    ensure!(state == Some(SandboxState::SANDBOX_STATE_RUNNING), "{state:?}");
    fixture.stop().await
}

/// A failed sandbox stays `resuming` until its host has begun to boot it, and is told as running then.
pub(crate) async fn a_boot_that_has_not_begun_is_no_failure(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (id, agent) = (fixture.create().await?, fixture.agent());
    agent.has(&id, SandboxState::SANDBOX_STATE_FAILED);
    fixture.wait_status(&id, "error").await?;
    agent.begin_gate.forget_permits(usize::MAX);
    let path = format!("/v1/sandboxes/{id}/resume");
    let from_disk = json!({"memory": false});
    let resume = fixture.api.post(&path, &from_disk);
    let meanwhile = async {
        fixture.wait_status(&id, "resuming").await?;
        fixture.rounds(agent, 2).await?;
        let record = fixture.record(&id).await?;
        agent.begin_gate.add_permits(OPEN);
        ensure!(record["status"] == "resuming", "{record}");
        Ok(())
    };
    let (resumed, waited) = tokio::join!(resume, meanwhile);
    waited?;
    let resumed = resumed?.expect(200)?.json();
    ensure!(resumed["status"] == "running" && resumed["error"].is_null(), "{resumed}");
    fixture.stop().await
}
