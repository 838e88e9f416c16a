// SPDX-License-Identifier: Apache-2.0
//! Cases of quotas: they hold also when many requests come at once, and a refusal says which one, and how much of it is used.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_api::ErrorCode;
use wrenn_control::Limits;
use wrenn_rpc::fault::Of;
use wrenn_testkit::Reply;

use crate::{fixture::Fixture, people::told, stores::Stores, walk};

/// Gives the fixture's team quotas.
async fn set(fixture: &Fixture, quotas: Value) -> Result<Reply> {
    let path = format!("/v1/admin/teams/{}/quotas", walk::team(fixture).await?);
    fixture.send_json(Method::PUT, &path, &quotas.to_string()).await
}

/// Returns limit and use of a quota of the fixture's team.
async fn quota(fixture: &Fixture, name: &str) -> Result<(u64, u64)> {
    let path = format!("/v1/teams/{}/quotas", walk::team(fixture).await?);
    let all = fixture.api.get(&path).await?.expect(200)?.json();
    let one =
        all.as_array().and_then(|all| all.iter().find(|one| one["name"] == name)).context("no such quota")?;
    Ok((one["limit"].as_u64().context("no limit")?, one["used"].as_u64().context("no use")?))
}

/// Of many creates at once as many succeed as may; pauses, resumes and deletes count at once.
pub(crate) async fn of_many_creates_at_once_some_are_refused(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    set(&fixture, json!({"running": 3})).await?.expect(200)?;
    ensure!(quota(&fixture, "running").await? == (3, 0));
    let body = json!({"memory_mb": 256});
    let made = join_all((0..10).map(|_| fixture.api.post("/v1/sandboxes", &body))).await;
    let mut ids = Vec::new();
    for reply in made {
        let reply = reply?;
        if reply.status == 201 {
            ids.push(reply.json()["id"].as_str().context("no id")?.to_owned());
            continue;
        }
        let message = told(&reply.expect_error(429, "quota_exceeded")?);
        ensure!(message.contains("may have 3 running sandboxes (quota running), it has 3"), "{message}");
    }
    ensure!(ids.len() == 3 && quota(&fixture, "running").await? == (3, 3), "{ids:?}");
    fixture.pause(&ids[0]).await?;
    ensure!(quota(&fixture, "paused").await?.1 == 1);
    let fourth = fixture.create().await?;
    let resume = format!("/v1/sandboxes/{}/resume", ids[0]);
    fixture.api.post(&resume, &json!({})).await?.expect_error(429, "quota_exceeded")?;
    ensure!(fixture.record(&ids[0]).await?["status"] == "paused", "the refused resume changed it");
    fixture.api.remove(&fourth).await?;
    fixture.api.post(&resume, &json!({})).await?.expect(200)?;
    // Those of the server again.
    set(&fixture, json!({})).await?.expect(200)?;
    ensure!(quota(&fixture, "running").await? == (1000, 3));
    fixture.stop().await
}

/// What its host could not create uses up no quota: the next create succeeds, and only then the quota is full.
pub(crate) async fn a_create_that_fails_uses_none_up(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    set(&fixture, json!({"sandboxes": 1})).await?.expect(200)?;
    let body = json!({"memory_mb": 256});
    for code in [ErrorCode::AgentError, ErrorCode::InsufficientStorage] {
        fixture.agent().now().create_fails.push((code, Of::OF_HOST));
        let failed = fixture.api.post("/v1/sandboxes", &body).await?;
        failed.expect_error(code.status(), code.as_str())?;
        let used = quota(&fixture, "sandboxes").await?;
        ensure!(used == (1, 0), "{code:?}: {used:?}");
    }
    fixture.api.post("/v1/sandboxes", &body).await?.expect(201)?;
    ensure!(quota(&fixture, "sandboxes").await? == (1, 1));
    fixture.api.post("/v1/sandboxes", &body).await?.expect_error(429, "quota_exceeded")?;
    fixture.stop().await
}

/// Each quota has its refusal, and a lower one takes nothing away.
pub(crate) async fn each_quota_is_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.disk_per_team_mb = 10_240;
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    let id = fixture.create().await?;
    let create = ("/v1/sandboxes".to_owned(), json!({"vcpus": 1, "memory_mb": 256}));
    let build =
        ("/v1/templates/builds".to_owned(), json!({"name": "web", "recipe": "FROM minimal\nENV A=1\n"}));
    let snapshot = ("/v1/snapshots".to_owned(), json!({"sandbox_id": id, "name": "kept"}));
    let pause = (format!("/v1/sandboxes/{id}/pause"), json!({}));
    for (quota, limit, (path, body)) in [
        ("sandboxes", 1, &create),
        ("running", 1, &create),
        ("vcpus", 1, &create),
        ("memory_mb", 511, &create),
        ("disk_mb", 10_239, &create),
        ("creates_per_minute", 1, &create),
        ("paused", 0, &pause),
        ("snapshots", 0, &snapshot),
        ("templates", 0, &build),
        ("builds", 0, &build),
    ] {
        set(&fixture, json!({quota: limit})).await?.expect(200)?;
        let refused = fixture.api.post(path, body).await?;
        let refused = refused.expect_error(429, "quota_exceeded").context(quota)?;
        let message = told(&refused);
        ensure!(
            message.contains(&format!("(quota {quota})")) && message.contains(&limit.to_string()),
            "{message}"
        );
        ensure!(fixture.record(&id).await?["status"] == "running", "{quota} changed what there is");
    }
    for wrong in [
        json!({"running": -1}),
        json!({"running": 1_000_001}),
        json!({"walking": 1}),
        json!({"running": "1"}),
    ] {
        set(&fixture, wrong.clone())
            .await?
            .expect_error(400, "invalid_request")
            .with_context(|| wrong.to_string())?;
    }
    // What the server gives is full, too, and nothing else is in the way.
    set(&fixture, json!({})).await?.expect(200)?;
    fixture.create().await?;
    let message = told(&fixture.api.post(&create.0, &create.1).await?.expect_error(429, "quota_exceeded")?);
    ensure!(message.contains("may have 10240 MiB of disks") && message.contains("it has 10240"), "{message}");
    fixture.stop().await
}
