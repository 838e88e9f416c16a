// SPDX-License-Identifier: Apache-2.0
//! Cases of creates that are repeated with their key.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_api::ErrorCode;
use wrenn_control::Limits;
use wrenn_rpc::fault::Of;
use wrenn_testkit::Reply;

use crate::{fixture::Fixture, stores::Stores};

fn id(reply: Reply) -> Result<String> {
    Ok(reply.expect(201)?.json()["id"].as_str().context("no id")?.to_owned())
}

/// The database fails while a created sandbox is recorded: the next request with the key returns that
/// sandbox.
pub(crate) async fn a_sandbox_that_was_made_is_found_again(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    fixture
        .sql(
            "CREATE FUNCTION away() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'away' USING ERRCODE = '57P01'; END $$;
             CREATE TRIGGER away BEFORE UPDATE ON sandboxes FOR EACH ROW WHEN (NEW.status <> OLD.status)
                 EXECUTE FUNCTION away()",
        )
        .await?;
    fixture.ask("made", "{}").await?.expect_error(503, "service_unavailable")?;
    ensure!(fixture.agent().now().sandboxes.len() == 1, "it was not made");
    fixture.sql("DROP TRIGGER away ON sandboxes").await?;
    let found = id(fixture.ask("made", "{}").await?)?;
    ensure!(fixture.agent().now().sandboxes.keys().eq([&found]), "another one: {found}");
    fixture.stop().await
}

/// The order of fields, spaces and defaults do not change a request.
pub(crate) async fn requests_are_the_same_by_their_meaning(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let first = id(fixture.ask("same", r#"{"memory_mb":256,"envs":{"A":"1","B":"2"}}"#).await?)?;
    for body in [
        r#"{"envs": {"B": "2", "A": "1"}, "memory_mb": 256}"#,
        r#"{"vcpus": 1, "template": "minimal", "memory_mb": 256.0, "envs": {"A": "1", "B": "2"}}"#,
    ] {
        let again = fixture.ask("same", body).await.and_then(id).with_context(|| body.to_owned())?;
        ensure!(again == first, "{body} made {again}");
    }
    let other = fixture.ask("same", r#"{"memory_mb":256,"envs":{"A":"2","B":"1"}}"#).await?;
    other.expect_error(409, "idempotency_request_mismatch")?;
    fixture.stop().await
}

/// The sandbox of the first request was deleted meanwhile: it is not returned.
pub(crate) async fn a_deleted_sandbox_is_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let first = id(fixture.ask("gone", "{}").await?)?;
    fixture.api.remove(&first).await?;
    let told = fixture.ask("gone", "{}").await?.expect_error(409, "idempotency_sandbox_deleted")?;
    ensure!(told.json().to_string().contains(&first), "{}", told.json());
    ensure!(fixture.agent().now().sandboxes.is_empty(), "another one was made");
    fixture.stop().await
}

/// A temporary failure frees the key; a permanent one is returned again.
pub(crate) async fn a_failed_create_frees_its_key(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let fail = |code, of| fixture.agent().now().create_fails.push((code, of));
    fail(ErrorCode::InsufficientStorage, Of::OF_HOST);
    fixture.ask("full", "{}").await?.expect_error(507, "insufficient_storage")?;
    let made = id(fixture.ask("full", "{}").await?)?;
    ensure!(id(fixture.ask("full", "{}").await?)? == made, "a third one");

    fail(ErrorCode::InvalidRequest, Of::OF_CALLER);
    for _ in 0..2 {
        fixture.ask("bad", "{}").await?.expect_error(400, "invalid_request")?;
    }
    let failed = fixture.api.get("/v1/sandboxes?status=error").await?.expect(200)?.json();
    // The one of "full" was replaced, and "bad" was tried once.
    ensure!(failed.as_array().map(Vec::len) == Some(1), "{failed}");
    ensure!(fixture.api.post("/v1/sandboxes", &json!({})).await?.status == 201, "the host is not left out");
    fixture.stop().await
}
