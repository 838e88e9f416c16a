// SPDX-License-Identifier: Apache-2.0
//! Cases of images that teams upload: what starts from them, what keeps them, and who is refused.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wrenn_api::ErrorCode;
use wrenn_control::Limits;
use wrenn_testkit::{Reply, wait_until};

use crate::{
    agent::image_id,
    builds::{self, ask, built, statuses, wait},
    fixture::{Fixture, SOON},
    stores::Stores,
    unauthorized,
};

const PATH: &str = "/v1/images";
/// Minimum size of an archive of more than one piece.
const LARGE: usize = 600_000;

/// Digest that the simulated agent gives to an archive.
fn digest(archive: &[u8]) -> String {
    let hash: String = Sha256::digest(archive).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

async fn load(fixture: &Fixture, query: &str, archive: &[u8]) -> Result<Reply> {
    let request = fixture.api.request(Method::POST, &format!("{PATH}{query}")).body(archive.to_vec());
    fixture.api.send(request).await
}

async fn listed(fixture: &Fixture) -> Result<Value> {
    Ok(fixture.api.get(PATH).await?.expect(200)?.json())
}

fn has(fixture: &Fixture, archive: &[u8]) -> bool {
    fixture.agents.iter().any(|agent| agent.now().images.contains(&image_id(&digest(archive))))
}

async fn wait_gone(fixture: &Fixture, archive: &[u8]) -> Result<()> {
    wait_until("the removal of an image", SOON, async || (!has(fixture, archive)).then_some(())).await
}

/// Whatever the image is, sandboxes and builds start from it without a registry, and it stays as long as they need it.
pub(crate) async fn an_upload_is_listed_run_built_on_and_deleted(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = builds::start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    let archive = vec![7; LARGE];
    let loaded = load(&fixture, "?name=app:1", &archive).await?.expect(201)?.json();
    ensure!(loaded["reference"] == "uploaded:app:1" && loaded["uploaded"] == true, "{loaded}");
    ensure!(loaded["digest"] == digest(&archive) && loaded["size_mb"] == 600, "{loaded}");
    ensure!(loaded["hosts"] == json!([agent.id.to_string()]), "{loaded}");
    ensure!(agent.now().loads == [("app:1".to_owned(), LARGE as u64)]);
    ensure!(listed(&fixture).await? == json!([loaded]));

    let made =
        fixture.api.post("/v1/sandboxes", &json!({"image": "uploaded:app:1"})).await?.expect(201)?.json();
    ensure!(made["image"]["reference"] == "uploaded:app:1" && made["template"] == "uploaded:app:1", "{made}");
    let asked = agent.now().creates.last().cloned().context("no create")?;
    ensure!(asked.image_id == image_id(&digest(&archive)) && asked.default_user == "app:staff", "{asked:?}");
    let recipe = "FROM uploaded:app:1\nRUN one $A\n";
    let build = built(&fixture, recipe).await?;
    ensure!(statuses(&build) == ["succeeded"; 2], "{build}");
    ensure!(statuses(&built(&fixture, recipe).await?) == ["cached"; 2]);
    ensure!(agent.now().imports.is_empty(), "a registry was asked");

    // It is not removed because nobody uses it for long, but only when nothing needs it.
    let old = "UPDATE images SET last_used_at = now() - interval '1 year'";
    fixture.sql(old).await?;
    let id = made["id"].as_str().context("no id")?;
    let refused = fixture.api.delete(&format!("{PATH}/app:1")).await?.expect_error(409, "conflict")?;
    ensure!(
        refused.json()["error"]["message"].as_str().is_some_and(|told| told.contains(id)),
        "{}",
        refused.json()
    );
    fixture.api.remove(id).await?;
    fixture.wait_value("SELECT count(*)::text FROM sandboxes WHERE status <> 'stopped'", "0").await?;
    ensure!(has(&fixture, &archive));
    fixture.api.delete(&format!("{PATH}/app:1")).await?.expect(204)?;
    wait_gone(&fixture, &archive).await?;
    ensure!(listed(&fixture).await? == json!([]));
    fixture.api.delete(&format!("{PATH}/app:1")).await?.expect_error(404, "not_found")?;
    let gone = fixture.api.post("/v1/sandboxes", &json!({"image": "uploaded:app:1"})).await?;
    gone.expect_error(404, "image_not_found")?;
    fixture.stop().await
}

/// What is refused leaves nothing, neither here nor on a host.
pub(crate) async fn an_upload_that_cannot_be_is_refused(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.image_upload_mb = 1;
    let fixture = builds::start(stores, name, 2, limits).await?;
    unauthorized::team(&fixture, "wrn_stranger", "NULL", "NULL").await?;
    for (query, archive, status, code) in [
        ("?name=a/b", vec![1], 400, "invalid_request"),
        ("?name=", vec![1], 400, "invalid_request"),
        ("?name=a&name=b", vec![1], 400, "invalid_request"),
        ("?tag=a", vec![1], 400, "invalid_request"),
        ("?name=a", vec![1; (1 << 20) + 1], 413, "too_large"),
    ] {
        let reply = load(&fixture, query, &archive).await?;
        reply.expect_error(status, code).with_context(|| query.to_owned())?;
    }
    ensure!(fixture.agents.iter().all(|agent| agent.now().loads.is_empty()));
    // The error of a host, and a name in the archive that cannot be one.
    for agent in &fixture.agents {
        agent.now().load_fails.push((ErrorCode::ImageDamaged, "layer 1 is not what its digest says"));
        agent.now().told_name = "-";
    }
    let damaged = load(&fixture, "?name=a", b"damaged").await?;
    ensure!(damaged.code() == "image_damaged", "{}", damaged.json());
    fixture.agents.iter().for_each(|agent| agent.now().load_fails.clear());
    load(&fixture, "", b"unnamed").await?.expect_error(400, "invalid_request")?;
    wait_gone(&fixture, b"unnamed").await?;
    // Another host is asked if one does not answer.
    for agent in &fixture.agents {
        agent.now().told_name = "told:1";
    }
    fixture.agents[0].now().load_fails.push((ErrorCode::HostUnavailable, "it is about to stop"));
    let told = load(&fixture, "", b"named").await?.expect(201)?.json();
    ensure!(told["reference"] == "uploaded:told:1", "{told}");

    // No other team has it, and a registry's account is no use.
    let stranger = fixture.api.with_key("wrn_stranger");
    let body = json!({"image": "uploaded:told:1"});
    stranger.post("/v1/sandboxes", &body).await?.expect_error(404, "image_not_found")?;
    stranger.delete(&format!("{PATH}/told:1")).await?.expect_error(404, "not_found")?;
    let body = json!({"image": "uploaded:told:1", "registry": {"username": "a", "password": "b"}});
    fixture.api.post("/v1/sandboxes", &body).await?.expect_error(400, "invalid_request")?;
    let recipe = json!({"name": "web", "recipe": "FROM uploaded:none\nRUN one\n"});
    let refused = fixture.api.post(builds::PATH, &recipe).await?.expect_error(404, "image_not_found")?;
    ensure!(refused.json()["error"]["message"].as_str().is_some_and(|told| told.contains("line 1, FROM")));
    fixture.stop().await
}

/// A name means what was uploaded last; builds that were asked for before go on with what it was.
pub(crate) async fn an_upload_replaces_the_one_of_its_name(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = builds::start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    load(&fixture, "?name=app", b"first").await?.expect(201)?;
    agent.snapshot_gate.forget_permits(crate::agent::OPEN);
    let id = ask(&fixture, &json!({"name": "web", "recipe": "FROM uploaded:app\nRUN one\n"})).await?;
    let begun = async || (!agent.now().creates.is_empty()).then_some(());
    wait_until("the build's sandbox", SOON, begun).await?;
    let second = load(&fixture, "?name=app:latest", b"second").await?.expect(201)?.json();
    ensure!(listed(&fixture).await? == json!([second]));
    agent.snapshot_gate.add_permits(crate::agent::OPEN);
    wait(&fixture, &id, "succeeded").await?;
    let from = agent.now().creates.iter().map(|asked| asked.image_id.clone()).collect::<Vec<_>>();
    ensure!(from == [image_id(&digest(b"first"))], "{from:?}");
    // Nothing needs the first one any more.
    wait_gone(&fixture, b"first").await?;
    ensure!(has(&fixture, b"second"));
    let moved = built(&fixture, "FROM uploaded:app\nRUN one\n").await?;
    ensure!(builds::misses(&moved)[1] == "base digest moved", "{moved}");
    fixture.stop().await
}

/// An upload that was told to be there stays there, although the image was being removed when it came.
pub(crate) async fn an_upload_that_is_being_removed_is_made_again(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = builds::start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    let (image, host) = (image_id(&digest(b"again")), agent.id.uuid());
    let removal = format!("INSERT INTO image_removals VALUES ('{image}', '{host}', now() + interval '5 s')");
    fixture.sql(&removal).await?;
    load(&fixture, "?name=app", b"again").await?.expect(201)?;
    ensure!(agent.now().loads.len() == 2, "{:?}", agent.now().loads);
    ensure!(has(&fixture, b"again"), "it was removed");
    // Whatever the upkeep does meanwhile.
    for _ in 0..3 {
        fixture.api.delete(&format!("{PATH}/app")).await?.expect(204)?;
        load(&fixture, "?name=app", b"again").await?.expect(201)?;
        fixture.wait_value("SELECT count(*)::text FROM doomed_images", "0").await?;
        ensure!(has(&fixture, b"again"), "it was removed");
    }
    fixture.api.delete(&format!("{PATH}/app")).await?.expect(204)?;
    wait_gone(&fixture, b"again").await?;
    fixture.wait_value("SELECT (max(ends_at) < now())::text FROM image_removals", "true").await?;
    fixture.stop().await
}
