// SPDX-License-Identifier: Apache-2.0
//! Tests of the client against a server that behaves as the API documentation says.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::{
        FromRequest as _, Multipart, Path, Query, Request, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event as Sse, Sse as Stream},
    },
    routing::{delete, get, post, put},
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use wrenn_api::{
    BuildId, BuildStatus, CreateBuild, CreateSandbox, Encoding, ExecRequest, ExecResponse, FileWatchFrame,
    MetricsRange, SandboxId, SandboxStatus,
};
use wrenn_client::{
    BuildLogEvent, Client, Error, EventFilter, ProcessEvent, ReadOptions, SandboxFilter, WriteOptions,
};

#[derive(Clone, Default)]
struct Fake {
    connections: Arc<AtomicUsize>,
    written: Arc<Mutex<Vec<(String, usize)>>>,
}

fn sandbox() -> Value {
    let time = "2026-01-01T00:00:00Z";
    json!({ "id": SandboxId::new(), "status": "running", "template": "minimal", "vcpus": 1, "memory_mb": 512,
            "disk_size_mb": 5120, "created_at": time, "last_updated": time })
}

fn refused(status: u16, code: &str) -> Response {
    let body = json!({ "error": { "code": code, "message": format!("refused for {code}") } });
    let status = StatusCode::from_u16(status).unwrap();
    (status, [("x-request-id", "req-1")], Json(body)).into_response()
}

async fn create(headers: HeaderMap, Json(_): Json<Value>) -> Response {
    if headers.get("x-api-key").is_none_or(|key| key != "key") {
        return refused(401, "unauthorized");
    }
    assert_eq!(headers["idempotency-key"], "once");
    (StatusCode::CREATED, Json(sandbox())).into_response()
}

async fn list(Query(query): Query<Vec<(String, String)>>) -> Response {
    let cursor = query.iter().find(|(name, _)| name == "cursor");
    if query.iter().any(|(name, _)| name == "label") {
        let filters: Vec<_> = query.iter().filter(|(name, _)| name != "limit" && name != "cursor").collect();
        let expected = [
            ("status", "running"),
            ("status", "paused"),
            ("name", "web"),
            ("template", "minimal"),
            ("label", "a=b&c"),
            ("label", "d"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert!(filters.into_iter().eq(&expected), "{query:?}");
        let next = if cursor.is_none() { "two&=" } else { "" };
        return ([("x-next-cursor", next)], Json(json!([sandbox()]))).into_response();
    }
    let next = if cursor.is_none() { "two&=" } else { "" };
    if let Some((_, cursor)) = cursor {
        assert_eq!(cursor, "two&=");
    }
    ([("x-next-cursor", next)], Json(json!([sandbox(), sandbox()]))).into_response()
}

async fn write(
    State(fake): State<Fake>,
    Query(query): Query<Vec<(String, String)>>,
    body: Bytes,
) -> Response {
    assert_eq!(query[1..], [("user".to_owned(), "ann".to_owned()), ("mode".to_owned(), "0750".to_owned())]);
    fake.written.lock().unwrap().push((query[0].1.clone(), body.len()));
    Json(json!({ "size": body.len(), "sha256": "00" })).into_response()
}

async fn read(Query(query): Query<Vec<(String, String)>>, headers: HeaderMap) -> Response {
    if query[0] != ("path".to_owned(), "/big & ä".to_owned()) {
        return refused(404, "not_found");
    }
    let part = headers.get("range").is_some_and(|range| range == "bytes=1-2");
    if part {
        return (StatusCode::PARTIAL_CONTENT, "bc").into_response();
    }
    let pieces = stream::iter((0..64).map(|_| Ok::<_, Infallible>(Bytes::from(vec![7_u8; 65_536]))));
    axum::body::Body::from_stream(pieces).into_response()
}

async fn watch(Query(query): Query<Vec<(String, String)>>, upgrade: WebSocketUpgrade) -> Response {
    let wanted =
        [("path", "a & b"), ("recursive", "true")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(query, wanted);
    upgrade.on_upgrade(async |mut socket| {
        for frame in [
            json!({"type": "start"}),
            json!({"type": "rename", "name": "x"}),
            json!({"type": "overflow"}),
            json!({"type": "error", "data": "it was paused", "code": "invalid_state"}),
        ] {
            socket.send(Message::text(frame.to_string())).await.unwrap();
        }
    })
}

async fn metrics(Path(id): Path<SandboxId>, Query(query): Query<Vec<(String, String)>>) -> Response {
    assert_eq!(query, [("range".to_owned(), "2h".to_owned())]);
    let point = json!({ "timestamp_unix": 1, "cpu_pct": 12.5, "mem_bytes": 2, "disk_bytes": 3, "net_rx_bytes": 4,
                        "net_tx_bytes": 5, "guest_mem_used_bytes": 7, "of_a_later_server": 6 });
    Json(json!({ "sandbox_id": id, "range": "2h", "points": [point] })).into_response()
}

async fn health() -> Response {
    let body = json!({ "status": "degraded", "version": "1", "hosts_online": 0 });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

/// Sends one event and closes the stream.
async fn events(State(fake): State<Fake>, headers: HeaderMap) -> Response {
    fake.connections.fetch_add(1, Ordering::SeqCst);
    let last = headers.get("last-event-id").map_or(0, |id| id.to_str().unwrap().parse::<u32>().unwrap());
    let event = Sse::default().id((last + 1).to_string()).event("sandbox.running").data("{\"n\":1}");
    Stream::new(stream::iter([Ok::<_, Infallible>(event)])).into_response()
}

/// As many bytes as a command may be asked for by its only argument, each of them NUL.
async fn run(Json(request): Json<Value>) -> Response {
    let size = request["args"][0].as_str().unwrap().parse().unwrap();
    let answer = ExecResponse {
        sandbox_id: SandboxId::new(),
        cmd: "head".to_owned(),
        stdout: "\0".repeat(size),
        stderr: String::new(),
        exit_code: 0,
        timed_out: false,
        truncated: false,
        lost_bytes: 0,
        out_of_memory: false,
        killed: None,
        duration_ms: 1,
        encoding: Encoding::Utf8,
    };
    Json(answer).into_response()
}

fn build(id: BuildId, status: &str) -> Value {
    json!({ "id": id, "name": "web", "tag": "next", "status": status, "attempt": 1, "steps": [],
            "created_at": "2026-01-01T00:00:00Z" })
}

/// Takes a build as JSON, or as a form with what it is before its files.
async fn create_build(State(fake): State<Fake>, request: Request) -> Response {
    let (new, size) = if request.headers()["content-type"] == "application/json" {
        let Json(new) = Json::<CreateBuild>::from_request(request, &()).await.unwrap();
        (new, 0)
    } else {
        let mut form = Multipart::from_request(request, &()).await.unwrap();
        let config = form.next_field().await.unwrap().unwrap();
        assert_eq!((config.name(), config.content_type()), (Some("config"), Some("application/json")));
        let new = serde_json::from_slice(&config.bytes().await.unwrap()).unwrap();
        let archive = form.next_field().await.unwrap().unwrap();
        assert_eq!(archive.name(), Some("archive"));
        (new, archive.bytes().await.unwrap().len())
    };
    assert_eq!((new.recipe.as_str(), new.memory_mb), ("RUN true", Some(2048)));
    fake.written.lock().unwrap().push((new.name, size));
    (StatusCode::CREATED, Json(build(BuildId::new(), "pending"))).into_response()
}

async fn list_builds(Query(query): Query<Vec<(String, String)>>) -> Response {
    let wanted = [("limit", "7"), ("template", "web")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(query, wanted);
    Json(json!([build(BuildId::new(), "failed")])).into_response()
}

async fn get_build(Path(id): Path<BuildId>) -> Response {
    Json(build(id, "running")).into_response()
}

async fn cancel_build(Path(_): Path<BuildId>) -> Response {
    refused(409, "conflict")
}

/// Sends one entry and closes the stream; the build ends after entry 7.
async fn build_log(
    State(fake): State<Fake>,
    Path(id): Path<BuildId>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    assert_eq!(query, [("step".to_owned(), "2".to_owned())]);
    fake.connections.fetch_add(1, Ordering::SeqCst);
    let last: i64 = headers["last-event-id"].to_str().unwrap().parse().unwrap();
    let entry = json!({ "offset": last + 1, "step": 2, "stream": "stdout", "text": "x\n", "at": "2026-01-01T00:00:00Z" });
    let mut events = vec![Sse::default().id((last + 1).to_string()).event("log").data(entry.to_string())];
    if last == 6 {
        events.push(Sse::default().event("of_a_later_server").data("{}"));
        events.push(Sse::default().event("end").data(build(id, "succeeded").to_string()));
    }
    Stream::new(stream::iter(events.into_iter().map(Ok::<_, Infallible>))).into_response()
}

fn version(name: &str, number: u32) -> Value {
    json!({ "name": name, "version": number, "kind": "base", "tags": ["stable"], "build_id": BuildId::new(),
            "cache_key": "k", "size_mb": 912, "envs": {}, "user": "root", "workdir": "/",
            "created_at": "2026-01-01T00:00:00Z" })
}

/// Lists 102 versions, 100 at a time.
async fn versions(Path(name): Path<String>, Query(query): Query<Vec<(String, String)>>) -> Response {
    assert_eq!(query[0], ("limit".to_owned(), "100".to_owned()));
    let before = query.get(1).map_or(103, |(_, before)| before.parse().unwrap());
    let page = (1..before).rev().take(100).map(|number: u32| version(&name, number));
    Json(page.collect::<Vec<_>>()).into_response()
}

async fn move_tag(Path(place): Path<(String, String)>, Json(body): Json<Value>) -> Response {
    assert_eq!(place.1, "stable");
    assert_eq!(body, json!({ "version": 2 }));
    Json(version(&place.0, 2)).into_response()
}

async fn delete_template(Path(name): Path<String>) -> Response {
    if name == "minimal" { refused(403, "forbidden") } else { StatusCode::NO_CONTENT.into_response() }
}

async fn elsewhere() -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [("location", "http://127.0.0.1:1/v1/sandboxes")]).into_response()
}

async fn exec(Path(id): Path<SandboxId>, upgrade: WebSocketUpgrade) -> Response {
    if id.to_string().ends_with("none") { refused(404, "not_found") } else { upgrade.on_upgrade(talk) }
}

async fn talk(mut socket: WebSocket) {
    let Some(Ok(Message::Text(start))) = socket.recv().await else { return };
    let start: Value = serde_json::from_str(&start).unwrap();
    assert_eq!(start["type"], "start");
    let mut frames = vec![json!({"type": "start", "pid": 42})];
    match start["cmd"].as_str() {
        Some("echo") => frames.extend([
            json!({"type": "stdout", "data": start["args"][0]}),
            json!({"type": "stderr", "data": "/wA=", "encoding": "base64"}),
            json!({"type": "exit", "exit_code": 3}),
        ]),
        Some("missing") => frames = vec![json!({"type": "error", "data": "no missing", "code": "not_found"})],
        // Runs until it is stopped.
        _ => {}
    }
    for frame in &frames {
        socket.send(Message::text(frame.to_string())).await.unwrap();
    }
    if let Some(Ok(Message::Text(text))) = socket.recv().await {
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["type"], "stop");
        let exit = json!({"type": "exit", "exit_code": 143});
        socket.send(Message::text(exit.to_string())).await.unwrap();
    }
}

async fn start() -> (Client, Fake) {
    let fake = Fake::default();
    let router = Router::new()
        .route("/v1/sandboxes", get(list).post(create))
        .route("/v1/sandboxes/{id}/files/content", get(read).put(write))
        .route("/v1/sandboxes/{id}/files/watch", get(watch))
        .route("/v1/sandboxes/{id}/metrics", get(metrics))
        .route("/v1/sandboxes/{id}/exec", post(run))
        .route("/v1/sandboxes/{id}/exec/stream", get(exec))
        .route("/moved/v1/sandboxes", get(elsewhere))
        .route("/v1/events/stream", get(events))
        .route("/v1/templates/builds", get(list_builds).post(create_build))
        .route("/v1/templates/builds/{id}", get(get_build).delete(cancel_build))
        .route("/v1/templates/builds/{id}/logs", get(build_log))
        .route("/v1/templates/{name}", delete(delete_template))
        .route("/v1/templates/{name}/versions", get(versions))
        .route("/v1/templates/{name}/tags/{tag}", put(move_tag))
        .route("/health", get(health))
        .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
        .with_state(fake.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (Client::new(&url, Some("key")).unwrap(), fake)
}

#[tokio::test]
async fn sandboxes_are_created_and_listed_over_pages() {
    let (client, _) = start().await;
    let sandbox = client.create(&CreateSandbox::default(), Some("once")).await.unwrap();
    assert_eq!(sandbox.template, "minimal");
    assert_eq!(client.list_all(&SandboxFilter::default()).await.unwrap().len(), 4);
    let filter = SandboxFilter {
        statuses: vec![SandboxStatus::Running, SandboxStatus::Paused],
        name: Some("web".to_owned()),
        template: Some("minimal".to_owned()),
        labels: vec!["a=b&c".to_owned(), "d".to_owned()],
    };
    assert_eq!(client.list_all(&filter).await.unwrap().len(), 2, "the server saw every filter on every page");
}

#[tokio::test]
async fn a_refusal_has_code_and_request_id() {
    let (client, _) = start().await;
    let client = Client::new(client.url(), Some("wrong")).unwrap();
    let error = client.create(&CreateSandbox::default(), Some("once")).await.unwrap_err();
    let Error::Api { status, code, request_id, .. } = error else { panic!("{error}") };
    assert_eq!((status, code.as_str(), request_id.as_deref()), (401, "unauthorized", Some("req-1")));
}

#[tokio::test]
async fn metrics_are_of_a_range() {
    let (client, _) = start().await;
    let id = SandboxId::new();
    let metrics = client.metrics(id, MetricsRange::TwoHours).await.unwrap();
    assert_eq!((metrics.sandbox_id, metrics.range), (id, MetricsRange::TwoHours));
    let [point] = metrics.points.as_slice() else { panic!("{metrics:?}") };
    assert_eq!((point.timestamp_unix, point.mem_bytes, point.net_tx_bytes), (1, 2, 5));
    assert_eq!((point.guest_mem_used_bytes, point.guest_mem_total_bytes), (Some(7), None));
}

#[tokio::test]
async fn degraded_is_an_answer() {
    let (client, _) = start().await;
    assert_eq!(client.health().await.unwrap().status, "degraded");
}

#[tokio::test]
async fn files_are_streamed_both_ways() {
    let (client, fake) = start().await;
    let id = SandboxId::new();
    let pieces = stream::iter((0..32).map(|_| Ok::<_, Infallible>(Bytes::from(vec![1_u8; 65_536]))));
    let options = WriteOptions {
        user: Some("ann".to_owned()),
        mode: Some(0o750),
        size: Some(2 << 20),
        ..WriteOptions::default()
    };
    let written =
        client.write_file(id, "a/b", &options, wrenn_client::Body::wrap_stream(pieces)).await.unwrap();
    assert_eq!((written.size, written.sha256.as_str()), (2 << 20, "00"));
    assert_eq!(*fake.written.lock().unwrap(), [("a/b".to_owned(), 2 << 20)]);
    let whole = client.read_file(id, "/big & ä", &ReadOptions::default()).await.unwrap();
    let pieces: Vec<Bytes> = whole.pieces.try_collect().await.unwrap();
    assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), 4 << 20);
    let part = ReadOptions { range: Some("bytes=1-2".to_owned()), ..ReadOptions::default() };
    let part = client.read_file(id, "/big & ä", &part).await.unwrap();
    assert_eq!(part.size, Some(2));
    assert_eq!(part.pieces.try_collect::<Vec<_>>().await.unwrap(), ["bc"]);
    let error = client.read_file(id, "/none", &ReadOptions::default()).await.err().unwrap();
    assert_eq!(error.code(), Some("not_found"));
}

#[tokio::test]
async fn changes_are_told_until_the_watch_ends_with_its_reason() {
    let (client, _) = start().await;
    let mut changes = client.watch_files(SandboxId::new(), "a & b", true).await.unwrap();
    assert_eq!(changes.next().await.unwrap(), FileWatchFrame::Start);
    assert_eq!(changes.next().await.unwrap(), FileWatchFrame::Rename { name: "x".to_owned() });
    assert_eq!(changes.next().await.unwrap(), FileWatchFrame::Overflow);
    let error = changes.next().await.unwrap_err();
    assert_eq!(error.code(), Some("invalid_state"));
}

#[tokio::test]
async fn events_go_on_behind_the_last_one_after_a_disconnect() {
    let (client, fake) = start().await;
    let events = client
        .events(&EventFilter { after: Some("10".to_owned()), ..EventFilter::default() })
        .await
        .unwrap()
        .take(3);
    let events: Vec<_> = events.try_collect().await.unwrap();
    let ids: Vec<_> = events.iter().filter_map(|event| event.id.as_deref()).collect();
    assert_eq!(ids, ["11", "12", "13"]);
    assert_eq!(events[0].data["n"], 1);
    assert_eq!(fake.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_build_is_sent_with_its_files_or_without() {
    let (client, fake) = start().await;
    let new = CreateBuild {
        name: "web:next".to_owned(),
        recipe: "RUN true".to_owned(),
        vcpus: None,
        memory_mb: Some(2048),
        disk_size_mb: None,
        no_cache_from: None,
        registry: None,
        secrets: wrenn_api::BuildSecrets::default(),
    };
    assert_eq!(client.create_build(&new, None).await.unwrap().status, BuildStatus::Pending);
    let pieces = stream::iter((0..16).map(|_| Ok::<_, Infallible>(Bytes::from(vec![1_u8; 65_536]))));
    client.create_build(&new, Some(wrenn_client::Body::wrap_stream(pieces))).await.unwrap();
    let sent = [0_usize, 1 << 20].map(|size| ("web:next".to_owned(), size));
    assert_eq!(*fake.written.lock().unwrap(), sent);
    assert_eq!(client.list_builds(Some("web"), 7).await.unwrap()[0].status, BuildStatus::Failed);
    let id = BuildId::new();
    let build = client.get_build(id).await.unwrap();
    assert_eq!((build.id, build.status), (id, BuildStatus::Running));
    assert_eq!(client.cancel_build(id).await.unwrap_err().code(), Some("conflict"));
}

#[tokio::test]
async fn the_log_of_a_build_goes_on_behind_its_last_entry_after_a_disconnect() {
    let (client, fake) = start().await;
    let id = BuildId::new();
    let log = client.build_log(id, 5, Some(2)).await.unwrap();
    let events: Vec<_> = log.try_collect().await.unwrap();
    let [BuildLogEvent::Entry(first), BuildLogEvent::Entry(second), BuildLogEvent::End(build)] =
        events.as_slice()
    else {
        panic!("{events:?}")
    };
    assert_eq!((first.offset, second.offset, second.text.as_str()), (6, 7, "x\n"));
    assert_eq!((build.id, build.status), (id, BuildStatus::Succeeded));
    assert_eq!(fake.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn templates_have_versions_and_tags() {
    let (client, _) = start().await;
    let versions = client.template_versions("web").await.unwrap();
    let numbers: Vec<_> = versions.iter().map(|version| version.version).collect();
    assert!(numbers.into_iter().eq((1..=102).rev()), "{versions:?}");
    let moved = client.move_tag("web", "stable", 2).await.unwrap();
    assert_eq!((moved.name.as_str(), moved.version), ("web", 2));
    client.delete_template("web").await.unwrap();
    assert_eq!(client.delete_template("minimal").await.unwrap_err().code(), Some("forbidden"));
}

#[tokio::test]
async fn a_command_s_output_comes_as_it_is() {
    let (client, _) = start().await;
    let request =
        ExecRequest { cmd: "echo".to_owned(), args: vec!["hi".to_owned()], ..ExecRequest::default() };
    let mut stream = client.exec_stream(SandboxId::new(), &request).await.unwrap();
    let mut seen = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        seen.push(event);
    }
    let expected = [
        ProcessEvent::Start { pid: 42, tag: None, offset: 0 },
        ProcessEvent::Stdout(Bytes::from_static(b"hi")),
        ProcessEvent::Stderr(Bytes::from_static(&[0xff, 0])),
        ProcessEvent::Exit { exit_code: 3, timed_out: false, out_of_memory: false, killed: None },
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_command_can_be_stopped() {
    let (client, _) = start().await;
    let request = ExecRequest { cmd: "sleep".to_owned(), ..ExecRequest::default() };
    let mut stream = client.exec_stream(SandboxId::new(), &request).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), Some(ProcessEvent::Start { pid: 42, tag: None, offset: 0 }));
    stream.stop().await.unwrap();
    assert_eq!(
        stream.next().await.unwrap(),
        Some(ProcessEvent::Exit { exit_code: 143, timed_out: false, out_of_memory: false, killed: None })
    );
    assert_eq!(stream.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_command_that_cannot_start_is_an_error_of_the_api() {
    let (client, _) = start().await;
    let request = ExecRequest { cmd: "missing".to_owned(), ..ExecRequest::default() };
    let mut stream = client.exec_stream(SandboxId::new(), &request).await.unwrap();
    assert_eq!(stream.next().await.unwrap_err().code(), Some("not_found"));
}

#[tokio::test]
async fn a_stream_that_is_refused_is_an_error_of_the_api() {
    let (client, _) = start().await;
    let id: SandboxId = "sb000000000000000000000none".parse().unwrap();
    let error = client.exec_stream(id, &ExecRequest::default()).await.err().unwrap();
    assert_eq!(error.code(), Some("not_found"));
}

#[tokio::test]
async fn the_largest_output_of_a_command_is_taken() {
    let (client, _) = start().await;
    let size = 12 << 20;
    let request =
        ExecRequest { cmd: "head".to_owned(), args: vec![size.to_string()], ..ExecRequest::default() };
    let answer = client.exec(SandboxId::new(), &request).await.unwrap();
    assert_eq!(answer.stdout.len(), size);
}

#[tokio::test]
async fn a_redirect_is_told_and_gets_no_key() {
    let (client, _) = start().await;
    let client = Client::new(&format!("{}/moved", client.url()), Some("key")).unwrap();
    let error = client.list(&SandboxFilter::default(), 1, None).await.unwrap_err().to_string();
    assert!(error.contains("redirects to http://127.0.0.1:1/"), "{error}");
}

/// Reads a request and closes the connection; with TLS the answer is one of plain HTTP.
async fn hang_up(answer: &'static [u8]) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = [0; 16384];
        let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut request).await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, answer).await;
    });
    address
}

#[tokio::test]
async fn an_answer_that_is_lost_is_not_taken_for_a_server_that_is_away() {
    let url = format!("http://{}", hang_up(b"").await);
    let client = Client::new(&url, Some("key")).unwrap();
    let error = client.create(&CreateSandbox::default(), Some("once")).await.unwrap_err();
    assert!(error.may_have_happened() && !error.to_string().contains("wrenn up"), "{error}");
}

#[tokio::test]
async fn tls_to_a_server_without_it_is_told_as_that() {
    let url = format!("https://{}", hang_up(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
    let client = Client::new(&url, Some("key")).unwrap();
    let error = client.list(&SandboxFilter::default(), 1, None).await.unwrap_err();
    assert!(!error.may_have_happened() && error.to_string().contains("use http://"), "{error}");
}
