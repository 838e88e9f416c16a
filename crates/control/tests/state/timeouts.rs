// SPDX-License-Identifier: Apache-2.0
//! Cases of timeouts in requests, by what the response says of them.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use reqwest::Method;
use serde_json::Value;
use wrenn_control::Limits;

use crate::{fixture::Fixture, stores::Stores};

/// Maximum timeout, a year.
const MAX: i64 = 31_536_000;
/// Timeout of a sandbox before a request changes it.
const BEFORE: i64 = 600;

/// Bodies with a timeout, and the one that the sandbox has then; none if it stays as it was.
const TAKEN: [(&str, Option<i64>); 7] = [
    ("{}", None),
    (r#"{"timeout_sec": null}"#, None),
    (r#"{"timeout_sec": 0}"#, Some(0)),
    (r#"{"timeout_sec": 1}"#, Some(1)),
    (r#"{"timeout_sec": 60.0}"#, Some(60)),
    (r#"{"timeout_sec": 31535999}"#, Some(MAX - 1)),
    (r#"{"timeout_sec": 31536000}"#, Some(MAX)),
];
const REFUSED: [&str; 7] = ["-1", "31536001", "4294967296", "1e300", "0.5", "\"60\"", "true"];

/// Checks the timeout of a running sandbox, and its deadline.
fn check(sandbox: &Value, expected: i64) -> Result<()> {
    ensure!(sandbox["status"] == "running" && sandbox["timeout_sec"] == expected, "{sandbox}");
    if expected == 0 {
        ensure!(sandbox["expires_at"].is_null(), "it has a deadline: {sandbox}");
        return Ok(());
    }
    let time = |field: &str| -> Result<DateTime<Utc>> {
        Ok(sandbox[field].as_str().with_context(|| format!("no {field}: {sandbox}"))?.parse()?)
    };
    let until = time("expires_at")? - time("last_active_at")?;
    ensure!(until.num_milliseconds() == expected * 1000, "it is paused after {until}: {sandbox}");
    Ok(())
}

/// Sends each body that is refused, and checks that the error names the field and its bounds.
async fn refuses(fixture: &Fixture, method: Method, path: &str) -> Result<()> {
    for value in REFUSED {
        let body = format!(r#"{{"timeout_sec": {value}}}"#);
        let reply = fixture.send_json(method.clone(), path, &body).await?;
        let told = reply.expect_error(400, "invalid_request").with_context(|| body.clone())?.json();
        let message = told["error"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains("timeout_sec") && message.contains("0 to 31536000"), "{body}: {message}");
    }
    Ok(())
}

pub(crate) async fn creates(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    refuses(&fixture, Method::POST, "/v1/sandboxes").await?;
    ensure!(fixture.value("SELECT count(*)::text FROM sandboxes").await? == "0", "one was made");
    for (body, expected) in TAKEN {
        let reply = fixture.send_json(Method::POST, "/v1/sandboxes", body).await?;
        check(&reply.expect(201)?.json(), expected.unwrap_or(0)).with_context(|| body.to_owned())?;
    }
    fixture.stop().await
}

/// Of a paused sandbox and of a running one.
pub(crate) async fn resumes(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    for pauses in [true, false] {
        let id = fixture.create().await?;
        let path = format!("/v1/sandboxes/{id}/resume");
        for (body, expected) in TAKEN {
            prepare(&fixture, &id).await?;
            if pauses {
                fixture.pause(&id).await?;
            }
            let row = fixture.row(&id).await?;
            refuses(&fixture, Method::POST, &path).await?;
            ensure!(fixture.row(&id).await? == row, "a refused request changed {row}");
            let resumed = fixture.send_json(Method::POST, &path, body).await?.expect(200)?.json();
            check(&resumed, expected.unwrap_or(BEFORE))
                .with_context(|| format!("{body}, paused: {pauses}"))?;
        }
    }
    fixture.stop().await
}

/// Of a running sandbox. A timeout that stays as it is does not begin anew.
pub(crate) async fn updates(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let id = fixture.create().await?;
    let path = format!("/v1/sandboxes/{id}");
    for (body, expected) in TAKEN {
        let before = prepare(&fixture, &id).await?;
        refuses(&fixture, Method::PATCH, &path).await?;
        let updated = fixture.send_json(Method::PATCH, &path, body).await?.expect(200)?.json();
        check(&updated, expected.unwrap_or(BEFORE)).with_context(|| body.to_owned())?;
        let same = updated["last_active_at"] == before["last_active_at"];
        ensure!(same == expected.is_none(), "{body}: {before} became {updated}");
    }
    fixture.stop().await
}

/// Makes the sandbox run with the timeout that it has before.
async fn prepare(fixture: &Fixture, id: &str) -> Result<Value> {
    let path = format!("/v1/sandboxes/{id}/resume");
    let body = format!(r#"{{"timeout_sec": {BEFORE}}}"#);
    let resumed = fixture.send_json(Method::POST, &path, &body).await?.expect(200)?.json();
    check(&resumed, BEFORE)?;
    Ok(resumed)
}
