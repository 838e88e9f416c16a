// SPDX-License-Identifier: Apache-2.0
//! Cases of snapshots that take the name of another one.

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
const OVERWRITE: &str = "/v1/snapshots?overwrite=true";
/// Name of the snapshots, and the path of the one that has it.
const NAME: &str = "ready";
const READY: &str = "/v1/snapshots/ready";

/// Starts a server with a sandbox of which there is a snapshot. Returns the body of its request, whose key was `first`, and its
/// id on the host.
async fn start(stores: &Arc<Stores>, name: &str, limits: Limits) -> Result<(Fixture, String, String)> {
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    let body = json!({"sandbox_id": fixture.create().await?, "name": NAME}).to_string();
    // There is none to overwrite.
    overwrite(&fixture, "first", &body).await?.expect(201)?;
    let first = alone(&fixture).await?;
    Ok((fixture, body, first))
}

async fn overwrite(fixture: &Fixture, key: &str, body: &str) -> Result<Reply> {
    fixture.ask_of(&fixture.api, OVERWRITE, key, body).await
}

/// Names of the team's snapshots.
async fn names(fixture: &Fixture) -> Result<Vec<Value>> {
    let all = fixture.api.get(PATH).await?.expect(200)?.json();
    Ok(all.as_array().context("no list")?.iter().map(|one| one["name"].clone()).collect())
}

/// Id of the snapshot that has the name, as its host knows it.
async fn holder(fixture: &Fixture) -> Result<String> {
    let query = format!("SELECT replace(id::text, '-', '') FROM snapshots WHERE name = '{NAME}'");
    let id = fixture.value(&query).await?;
    ensure!(!id.is_empty(), "no snapshot has the name");
    Ok(id)
}

/// Waits until there is no other snapshot than the one that has the name, also on the host; returns its id.
async fn alone(fixture: &Fixture) -> Result<String> {
    fixture.wait_value("SELECT count(*)::text FROM snapshots", "1").await?;
    let (id, on_host) = (holder(fixture).await?, fixture.agent().now().snapshots.clone());
    ensure!(on_host.iter().eq([&id]), "the host has {on_host:?} instead of {id}");
    let names = names(fixture).await?;
    ensure!(names == [NAME], "{names:?}");
    Ok(id)
}

/// Number of snapshots that the host was told to make.
fn told(fixture: &Fixture) -> usize {
    fixture.agent().now().calls.iter().filter(|(what, _)| *what == "snapshot").count()
}

/// Waits until the host was told to make so many snapshots.
async fn begun(fixture: &Fixture, number: usize) -> Result<()> {
    let all = async || (told(fixture) >= number).then_some(());
    wait_until("the snapshot to begin", SOON, all).await
}

/// Overwrites, and does this while the new snapshot is being made.
async fn amid(
    fixture: &Fixture,
    key: &str,
    body: &str,
    meanwhile: impl AsyncFnOnce() -> Result<()>,
) -> Result<Reply> {
    let (gate, number) = (&fixture.agent().snapshot_gate, told(fixture) + 1);
    gate.forget_permits(usize::MAX);
    let opened = async {
        let done = async {
            begun(fixture, number).await?;
            meanwhile().await
        };
        let done = done.await;
        gate.add_permits(OPEN);
        done
    };
    let (reply, opened) = tokio::join!(overwrite(fixture, key, body), opened);
    opened?;
    reply
}

/// The new one has the name as soon as it is kept, and not before; then the old one goes. Their keys stand for them.
pub(crate) async fn a_name_moves_to_the_new_snapshot(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let (fixture, body, old) = start(stores, name, Limits::default()).await?;
    let meanwhile = async || {
        ensure!(holder(&fixture).await? == old, "the old one has lost its name");
        ensure!(names(&fixture).await? == [NAME], "{:?}", names(&fixture).await?);
        fixture.api.create(&json!({"template": NAME})).await?;
        let plain = fixture.ask_of(&fixture.api, PATH, "plain", &body).await?;
        plain.expect_error(409, "template_name_taken").map(drop)
    };
    let made = amid(&fixture, "second", &body, meanwhile).await?.expect(201)?.json();
    let new = alone(&fixture).await?;
    ensure!(new != old, "it is the old one");
    fixture.api.create(&json!({"template": NAME})).await?;

    ensure!(overwrite(&fixture, "second", &body).await?.expect(201)?.json() == made, "it was made again");
    overwrite(&fixture, "first", &body).await?.expect_error(409, "idempotency_sandbox_deleted")?;
    let plain = fixture.ask_of(&fixture.api, PATH, "second", &body).await?;
    plain.expect_error(409, "idempotency_request_mismatch")?;
    ensure!(alone(&fixture).await? == new, "it was replaced");
    fixture.stop().await
}

/// The old one stays if the new one cannot be made, or if its server dies, and the keys are free again.
pub(crate) async fn a_failure_leaves_the_old_snapshot(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let (fixture, body, old) = start(stores, name, Limits::default()).await?;
    let fails = (ErrorCode::InsufficientStorage, "the host's disk is full: delete something");
    fixture.agent().now().snapshot_fails.push(fails);
    overwrite(&fixture, "full", &body).await?.expect_error(507, "insufficient_storage")?;
    ensure!(alone(&fixture).await? == old, "it was replaced");

    let meanwhile = async || {
        let given_up = async || {
            // As if its server had died. It renews its lease, so once is not enough.
            let lapse = "UPDATE snapshots SET lease_until = 'epoch' WHERE status = 'creating'";
            fixture.sql(lapse).await.ok()?;
            let count = fixture.value("SELECT count(*)::text FROM snapshots").await.ok()?;
            (count == "1").then_some(())
        };
        wait_until("the upkeep to remove the new one", SOON, given_up).await
    };
    amid(&fixture, "died", &body, meanwhile).await?.expect_error(409, "conflict")?;
    ensure!(alone(&fixture).await? == old, "it was replaced");

    for key in ["full", "died"] {
        overwrite(&fixture, key, &body).await?.expect(201)?;
    }
    ensure!(alone(&fixture).await? != old, "it was not replaced");
    fixture.stop().await
}

/// Of many that take a name at once, each is made and one has it in the end. It may be the name of a snapshot that is just being
/// made, or that was deleted meanwhile.
pub(crate) async fn of_many_that_take_a_name_one_has_it(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let (mut fixture, body, _) = start(stores, name, Limits::default()).await?;
    let other = fixture.serve().await?;
    let keys: Vec<_> = (0..8).map(|number| format!("many-{number}")).collect();
    let apis = [&fixture.api, &other].into_iter().cycle();
    let many = keys.iter().zip(apis).map(|(key, api)| fixture.ask_of(api, OVERWRITE, key, &body));
    for reply in join_all(many).await {
        reply?.expect(201)?;
    }
    alone(&fixture).await?;

    let meanwhile = async || {
        fixture.api.delete(READY).await?.expect(204)?;
        ensure!(names(&fixture).await?.is_empty(), "{:?}", names(&fixture).await?);
        anyhow::Ok(())
    };
    amid(&fixture, "deleted", &body, meanwhile).await?.expect(201)?;
    alone(&fixture).await?;

    fixture.api.delete(READY).await?.expect(204)?;
    let (gate, before) = (&fixture.agent().snapshot_gate, told(&fixture));
    gate.forget_permits(usize::MAX);
    let taking = async {
        begun(&fixture, before + 1).await?;
        overwrite(&fixture, "taking", &body).await
    };
    let opened = async {
        let both = begun(&fixture, before + 2).await;
        gate.add_permits(OPEN);
        both
    };
    let plain = fixture.ask_of(&fixture.api, PATH, "plain", &body);
    let (plain, taking, opened) = tokio::join!(plain, taking, opened);
    opened?;
    taking?.expect(201)?;
    // It was replaced, or lost its name before it was kept.
    let plain = plain?;
    ensure!(plain.status == 201 || plain.code() == "conflict", "{}", plain.json());
    alone(&fixture).await?;
    fixture.stop().await
}

/// A team that has as many snapshots as it may can overwrite one of them. Without a name there is none to overwrite. Other values
/// are refused, and `false` overwrites nothing.
pub(crate) async fn overwriting_needs_no_more_room(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.snapshots_per_team = 2;
    let (fixture, body, old) = start(stores, name, limits).await?;
    for query in ["overwrite=yes", "overwrite=", "overwrite=true&overwrite=true", "over=true"] {
        let reply = fixture.ask_of(&fixture.api, &format!("{PATH}?{query}"), "wrong", &body).await?;
        reply.expect_error(400, "invalid_request").with_context(|| query.to_owned())?;
    }
    let plain = fixture.ask_of(&fixture.api, &format!("{PATH}?overwrite=false"), "plain", &body).await?;
    plain.expect_error(409, "template_name_taken")?;
    let request: Value = serde_json::from_str(&body)?;
    let nameless = json!({"sandbox_id": request["sandbox_id"]}).to_string();
    overwrite(&fixture, "nameless", &nameless).await?.expect(201)?;
    // The key of a request without the parameter, because that has no effect here.
    fixture.ask_of(&fixture.api, PATH, "nameless", &nameless).await?.expect(201)?;
    overwrite(&fixture, "third", &nameless).await?.expect_error(429, "quota_exceeded")?;
    overwrite(&fixture, "again", &body).await?.expect(201)?;
    fixture.wait_value("SELECT count(*)::text FROM snapshots", "2").await?;
    ensure!(holder(&fixture).await? != old && names(&fixture).await?.len() == 2, "it was not replaced");
    fixture.stop().await
}
