// SPDX-License-Identifier: Apache-2.0
//! Cases of what is a use of a sandbox, which puts its pause off, and what is none: the table in docs/lifecycle.md.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use reqwest::{
    Method, RequestBuilder, Response,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use wrenn_control::Limits;
use wrenn_testkit::{Api, Events};

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// Timeout of the sandboxes, and for how long they were not used before a request; in seconds.
const TIMEOUT: i64 = 3600;
const UNUSED: i64 = 600;

/// What a request sends.
#[derive(Clone, Copy)]
pub(crate) enum Sends {
    Nothing,
    Json(&'static str),
    /// The content of a file.
    Content,
    /// A form with a file.
    Form,
    /// The wish to go on with another protocol.
    Upgrade(&'static str),
}
use Sends::{Content, Json, Nothing, Upgrade};

/// Requests that are uses: method and path below that of the sandbox, what they send, and the status of the answer.
const USES: [(&str, Sends, u16); 28] = [
    // Commands.
    ("POST /exec", Json(r#"{"cmd": "true"}"#), 200),
    ("POST /exec", Json(r#"{"cmd": "sleep", "background": true}"#), 202),
    ("GET /exec/stream", Upgrade("websocket"), 101),
    // Processes.
    ("GET /processes", Nothing, 200),
    ("DELETE /processes/7", Nothing, 200),
    ("GET /processes/7/stream", Upgrade("websocket"), 101),
    // Terminals.
    ("GET /pty", Upgrade("websocket"), 101),
    ("GET /pty/7/screen", Nothing, 200),
    // Connections to ports.
    ("GET /ports/8000/stream", Upgrade("tcp"), 101),
    // Files that are read,
    ("POST /files/read", Json(r#"{"path": "a"}"#), 200),
    ("POST /files/stream/read", Json(r#"{"path": "a"}"#), 200),
    ("GET /files/content?path=a", Nothing, 200),
    ("GET /files/archive?path=a", Nothing, 200),
    ("GET /files/watch?path=a", Upgrade("websocket"), 101),
    // written,
    ("POST /files/write", Sends::Form, 204),
    ("POST /files/stream/write", Sends::Form, 204),
    ("PUT /files/content?path=a", Content, 200),
    ("PUT /files/archive?path=a", Content, 200),
    ("POST /files/mkdir", Json(r#"{"path": "a"}"#), 200),
    ("POST /files/copy", Json(r#"{"source": "a", "destination": "b"}"#), 200),
    ("POST /files/permissions", Json(r#"{"path": "a", "mode": "0600"}"#), 200),
    // listed,
    ("POST /files/list", Json(r#"{"path": "a"}"#), 200),
    ("POST /files/stat", Json(r#"{"path": "a"}"#), 200),
    // moved or removed.
    ("POST /files/move", Json(r#"{"source": "a", "destination": "b"}"#), 200),
    ("POST /files/remove", Json(r#"{"path": "a"}"#), 204),
    ("POST /ping", Json("{}"), 204),
    ("POST /resume", Json("{}"), 200),
    ("PATCH ", Json(r#"{"timeout_sec": 3600}"#), 200),
];

/// Requests through the proxy: method and path at the port, what they send, and the status of the answer.
const USES_OF_PORTS: [(&str, Sends, u16); 2] =
    [("GET /", Nothing, 200), ("GET /", Upgrade("websocket"), 101)];

/// Builds a request of a method and a path below `base`.
pub(crate) fn request(api: &Api, base: &str, what: &str, sends: Sends) -> Result<RequestBuilder> {
    let (method, path) = what.split_once(' ').context("no method")?;
    let request = api.request(method.parse::<Method>()?, &format!("{base}{path}"));
    Ok(match sends {
        Nothing => request,
        Json(body) => request.header("Content-Type", "application/json").body(body),
        Content => request.body("content"),
        Sends::Form => request.multipart(
            Form::new().text("path", "a").part("file", Part::bytes(b"content".as_slice()).file_name("a")),
        ),
        Upgrade(protocol) => request
            .header("Connection", "upgrade")
            .header("Upgrade", protocol)
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    })
}

/// Sends a request, and returns the response when its head is there. What is upgraded, or not read to its end, lasts until
/// it is dropped.
pub(crate) async fn begin(request: RequestBuilder, status: u16) -> Result<Response> {
    let response = timeout(SOON, request.send()).await.context("no answer")??;
    let got = response.status().as_u16();
    if got != status {
        bail!("status {got} instead of {status}: {}", response.text().await?);
    }
    Ok(response)
}

/// Returns a client of a port of a sandbox through the proxy. The path names the port: its host has no address here.
pub(crate) async fn of_port(fixture: &Fixture, id: &str) -> Result<Api> {
    let told = fixture.api.get(&format!("/v1/sandboxes/{id}/ports/8000")).await?.expect(200)?.json();
    let url = told["url"].as_str().with_context(|| format!("no URL: {told}"))?;
    let (_, port) = url.rsplit_once(':').with_context(|| format!("no port of the proxy: {url}"))?;
    let (host, _) = fixture.api.url().rsplit_once(':').context("no port of the API")?;
    Ok(Api::new(&format!("{host}:{port}/8000-{id}"), ""))
}

/// Creates a sandbox with a timeout, whose ports everybody may use.
async fn create(fixture: &Fixture) -> Result<String> {
    fixture.api.create(&json!({"memory_mb": 256, "timeout_sec": TIMEOUT, "public_ports": true})).await
}

/// Makes all sandboxes unused for a while, yet not for their timeout.
async fn leave_unused(fixture: &Fixture) -> Result<()> {
    let earlier = format!("now() - interval '{UNUSED} seconds'");
    fixture.sql(&format!("UPDATE sandboxes SET last_active_at = {earlier}")).await
}

fn time(record: &Value, field: &str) -> Result<DateTime<Utc>> {
    Ok(record[field].as_str().with_context(|| format!("no {field}: {record}"))?.parse()?)
}

/// Checks that a running sandbox was just used, and has its whole timeout left.
fn check_used(record: &Value) -> Result<()> {
    let (used, expires) = (time(record, "last_active_at")?, time(record, "expires_at")?);
    // Half of the time is enough for any request.
    ensure!((Utc::now() - used).num_seconds() < UNUSED / 2, "its use was not noted: {record}");
    ensure!((expires - used).num_seconds() == TIMEOUT, "its pause was not put off: {record}");
    Ok(())
}

pub(crate) async fn each_use_puts_the_pause_off(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    // One sandbox for each use, because its end is noted too, a moment later.
    let ids = try_join_all(USES.iter().map(|_| create(&fixture))).await?;
    leave_unused(&fixture).await?;
    for ((what, sends, status), id) in USES.into_iter().zip(&ids) {
        let request = request(&fixture.api, &format!("/v1/sandboxes/{id}"), what, sends)?;
        begin(request, status).await.with_context(|| what.to_owned())?;
        check_used(&fixture.record(id).await?).with_context(|| what.to_owned())?;
    }
    fixture.stop().await
}

pub(crate) async fn each_use_of_a_port_puts_the_pause_off(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    for (what, sends, status) in USES_OF_PORTS {
        let id = create(&fixture).await?;
        let port = of_port(&fixture, &id).await?;
        leave_unused(&fixture).await?;
        begin(request(&port, "", what, sends)?, status).await.with_context(|| format!("{what}: {status}"))?;
        check_used(&fixture.record(&id).await?).with_context(|| format!("{what}: {status}"))?;
    }
    fixture.stop().await
}

/// The timeout begins when the sandbox runs, after its create and after its resume.
pub(crate) async fn a_create_and_a_resume_begin_the_timeout(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let id = create(&fixture).await?;
    let created = fixture.record(&id).await?;
    check_used(&created)?;
    ensure!(time(&created, "last_active_at")? >= time(&created, "started_at")?, "too early: {created}");
    fixture.pause(&id).await?;
    leave_unused(&fixture).await?;
    let path = format!("/v1/sandboxes/{id}/resume");
    check_used(&fixture.api.post(&path, &json!({})).await?.expect(200)?.json())?;
    check_used(&fixture.record(&id).await?)?;
    fixture.stop().await
}

/// Reads of what the control plane knows, event streams, metrics and health checks.
pub(crate) async fn what_is_no_use_puts_no_pause_off(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let id = fixture.api.create(&json!({"name": "web", "timeout_sec": TIMEOUT})).await?;
    leave_unused(&fixture).await?;
    let before = fixture.record(&id).await?;
    let check_unused = async || {
        let now = fixture.record(&id).await?;
        let times = |record: &Value| (record["last_active_at"].clone(), record["expires_at"].clone());
        ensure!(times(&now) == times(&before) && now["status"] == "running", "{before} became {now}");
        anyhow::Ok(())
    };
    let sandbox = format!("/v1/sandboxes/{id}");
    let (older, metrics) = (format!("/v1/capsules/{id}"), format!("{sandbox}/metrics?range=5m"));
    let beginning = &sandbox[..sandbox.len() - 1];
    for path in [
        sandbox.as_str(),
        &older,
        &metrics,
        beginning,
        "/v1/sandboxes/web",
        "/v1/sandboxes",
        "/v1/sandboxes?name=web&status=running",
        "/v1/events/stream",
        "/metrics",
        "/health",
    ] {
        begin(fixture.api.request(Method::GET, path), 200).await.with_context(|| path.to_owned())?;
        check_unused().await.with_context(|| path.to_owned())?;
    }
    let mut events = Events::open(&fixture.api, Some("0")).await?;
    events.until(&id, "sandbox.running").await?;
    check_unused().await.context("events")?;
    // The control plane asks the host for it all the time.
    fixture.rounds(fixture.agent(), 2).await?;
    check_unused().await.context("rounds of the reconciler")?;
    // So all of this could have been seen.
    fixture.api.post(&format!("{sandbox}/ping"), &json!({})).await?.expect(204)?;
    check_used(&fixture.record(&id).await?)?;
    fixture.stop().await
}
