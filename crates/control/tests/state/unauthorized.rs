// SPDX-License-Identifier: Apache-2.0
//! Every operation of the OpenAPI document, called by those who may not: without a credential, with credentials that are not
//! valid, and with a key of another team.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use wrenn_control::Limits;

use crate::{
    fixture::Fixture,
    stores::Stores,
    walk::{self, Operation, Owned},
};

/// Time without a byte after which an event stream counts as silent.
const SILENCE: Duration = Duration::from_millis(500);

pub(crate) async fn no_operation_serves_those_who_may_not(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let owned = walk::owned(&fixture).await?;
    let (document, operations) = walk::document(&fixture).await?;
    for (number, operation) in operations.iter().enumerate() {
        let checked = check(&fixture, &document, operation, &owned, number).await;
        checked.with_context(|| format!("{} {}", operation.method, operation.path))?;
    }
    let alive = fixture.record(&owned.sandbox).await?;
    ensure!(alive["status"] == "running", "it was changed: {alive}");
    let template = "SELECT name || ':' || tag || version FROM template_tags
        WHERE team_id = (SELECT team_id FROM sandboxes ORDER BY created_at LIMIT 1)";
    let template = fixture.value(template).await?;
    ensure!(template == "web:latest1", "the template was changed: {template:?}");
    let team = fixture.value("SELECT name FROM teams WHERE name = 'default' AND deleted_at IS NULL").await?;
    ensure!(team == "default", "the team was changed");
    fixture.stop().await
}

async fn check(
    fixture: &Fixture,
    document: &Value,
    operation: &Operation,
    owned: &Owned,
    number: usize,
) -> Result<()> {
    let ask = |key: &str| walk::request(document, operation, &fixture.api.with_key(key), owned);
    if operation.facts["security"].as_array().context("no security")?.is_empty() {
        // Examples are of nobody: what is open refuses them itself, and never for want of a credential.
        let reply = fixture.api.send(ask("")?).await?;
        ensure!(
            reply.status < 500 || reply.code() == "mail_unavailable",
            "status {}: {}",
            reply.status,
            reply.json()
        );
        ensure!(operation.permission().is_none(), "it is open and names a permission");
        return Ok(());
    }
    ensure!(operation.permission().is_some_and(|name| name.contains('.')), "it names no permission");
    let [revoked, of_deleted_team, expired] =
        ["revoked", "deleted", "expired"].map(|kind| format!("wrn_{kind}{number}"));
    team(fixture, &revoked, "now()", "NULL").await?;
    team(fixture, &of_deleted_team, "NULL", "now()").await?;
    team(fixture, &expired, "NULL", "NULL").await?;
    let past = "UPDATE api_keys SET expires_at = now() - interval '1 second'";
    fixture.sql(&format!("{past} WHERE name = '{expired}'")).await?;
    for key in ["", "garbage", "wrn_00000000000000000000000000000000", &revoked, &of_deleted_team, &expired] {
        let reply = fixture.api.send(ask(key)?).await?;
        reply.expect_error(401, "unauthorized").with_context(|| format!("with the key {key:?}"))?;
    }
    for token in ["garbage", "a.b.c", "eyJhbGciOiJub25lIiwia2lkIjoiMSJ9.e30."] {
        let reply = fixture.api.send(ask("")?.bearer_auth(token)).await?;
        reply.expect_error(401, "unauthorized").with_context(|| format!("with the token {token:?}"))?;
    }
    let reply = fixture
        .api
        .send(ask("")?.header("Cookie", "wrenn_session=garbage").header("X-CSRF-Token", "x"))
        .await?;
    reply.expect_error(401, "unauthorized").context("with a cookie")?;
    let reply = fixture.api.send(ask("")?.query(&[("ticket", "garbage")])).await?;
    reply.expect_error(401, "unauthorized").context("with a ticket")?;
    let stranger = format!("wrn_stranger{number}");
    team(fixture, &stranger, "NULL", "NULL").await?;
    as_stranger(fixture, operation, ask(&stranger)?, &stranger, owned)
        .await
        .context("with another team's key")
}

/// Creates a team with a key, each of which may be revoked or deleted.
pub(crate) async fn team(fixture: &Fixture, key: &str, revoked_at: &str, deleted_at: &str) -> Result<()> {
    let statement = format!(
        "WITH team AS (INSERT INTO teams (id, name, deleted_at) VALUES (gen_random_uuid(), '{key}', {deleted_at}) RETURNING id)
         INSERT INTO api_keys (id, team_id, name, prefix, secret_sha256, revoked_at)
         SELECT gen_random_uuid(), id, '{key}', 'wrn_', sha256('{key}'::bytea), {revoked_at} FROM team"
    );
    fixture.sql(&statement).await
}

/// Checks that another team sees and changes nothing of the owner's.
async fn as_stranger(
    fixture: &Fixture,
    operation: &Operation,
    request: RequestBuilder,
    key: &str,
    owned: &Owned,
) -> Result<()> {
    let stranger = fixture.api.with_key(key);
    let permission = operation.permission().context("no permission")?;
    // Only administrators may, or only users, for whatever is in the path; and no key deletes its team.
    let never = ["account.self", "platform.admin"].contains(&permission);
    if never {
        let reply = stranger.send(request).await?.expect_error(403, "forbidden")?;
        ensure!(reply.json()["error"]["message"].as_str().is_some_and(|told| told.contains(permission)));
        return Ok(());
    }
    ensure!(!operation.path.starts_with("/v1/admin/"), "a team may have {permission}");
    // What is in the path, or of whose sandbox it makes something, is another team's.
    if operation.path.contains('{') || operation.path == "/v1/snapshots" && operation.method == Method::POST {
        stranger.send(request).await?.expect_error(404, "not_found")?;
        return Ok(());
    }
    if operation.is_stream() {
        let silent = is_silent(request.header("Last-Event-ID", "0")).await?;
        ensure!(silent, "it gets events");
        let owner = fixture.api.request(Method::GET, &operation.path).header("Last-Event-ID", "0");
        ensure!(!is_silent(owner).await?, "the owner gets none either");
        return Ok(());
    }
    let reply = stranger.send(request).await?;
    // Some examples need what this server has not, such as mail.
    if !(200..300).contains(&reply.status) {
        ensure!(
            reply.status < 500 || reply.code() == "channel_failed",
            "status {}: {}",
            reply.status,
            reply.json()
        );
        return Ok(());
    }
    let text = String::from_utf8_lossy(&reply.bytes).into_owned();
    for id in [&owned.sandbox, &owned.build, &owned.team] {
        ensure!(!text.contains(id.as_str()), "it sees {text}");
    }
    let reply = reply.json();
    // It has built nothing.
    if operation.path.ends_with("/cache") {
        ensure!(reply["results"] == 0, "it removes {reply}");
    }
    // What it makes is its own.
    let made = reply["id"].as_str().filter(|_| operation.method == Method::POST);
    if operation.path == "/v1/images" && operation.method == Method::POST {
        ensure!(reply["uploaded"] == true, "it made {reply}");
        let all = fixture.api.get(&operation.path).await?.expect(200)?.json();
        ensure!(all == serde_json::json!([]), "the owner sees {all}");
    } else if let Some(made) = made {
        fixture.api.get(&format!("{}/{made}", operation.path)).await?.expect_error(404, "not_found")?;
    }
    // The platform's templates are for everybody.
    if operation.path == "/v1/templates" {
        let foreign = reply.as_array().is_some_and(|all| all.iter().any(|one| one["platform"] != true));
        ensure!(reply.is_array() && !foreign, "it sees {reply}");
    }
    Ok(())
}

/// Returns whether a stream sends nothing for a while.
async fn is_silent(request: RequestBuilder) -> Result<bool> {
    let mut response = request.send().await?;
    ensure!(response.status() == 200, "status {}", response.status());
    Ok(tokio::time::timeout(SILENCE, response.chunk()).await.is_err())
}
