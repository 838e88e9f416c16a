// SPDX-License-Identifier: Apache-2.0
//! Invalid input: rejected with a helpful error, without side effects.

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

/// Creates with invalid parameters.
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

/// Malformed and unknown ids; unknown methods and paths.
pub(crate) async fn ids_of_nobody(stack: Arc<Stack>) -> Result<()> {
    let nobody = format!("/v1/sandboxes/{NOBODY}");
    stack.api.get(&nobody).await?.expect_error(404, "not_found")?;
    stack.api.delete(&nobody).await?.expect_error(404, "not_found")?;
    // What could be names.
    for id in ["x", "sb", "sbzzzzzzzzzzzzzzzzzzzzzzzzz", "team0000000000000000000000000"] {
        stack.api.get(&format!("/v1/sandboxes/{id}")).await?.expect_error(404, "not_found")?;
    }
    for id in ["sb%00", "..%2f..", "-x", "A"] {
        stack.api.get(&format!("/v1/sandboxes/{id}")).await?.expect_error(400, "invalid_request")?;
    }
    stack.api.get("/v1/nothing").await?.expect_error(404, "not_found")?;
    let put = stack.api.request(Method::PUT, "/v1/sandboxes");
    stack.api.send(put).await?.expect_error(405, "method_not_allowed")?;
    Ok(())
}

/// Invalid paths and commands.
pub(crate) async fn paths_that_cannot_be(stack: Arc<Stack>) -> Result<()> {
    let id = stack.borrow_sandbox().await?;
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
    for (body, code) in [
        (json!({"cmd": "no-such-command"}), "program_not_found"),
        (json!({"cmd": "true", "cwd": "/no/such/directory"}), "directory_not_found"),
        (json!({"cmd": "true", "user": "nobody-of-this-name"}), "user_not_found"),
    ] {
        let reply = stack.api.post(&exec, &body).await?;
        reply.expect_error(404, code).map_err(|error| error.context(body.to_string()))?;
    }
    stack.give_back(id);
    Ok(())
}

/// Sends a create with a raw body.
async fn create_raw(stack: &Stack, kind: &str, body: Vec<u8>) -> Result<wrenn_testkit::Reply> {
    let request = stack.api.request(Method::POST, "/v1/sandboxes").header("content-type", kind);
    stack.api.send(request.body(body)).await
}

/// Bodies that are too large, have another content type, or are invalid JSON.
pub(crate) async fn bodies_that_are_not_taken(stack: Arc<Stack>) -> Result<()> {
    let json = "application/json";
    let large = format!(r#"{{"envs":{{"A":"{}"}}}}"#, "x".repeat(2 << 20));
    create_raw(&stack, json, large.into_bytes()).await?.expect_error(413, "too_large")?;
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let reply = create_raw(&stack, kind, b"{}".to_vec()).await?;
        reply.expect_error(415, "unsupported_media_type").map_err(|error| error.context(kind.to_owned()))?;
    }
    let deep = [b"{\"envs\":".as_slice(), &b"[".repeat(100_000)].concat();
    let closed = [b"[".repeat(5000), b"]".repeat(5000)].concat();
    let no_text = b"{\"template\":\"\xff\xfe\"}".to_vec();
    let half_a_pair = br#"{"template":"\ud800"}"#.to_vec();
    let twice = br#"{"vcpus":1,"vcpus":2}"#.to_vec();
    for body in [deep, closed, no_text, half_a_pair, twice, b"{".to_vec(), b"{} {}".to_vec(), vec![0; 64]] {
        let begin = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let reply = create_raw(&stack, json, body).await?;
        reply.expect_error(400, "invalid_request").map_err(|error| error.context(begin))?;
    }
    // A charset parameter is allowed.
    create_raw(&stack, "application/json; charset=utf-8", b"{\"vcpus\":0}".to_vec())
        .await?
        .expect_error(400, "invalid_request")?;
    Ok(())
}

/// Environments within the limits work, larger ones are rejected.
pub(crate) async fn environments_at_their_bounds(stack: Arc<Stack>) -> Result<()> {
    let refused = [
        json!({"A": "x".repeat(1 << 20)}),
        json!({"A": "x".repeat(128 << 10)}),
        json!({"": "x"}),
        json!({"A=B": "x"}),
        json!({"A": "\u{0}"}),
        json!({"A": 1}),
        (0..1025).map(|i| (format!("V{i}"), json!("x"))).collect::<serde_json::Map<_, _>>().into(),
    ];
    for envs in &refused {
        let begin: String = envs.to_string().chars().take(60).collect();
        let reply = stack.api.post("/v1/sandboxes", &json!({ "envs": envs })).await?;
        reply.expect_error(400, "invalid_request").map_err(|error| error.context(begin))?;
    }
    let mut most: serde_json::Map<_, _> =
        (0..1023).map(|i| (format!("V{i}"), json!(i.to_string()))).collect();
    most.insert("LONG".to_owned(), json!("x".repeat((128 << 10) - 6)));
    let id = stack.api.create(&json!({"envs": most, "memory_mb": 256})).await?;
    let ran = stack.api.exec(&id, &["sh", "-c", "printf %s \"$LONG\" | wc -c; echo $V0 $V1022"]).await?;
    anyhow::ensure!(ran["stdout"] == "131066\n0 1022\n", "{ran}");
    let exec = format!("/v1/sandboxes/{id}/exec");
    for envs in refused {
        let reply = stack.api.post(&exec, &json!({"cmd": "true", "envs": envs})).await?;
        reply.expect_error(400, "invalid_request")?;
    }
    stack.api.remove(&id).await?;
    Ok(())
}
