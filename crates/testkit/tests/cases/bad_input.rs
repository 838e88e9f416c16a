// SPDX-License-Identifier: Apache-2.0
//! Invalid input for a guest: rejected with a helpful error, without side effects.

use std::sync::Arc;

use anyhow::Result;
use serde_json::json;
use wrenn_testkit::Stack;

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
