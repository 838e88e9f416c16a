// SPDX-License-Identifier: Apache-2.0
//! Cases of the types of events and of their causes: each that a client can ask for happens.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use chrono::Utc;
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_api::{ErrorCode, HostId};
use wrenn_control::Limits;
use wrenn_rpc::fault::Of;
use wrenn_testkit::{Event, Events, wait_until};

use crate::{
    event_stream::first,
    fixture::{Fixture, SOON},
    killed::kill,
    stores::Stores,
    walk,
};

/// Causes of events that happen once, and the kind of who did it.
const CAUSES: [(&str, &str, &str); 9] = [
    ("snapshot.created", "user", "api_key"),
    ("snapshot.deleted", "user", "api_key"),
    ("sandbox.out_of_memory", "out_of_memory", "system"),
    ("sandbox.error", "host", "host"),
    ("sandbox.missing", "host", "host"),
    ("host.down", "host", "host"),
    ("host.up", "host", "host"),
    ("sandbox.stopping", "admin", "api_key"),
    ("sandbox.stopped", "admin", "api_key"),
];

/// Returns the values of the first `enum` within a schema of a document.
fn values<'a>(document: &'a Value, schema: &'a Value) -> Option<&'a Vec<Value>> {
    if let Some(place) = schema["$ref"].as_str() {
        return values(document, document.pointer(place.strip_prefix('#')?)?);
    }
    match schema {
        Value::Object(fields) => match fields.get("enum") {
            Some(all) => all.as_array(),
            None => fields.values().find_map(|inner| values(document, inner)),
        },
        Value::Array(all) => all.iter().find_map(|inner| values(document, inner)),
        _ => None,
    }
}

/// Returns the types of events that a client can ask for, by the document of the server.
async fn wanted(fixture: &Fixture) -> Result<BTreeSet<String>> {
    let (document, _) = walk::document(fixture).await?;
    let parameters = document["paths"]["/v1/events/stream"]["get"]["parameters"].as_array();
    let parameter = parameters.and_then(|all| all.iter().find(|one| one["name"] == "type"));
    let schema = &parameter.context("no parameter for the type")?["schema"];
    let all = values(&document, schema).with_context(|| format!("no values in {schema}"))?;
    Ok(all.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// Lets a sandbox be paused, resumed and kept as a snapshot, and a process of it be killed for want of memory.
async fn live(fixture: &Fixture, id: &str) -> Result<()> {
    fixture.pause(id).await?;
    fixture.send(Method::POST, &format!("/v1/sandboxes/{id}/resume"), None).await?.expect(200)?;
    let snapshot = json!({"sandbox_id": id, "name": "kept"});
    fixture.api.post("/v1/snapshots", &snapshot).await?.expect(201)?;
    fixture.api.delete("/v1/snapshots/kept").await?.expect(204)?;
    kill(fixture.agent(), id, Utc::now().timestamp_millis(), 412, "python3")?;
    let is_told = |record: &Value| !record["last_out_of_memory"].is_null();
    let told = async || fixture.record(id).await.ok().filter(is_told);
    wait_until("a process that was killed", SOON, told).await.map(drop)
}

/// Lets a host of the team stop answering for so long that its sandboxes are missing, and answer again.
async fn lose_host(fixture: &Fixture, id: &str) -> Result<()> {
    let (agent, status) = (fixture.agent(), "SELECT status FROM hosts");
    fixture.sql("UPDATE hosts SET kind = 'byoc', team_id = (SELECT team_id FROM api_keys)").await?;
    agent.now().host = HostId::new();
    fixture.wait_value(status, "unreachable").await?;
    fixture.sql("UPDATE hosts SET last_seen_at = now() - interval '1 minute'").await?;
    fixture.wait_status(id, "missing").await?;
    agent.now().host = agent.id;
    fixture.wait_value(status, "online").await?;
    fixture.wait_status(id, "running").await.map(drop)
}

/// Checks why the first event of a type happened, and who did it.
fn check(got: &[Event], (kind, cause, actor): (&str, &str, &str), host: HostId) -> Result<()> {
    let event = got.iter().find(|event| event.kind == kind).with_context(|| format!("no {kind}"))?;
    ensure!(event.data["type"] == kind && event.data["cause"] == cause, "{event:?}");
    ensure!(event.data["actor"]["kind"] == actor, "{event:?}");
    ensure!(actor != "host" || event.data["actor"]["id"] == host.to_string(), "{event:?}");
    Ok(())
}

/// Each type that the document lets a client ask for is told when it happens, with its cause.
pub(crate) async fn each_type_that_can_be_asked_for_is_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let expected = wanted(&fixture).await?;
    let query: Vec<_> = expected.iter().map(|kind| format!("type={kind}")).collect();
    let path = format!("/v1/events/stream?{}", query.join("&"));
    ensure!(expected.len() >= 14, "{expected:?}");

    let mut events = Events::open_at(&fixture.api, &path, None).await?;
    let (id, failing) = (fixture.create().await?, fixture.create().await?);
    live(&fixture, &id).await?;
    fixture.agent().now().sandboxes.remove(&failing);
    fixture.wait_status(&failing, "error").await?;
    lose_host(&fixture, &id).await?;
    fixture.api.delete(&format!("/v1/admin/sandboxes/{id}")).await?.expect(204)?;

    let (mut missing, mut got) = (expected.clone(), Vec::new());
    while !missing.is_empty() {
        let event = events.next(SOON).await.with_context(|| format!("never told: {missing:?}"))?;
        ensure!(expected.contains(&event.kind), "nobody expects {event:?}");
        missing.remove(&event.kind);
        got.push(event);
    }
    for told in CAUSES {
        check(&got, told, fixture.agent().id)?;
    }
    fixture.stop().await
}

/// What failed before it ran is deleted when it was kept for long enough, and its events say so.
pub(crate) async fn what_was_kept_for_long_enough_goes_for_that(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut limits = Limits::default();
    limits.record_retention = Duration::from_millis(10);
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    let mut events = Events::open(&fixture.api, None).await?;
    fixture.agent().now().create_fails.push((ErrorCode::AgentError, Of::OF_TEMPLATE));
    fixture.api.post("/v1/sandboxes", &json!({})).await?.expect_error(502, "agent_error")?;
    let failed = first(&mut events, "sandbox.error", SOON).await?;
    ensure!(failed["cause"] == "user", "{failed}");
    let id = failed["sandbox"]["id"].as_str().context("no id")?;
    let (own, _) = events.until(id, "sandbox.stopped").await?;
    for event in &own {
        let told = (&event.data["cause"], &event.data["actor"]);
        ensure!(told == (&json!("lifetime"), &json!({"kind": "system"})), "{event:?}");
    }
    fixture.stop().await
}
