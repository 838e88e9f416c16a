// SPDX-License-Identifier: Apache-2.0
//! Cases of invalid input: it is rejected with a helpful error, without side effects.

use std::sync::Arc;

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_control::Limits;
use wrenn_testkit::Reply;

use crate::{fixture::Fixture, stores::Stores};

const NOBODY: &str = "sb0000000000000000000000000";

/// Creates with invalid parameters.
pub(crate) async fn a_create_that_cannot_be(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let refused = [
        (json!({"vcpus": 0}), 400, "invalid_request"),
        (json!({"vcpus": -1}), 400, "invalid_request"),
        (json!({"vcpus": "two"}), 400, "invalid_request"),
        (json!({"memory_mb": 0}), 400, "invalid_request"),
        (json!({"disk_size_mb": 1}), 400, "invalid_request"),
        (json!({"memory_mb": 1_000_000}), 409, "exceeds_capacity"),
        (json!({"surprise": true}), 400, "invalid_request"),
        (json!({"template": "../../etc"}), 400, "invalid_request"),
        (json!({"template": "no-such-template"}), 404, "not_found"),
        (json!([]), 400, "invalid_request"),
        (Value::Null, 400, "invalid_request"),
    ];
    for (body, status, code) in refused {
        let reply = fixture.api.post("/v1/sandboxes", &body).await?;
        reply.expect_error(status, code).map_err(|error| error.context(body.to_string()))?;
    }
    let empty = fixture.api.request(Method::POST, "/v1/sandboxes").header("content-type", "application/json");
    fixture.api.send(empty).await?.expect_error(400, "invalid_request")?;
    let many: serde_json::Map<_, _> = (0..10_000).map(|i| (format!("V{i}"), json!("x"))).collect();
    fixture
        .api
        .post("/v1/sandboxes", &json!({ "envs": many }))
        .await?
        .expect_error(400, "invalid_request")?;
    fixture.stop().await
}

/// Malformed and unknown ids; unknown methods and paths.
pub(crate) async fn ids_of_nobody(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let nobody = format!("/v1/sandboxes/{NOBODY}");
    fixture.api.get(&nobody).await?.expect_error(404, "not_found")?;
    fixture.api.delete(&nobody).await?.expect_error(404, "not_found")?;
    // What could be names.
    for id in ["x", "sb", "sbzzzzzzzzzzzzzzzzzzzzzzzzz", "team0000000000000000000000000"] {
        fixture.api.get(&format!("/v1/sandboxes/{id}")).await?.expect_error(404, "not_found")?;
    }
    for id in ["sb%00", "..%2f..", "-x", "A"] {
        fixture.api.get(&format!("/v1/sandboxes/{id}")).await?.expect_error(400, "invalid_request")?;
    }
    fixture.api.get("/v1/nothing").await?.expect_error(404, "not_found")?;
    let put = fixture.api.request(Method::PUT, "/v1/sandboxes");
    fixture.api.send(put).await?.expect_error(405, "method_not_allowed")?;
    fixture.stop().await
}

/// Sends a create with a raw body.
async fn create_raw(fixture: &Fixture, kind: &str, body: Vec<u8>) -> Result<Reply> {
    let request = fixture.api.request(Method::POST, "/v1/sandboxes").header("content-type", kind);
    fixture.api.send(request.body(body)).await
}

/// Bodies that are too large, have another content type, or are invalid JSON.
pub(crate) async fn bodies_that_are_not_taken(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let json = "application/json";
    let large = format!(r#"{{"envs":{{"A":"{}"}}}}"#, "x".repeat(2 << 20));
    create_raw(&fixture, json, large.into_bytes()).await?.expect_error(413, "too_large")?;
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let reply = create_raw(&fixture, kind, b"{}".to_vec()).await?;
        reply.expect_error(415, "unsupported_media_type").map_err(|error| error.context(kind.to_owned()))?;
    }
    let deep = [b"{\"envs\":".as_slice(), &b"[".repeat(100_000)].concat();
    let closed = [b"[".repeat(5000), b"]".repeat(5000)].concat();
    let no_text = b"{\"template\":\"\xff\xfe\"}".to_vec();
    let half_a_pair = br#"{"template":"\ud800"}"#.to_vec();
    let twice = br#"{"vcpus":1,"vcpus":2}"#.to_vec();
    for body in [deep, closed, no_text, half_a_pair, twice, b"{".to_vec(), b"{} {}".to_vec(), vec![0; 64]] {
        let begin = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let reply = create_raw(&fixture, json, body).await?;
        reply.expect_error(400, "invalid_request").map_err(|error| error.context(begin))?;
    }
    // A charset parameter is allowed.
    create_raw(&fixture, "application/json; charset=utf-8", b"{\"vcpus\":0}".to_vec())
        .await?
        .expect_error(400, "invalid_request")?;
    fixture.stop().await
}

/// Event ids that no stream has are rejected.
pub(crate) async fn a_place_that_is_none_is_refused(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    for id in ["x", "$", "1-", "-1", "1-2-3", "1 2", "99999999999999999999999", "", "0-*"] {
        let request = fixture.api.request(Method::GET, "/v1/events/stream").header("Last-Event-ID", id);
        // A stream opened by mistake would never end.
        let response = request.send().await?;
        ensure!(response.status() == 400, "Last-Event-ID {id:?}: {}", response.status());
    }
    fixture.stop().await
}
