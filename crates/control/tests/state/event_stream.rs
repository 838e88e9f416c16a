// SPDX-License-Identifier: Apache-2.0
//! Cases of the event stream of a sandbox's life.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wrenn_control::Limits;
use wrenn_testkit::{Event, Events};

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// Lets the sandboxes look as if nobody had used them.
const IDLE: &str = "UPDATE sandboxes SET last_active_at = now() - interval '1 hour'";

fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

/// Events arrive in order; a client that resumes gets exactly the events after the last one it saw.
pub(crate) async fn a_life_is_told_in_order_and_resumed_anywhere(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let mut events = Events::open(&fixture.api, None).await?;
    let id = fixture.create().await?;
    fixture.api.remove(&id).await?;
    let (own, ids) = events.until(&id, "sandbox.stopped").await?;
    let expected = ["sandbox.starting", "sandbox.running", "sandbox.stopping", "sandbox.stopped"];
    ensure!(kinds(&own) == expected, "{own:#?}");
    for event in &own {
        let status = event.data["sandbox"]["status"].as_str().unwrap_or_default();
        ensure!(event.data["type"] == event.kind.as_str() && event.kind.ends_with(status), "{event:?}");
    }
    for seen in [&own[0].id, &own[1].id, &own[2].id] {
        let mut resumed = Events::open(&fixture.api, Some(seen)).await?;
        let (_, again) = resumed.until(&id, "sandbox.stopped").await?;
        let after = ids.iter().skip_while(|&event| event != seen).skip(1);
        ensure!(after.eq(&again), "after {seen} of {ids:?} came {again:?}");
    }
    fixture.stop().await
}

/// A resume of a sandbox that runs tells nothing: the next event is of what happens after it.
pub(crate) async fn a_resume_of_what_runs_is_not_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let mut events = Events::open(&fixture.api, None).await?;
    let id = fixture.create().await?;
    events.until(&id, "sandbox.running").await?;
    for how in [json!({}), json!({"memory": false}), json!({"timeout_sec": 700})] {
        let resumed = fixture.api.post(&format!("/v1/sandboxes/{id}/resume"), &how).await?.expect(200)?;
        ensure!(resumed.json()["status"] == "running", "{how}: {}", resumed.json());
    }
    // What the host says of it tells nothing, either.
    fixture.rounds(fixture.agent(), 2).await?;
    let marker = fixture.create().await?;
    let event = events.next(SOON).await?;
    ensure!(event.data["sandbox"]["id"] == marker.as_str() && event.kind == "sandbox.starting", "{event:?}");
    let (own, ids) = events.until(&marker, "sandbox.running").await?;
    ensure!(ids.len() == 1, "{ids:?} and {own:?}");
    fixture.stop().await
}

/// Waits for the first event of a kind.
pub(crate) async fn first(events: &mut Events, kind: &str, limit: Duration) -> Result<Value> {
    loop {
        let event = events.next(limit).await?;
        if event.kind == kind {
            return Ok(event.data);
        }
    }
}

/// An event says why it happened and who did it, by name, also if another server or another process ends it.
pub(crate) async fn each_event_says_why_and_who(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let mut events = Events::open(&fixture.api, None).await?;
    let id = fixture.api.create(&json!({"memory_mb": 256, "timeout_sec": 600})).await?;
    let key = fixture.value("SELECT name FROM api_keys").await?;
    let (own, _) = events.until(&id, "sandbox.running").await?;
    for event in &own {
        let actor = &event.data["actor"];
        ensure!(event.data["cause"] == "user" && actor["kind"] == "api_key", "{event:?}");
        ensure!(actor["name"] == key.as_str(), "{event:?}");
        ensure!(actor["id"].as_str().is_some_and(|id| id.starts_with("key")), "{event:?}");
    }
    fixture.sql(IDLE).await?;
    let (own, _) = events.until(&id, "sandbox.paused").await?;
    for event in &own {
        let told = (&event.data["cause"], &event.data["actor"]);
        ensure!(told == (&json!("idle"), &json!({"kind": "system"})), "{event:?}");
    }
    let body = json!({"sandbox_id": id, "name": "kept"});
    fixture.api.post("/v1/snapshots", &body).await?.expect(201)?;
    fixture.api.delete("/v1/snapshots/kept").await?.expect(204)?;
    for kind in ["snapshot.created", "snapshot.deleted"] {
        let data = first(&mut events, kind, SOON).await.context(kind)?;
        ensure!(data["snapshot"]["name"] == "kept" && data["cause"] == "user", "{data}");
        ensure!(data["actor"]["name"] == key.as_str(), "{data}");
    }
    // A name keeps what it was when it was told; who is renamed has the new one from then on.
    fixture.sql("UPDATE api_keys SET name = 'renamed'").await?;
    fixture.api.remove(&id).await?;
    let (own, _) = events.until(&id, "sandbox.stopped").await?;
    let last = own.last().map(|event| (event.data["cause"].clone(), event.data["actor"]["name"].clone()));
    ensure!(last == Some((json!("user"), json!("renamed"))), "{own:?}");

    // A host of the team's own comes back.
    let host = fixture.agent().id;
    let own_host = format!(
        "UPDATE hosts SET kind = 'byoc', status = 'unreachable', team_id = (SELECT team_id FROM api_keys) WHERE id = '{}'",
        host.uuid()
    );
    fixture.sql(&own_host).await?;
    let data = first(&mut events, "host.up", SOON).await.context("host.up")?;
    ensure!(data["host"]["id"] == host.to_string() && data["cause"] == "host", "{data}");
    ensure!(data["actor"] == json!({"kind": "host", "id": host.to_string()}), "{data}");
    // Only what was asked for comes.
    let mut of_hosts = Events::open_at(&fixture.api, "/v1/events/stream?type=host.up", Some("0")).await?;
    let event = of_hosts.next(SOON).await.context("only host.up")?;
    ensure!(event.kind == "host.up", "{event:?}");
    fixture.stop().await
}
