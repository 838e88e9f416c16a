//! Input that must be refused with a helpful answer, and leave nothing behind.

use std::sync::Arc;

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_testkit::Stack;

const NOBODY: &str = "sb0000000000000000000000000";

fn concrete(path: &str) -> String {
    path.replace("{id}", NOBODY)
}

/// Walks the OpenAPI document, so that a new endpoint cannot be forgotten.
pub(crate) async fn every_endpoint_wants_a_key(stack: Arc<Stack>) -> Result<()> {
    let document = stack.api.get("/openapi.json").await?.expect(200)?.json();
    let open = ["/health", "/metrics", "/openapi.json", "/openapi.yaml"];
    let paths = document["paths"].as_object().cloned().unwrap_or_default();
    let mut walked = 0;
    for (path, methods) in &paths {
        if open.contains(&path.as_str()) {
            continue;
        }
        for method in methods.as_object().into_iter().flatten().map(|(method, _)| method.to_uppercase()) {
            let method = Method::from_bytes(method.as_bytes())?;
            for key in ["", "wrn_00000000000000000000000000000000", "x"] {
                let api = stack.api.with_key(key);
                let request = api.request(method.clone(), &concrete(path));
                let reply = api.send(request.json(&json!({}))).await?;
                anyhow::ensure!(reply.status == 401, "{method} {path} with key {key:?}: {}", reply.json());
                reply.expect_error(401, "unauthorized")?;
            }
            walked += 1;
        }
    }
    anyhow::ensure!(walked >= 8, "only {walked} endpoints in the document");
    Ok(())
}

/// Creates that cannot be.
pub(crate) async fn a_create_that_cannot_be(stack: Arc<Stack>) -> Result<()> {
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
        let reply = stack.api.post("/v1/sandboxes", &body).await?;
        reply.expect_error(status, code).map_err(|error| error.context(body.to_string()))?;
    }
    let empty = stack.api.request(Method::POST, "/v1/sandboxes").header("content-type", "application/json");
    stack.api.send(empty).await?.expect_error(400, "invalid_request")?;
    let many: serde_json::Map<_, _> = (0..10_000).map(|i| (format!("V{i}"), json!("x"))).collect();
    stack.api.post("/v1/sandboxes", &json!({ "envs": many })).await?.expect_error(400, "invalid_request")?;
    Ok(())
}

/// Ids that are malformed or belong to nobody; methods and paths that do not exist.
pub(crate) async fn ids_of_nobody(stack: Arc<Stack>) -> Result<()> {
    let nobody = format!("/v1/sandboxes/{NOBODY}");
    stack.api.get(&nobody).await?.expect_error(404, "not_found")?;
    stack.api.delete(&nobody).await?.expect_error(404, "not_found")?;
    for id in ["x", "sb", "sbzzzzzzzzzzzzzzzzzzzzzzzzz", "team0000000000000000000000000", "sb%00", "..%2f.."]
    {
        stack.api.get(&format!("/v1/sandboxes/{id}")).await?.expect_error(400, "invalid_request")?;
    }
    stack.api.get("/v1/nothing").await?.expect_error(404, "not_found")?;
    let put = stack.api.request(Method::PUT, "/v1/sandboxes");
    stack.api.send(put).await?.expect_error(405, "method_not_allowed")?;
    Ok(())
}

/// Paths and commands that no guest can take.
pub(crate) async fn paths_that_cannot_be(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({})).await?;
    let long = "x".repeat(5000);
    for path in ["", "a\0b", long.as_str()] {
        stack.api.read(&id, path).await?.expect_error(400, "invalid_request")?;
        stack.api.write(&id, path, b"x".to_vec()).await?.expect_error(400, "invalid_request")?;
    }
    let exec = format!("/v1/sandboxes/{id}/exec");
    for body in [
        json!({"cmd": ""}),
        json!({"cmd": "true", "timeout_sec": 0}),
        json!({"cmd": "a\u{0}b"}),
        json!({"args": []}),
        json!({"cmd": "true", "cwd": long}),
    ] {
        let reply = stack.api.post(&exec, &body).await?;
        reply.expect_error(400, "invalid_request").map_err(|error| error.context(body.to_string()))?;
    }
    for body in [
        json!({"cmd": "no-such-command"}),
        json!({"cmd": "true", "cwd": "/no/such/directory"}),
        json!({"cmd": "true", "user": "nobody-of-this-name"}),
    ] {
        let reply = stack.api.post(&exec, &body).await?;
        reply.expect_error(404, "not_found").map_err(|error| error.context(body.to_string()))?;
    }
    stack.api.remove(&id).await?;
    Ok(())
}
