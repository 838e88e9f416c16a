// SPDX-License-Identifier: Apache-2.0
//! Cases of snapshots whose request is repeated with its key.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use serde_json::{Value, json};
use wrenn_api::ErrorCode;
use wrenn_control::Limits;
use wrenn_testkit::{Reply, wait_until};

use crate::{
    agent::OPEN,
    fixture::{Fixture, SOON},
    stores::Stores,
};

const PATH: &str = "/v1/snapshots";

/// Starts a server with a sandbox, and returns the body of a request without a name, too.
async fn start(stores: &Arc<Stores>, name: &str) -> Result<(Fixture, String, String)> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let id = fixture.create().await?;
    let body = json!({"sandbox_id": id}).to_string();
    Ok((fixture, id, body))
}

async fn ask(fixture: &Fixture, key: &str, body: &str) -> Result<Reply> {
    fixture.ask_of(&fixture.api, PATH, key, body).await
}

/// Names of the team's snapshots.
async fn names(fixture: &Fixture) -> Result<Vec<Value>> {
    let all = fixture.api.get(PATH).await?.expect(200)?.json();
    Ok(all.as_array().context("no list")?.iter().map(|one| one["name"].clone()).collect())
}

/// Many requests with a key, to two servers at once and later, make one snapshot, also while it is being made.
pub(crate) async fn a_repeated_snapshot_is_made_once(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let (mut fixture, id, body) = start(stores, name).await?;
    let other = fixture.serve().await?;
    let agent = fixture.agent().clone();
    agent.snapshot_gate.forget_permits(usize::MAX);
    let both = [&fixture.api, &other].repeat(4);
    let many = join_all(both.into_iter().map(|api| fixture.ask_of(api, PATH, "once", &body)));
    let opened = async {
        let asked = async || (!agent.calls_of(&id).is_empty()).then_some(());
        wait_until("the snapshot to begin", SOON, asked).await?;
        agent.snapshot_gate.add_permits(OPEN);
        anyhow::Ok(())
    };
    let (many, opened) = tokio::join!(many, opened);
    opened?;
    let mut replies = many.into_iter().collect::<Result<Vec<_>>>()?;
    // The sandbox is not needed to find the snapshot again.
    fixture.api.remove(&id).await?;
    replies.push(ask(&fixture, "once", &format!(r#"{{"name": null, "sandbox_id": "{id}"}}"#)).await?);
    let mut made = Vec::new();
    for reply in replies {
        made.push(reply.expect(201)?.json());
    }
    ensure!(made.iter().all(|one| *one == made[0]), "{made:?}");
    ensure!(names(&fixture).await? == [made[0]["name"].clone()], "{:?}", names(&fixture).await?);
    ensure!(agent.calls_of(&id) == ["snapshot"] && agent.now().snapshots.len() == 1, "it was made again");
    fixture.stop().await
}

/// A key is of one request: for one sandbox, with one name, and of one operation.
pub(crate) async fn a_key_is_of_one_request(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let (fixture, id, body) = start(stores, name).await?;
    let another = json!({"sandbox_id": fixture.create().await?}).to_string();
    let named = json!({"sandbox_id": id, "name": "ready"}).to_string();
    ask(&fixture, "snapshot", &body).await?.expect(201)?;
    for other in [&another, &named] {
        ask(&fixture, "snapshot", other).await?.expect_error(409, "idempotency_request_mismatch")?;
    }
    fixture.ask("snapshot", "{}").await?.expect_error(409, "idempotency_request_mismatch")?;
    fixture.ask("sandbox", "{}").await?.expect(201)?;
    ask(&fixture, "sandbox", &body).await?.expect_error(409, "idempotency_request_mismatch")?;
    for wrong in ["", "with space", &"x".repeat(256)] {
        let told = ask(&fixture, wrong, &body).await?.expect_error(400, "invalid_request")?.json();
        ensure!(told.to_string().contains("Idempotency-Key"), "{told}");
    }
    // With another key, a name is still taken; without a key and a name, there is another snapshot each time.
    let ready = ask(&fixture, "ready", &named).await?.expect(201)?.json();
    ensure!(ask(&fixture, "ready", &named).await?.expect(201)?.json() == ready, "another one");
    ask(&fixture, "another", &named).await?.expect_error(409, "template_name_taken")?;
    fixture.api.post(PATH, &json!({"sandbox_id": id})).await?.expect(201)?;
    ensure!(names(&fixture).await?.len() == 3, "{:?}", names(&fixture).await?);
    fixture.stop().await
}

/// The snapshot of the first request was deleted meanwhile: it is not made again.
pub(crate) async fn a_deleted_snapshot_is_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let (fixture, _, body) = start(stores, name).await?;
    let made = ask(&fixture, "gone", &body).await?.expect(201)?.json();
    let path = format!("{PATH}/{}", made["name"].as_str().context("no name")?);
    fixture.api.delete(&path).await?.expect(204)?;
    for name in ["%00", "a%2Fb", "gone"] {
        fixture.api.delete(&format!("{PATH}/{name}")).await?.expect_error(404, "not_found")?;
    }
    for _ in 0..2 {
        ask(&fixture, "gone", &body).await?.expect_error(409, "idempotency_sandbox_deleted")?;
    }
    ensure!(fixture.agent().now().snapshots.is_empty(), "another one was made");
    fixture.stop().await
}

/// A request that failed, or whose server died, can be repeated with its key.
pub(crate) async fn a_snapshot_that_was_not_made_frees_its_key(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let (fixture, id, body) = start(stores, name).await?;
    let fails = (ErrorCode::InsufficientStorage, "the host's disk is full: delete something");
    fixture.agent().now().snapshot_fails.push(fails);
    ask(&fixture, "full", &body).await?.expect_error(507, "insufficient_storage")?;
    let made = ask(&fixture, "full", &body).await?.expect(201)?.json();
    ensure!(ask(&fixture, "full", &body).await?.expect(201)?.json() == made, "a third one");

    let named = json!({"sandbox_id": id, "name": "named"}).to_string();
    ask(&fixture, "died", &named).await?.expect(201)?;
    // As if its server had died while the host made it.
    fixture
        .sql(
            "UPDATE snapshots SET status = 'creating', lease_until = now() - interval '1 minute' WHERE name = 'named';
             UPDATE idempotency_keys SET snapshot_made = false WHERE key = 'died'",
        )
        .await?;
    let again = ask(&fixture, "died", &named).await?.expect(201)?.json();
    ensure!(again["name"] == "named", "{again}");
    ensure!(names(&fixture).await? == ["named".into(), made["name"].clone()], "{:?}", names(&fixture).await?);
    ensure!(fixture.agent().now().snapshots.len() == 2, "something is left");
    fixture.stop().await
}
