// SPDX-License-Identifier: Apache-2.0
//! Cases of bodies of requests that change a sandbox.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::json;
use wrenn_control::Limits;

use crate::{fixture::Fixture, stores::Stores};

/// A field that an operation does not have is named, and the sandbox stays as it is, whether it runs or is paused.
pub(crate) async fn wrong_fields_are_refused_and_nothing_happens(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (runs, paused) = (fixture.create().await?, fixture.create().await?);
    fixture.pause(&paused).await?;
    for id in [&runs, &paused] {
        let (post, patch) = (Method::POST, Method::PATCH);
        let path = format!("/v1/sandboxes/{id}");
        let of = |operation: &str| format!("{path}/{operation}");
        let snapshot = format!(r#"{{"sandbox_id": "{id}", "name": "x", "memory": false}}"#);
        let table = [
            (&post, of("pause"), r#"{"memory": false}"#, "memory"),
            (&post, of("pause"), r#"{"timeout_sec": 5}"#, "timeout_sec"),
            (&post, of("ping"), r#"{"timeout_sec": 5}"#, "timeout_sec"),
            (&post, of("ping"), r#"{"id": null}"#, "id"),
            (&post, of("resume"), r#"{"memroy": false}"#, "memroy"),
            (&post, of("resume"), r#"{"timeout_sec": 5, "auto_resume": true}"#, "auto_resume"),
            (&patch, path.clone(), r#"{"timeout_sec": 5, "memory": true}"#, "memory"),
            (&patch, path.clone(), r#"{"auto_resume": true, "vcpus": 2}"#, "vcpus"),
            (&post, "/v1/snapshots".to_owned(), &snapshot, "memory"),
        ];
        let (row, calls) = (fixture.row(id).await?, fixture.agent().calls_of(id));
        let unchanged = async |what: &str| -> Result<()> {
            let (now, called) = (fixture.row(id).await?, fixture.agent().calls_of(id));
            ensure!(now == row && called == calls, "{what} changed {row} to {now}, by {called:?}");
            Ok(())
        };
        for (method, path, body, field) in &table {
            let what = format!("{method} {path} {body}");
            let reply = fixture.send_json((*method).clone(), path, body).await?;
            let told = reply.expect_error(400, "invalid_request").with_context(|| what.clone())?.json();
            let message = told["error"]["message"].as_str().unwrap_or_default();
            ensure!(message.contains(&format!("`{field}`")), "{what}: {message}");
            unchanged(&what).await?;
        }
        for (method, path, ..) in &table {
            for body in ["[]", "7", "true", r#""{}""#, "{", "{}{}"] {
                let what = format!("{method} {path} {body}");
                let reply = fixture.send_json((*method).clone(), path, body).await?;
                reply.expect_error(400, "invalid_request").with_context(|| what.clone())?;
                unchanged(&what).await?;
            }
            let reply = fixture.send((*method).clone(), path, Some(("text/plain", "{}"))).await?;
            reply.expect_error(415, "unsupported_media_type").with_context(|| path.clone())?;
            unchanged(path).await?;
        }
    }
    let snapshots = fixture.api.get("/v1/snapshots").await?.expect(200)?.json();
    ensure!(snapshots == json!([]), "{snapshots}");
    fixture.stop().await
}

/// No body, null and an empty object are the same to a pause, a resume and a ping.
pub(crate) async fn what_may_be_left_out_is_left_out_in_any_form(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let id = fixture.create().await?;
    let json = "application/json";
    let bodies = [
        None,
        Some((json, "")),
        Some((json, "null")),
        Some((json, "{}")),
        Some((json, " { }\n")),
        Some(("application/json; charset=utf-8", "{}")),
        Some(("text/plain", "")),
    ];
    for body in bodies {
        for (operation, status) in
            [("ping", 204), ("pause", 200), ("pause", 200), ("resume", 200), ("resume", 200)]
        {
            let reply = fixture.send(Method::POST, &format!("/v1/sandboxes/{id}/{operation}"), body).await?;
            reply.expect(status).with_context(|| format!("{operation} with {body:?}"))?;
        }
    }
    let calls = fixture.agent().calls_of(&id);
    ensure!(calls == ["pause", "resume"].repeat(bodies.len()), "{calls:?}");
    fixture.pause(&id).await?;
    for operation in ["pause", "resume", "ping"] {
        let path = format!("/v1/sandboxes/{id}/{operation}");
        for text in ["{}", "null"] {
            let reply = fixture.send(Method::POST, &path, Some(("text/plain", text))).await?;
            reply
                .expect_error(415, "unsupported_media_type")
                .with_context(|| format!("{operation}: {text}"))?;
        }
    }
    ensure!(fixture.record(&id).await?["status"] == "paused", "it was resumed");
    fixture.stop().await
}

/// What uses a paused sandbox is refused with the remedy.
pub(crate) async fn a_paused_sandbox_names_the_resume(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let id = fixture.create().await?;
    fixture.pause(&id).await?;
    for (operation, body) in [
        ("exec", json!({"cmd": "true"})),
        ("files/read", json!({"path": "/etc/hostname"})),
        ("ping", json!({})),
    ] {
        let reply = fixture.api.post(&format!("/v1/sandboxes/{id}/{operation}"), &body).await?;
        let told = reply.expect_error(409, "invalid_state").context(operation)?.json();
        let message = told["error"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains(&id) && message.contains("is paused: resume it"), "{operation}: {message}");
    }
    ensure!(fixture.agent().calls_of(&id) == ["pause"], "{:?}", fixture.agent().calls_of(&id));
    fixture.stop().await
}
