// SPDX-License-Identifier: Apache-2.0
//! Tests of overload of the whole API, and of single handlers with a host over the real RPC.
#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use connectrpc::{ConnectError, Response as RpcResponse, ServiceStream, handler_fn, streaming_handler_fn};
use futures::{StreamExt as _, stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use uuid::Uuid;
use wrenn_api::SandboxId;
use wrenn_rpc::{
    OUTPUT_HEADER,
    host::v1::{
        __buffa::oneof::read_file_response::Part, ExecRequest, ExecResponse, ReadFileRequest,
        ReadFileResponse, read_file_response::Head,
    },
};

use super::{download, exec};
use crate::{
    agents::ResponseMemory,
    config::Limits,
    routes::Routes,
    sandboxes::{self, Attached, Conditions, FilePath, OfUser, TimedCommand},
    services::Services,
    serving::{self, Bounds},
    state::App,
    testing,
};

/// Serves a router as the server does.
async fn serve(app: &App, router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let long = Duration::from_secs(600);
    let bounds =
        Bounds { connections: 512, per_address: 512, head: long, idle: long, stall: long, linger: long };
    tokio::spawn(serving::serve(listener, router, bounds, None, app.shutdown.clone()));
    address
}

async fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads a whole response with its head, up to the end of the connection.
async fn answer(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut bytes));
    let _ = reading.await.expect("it hangs");
    bytes
}

/// Returns the status and body of a response.
async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let text = String::from_utf8_lossy(&answer(send(address, request).await).await).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, text)
}

fn head(method: &str, path: &str, key: &str, rest: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: {key}\r\n{rest}\r\n")
}

/// A server with the keys `a` and `b` of two teams, and without a database: 503 means that the request was
/// admitted.
async fn api(limits: Limits) -> (SocketAddr, App) {
    let (app, _) = testing::app(limits, connectrpc::Router::new()).await;
    let service = Routes::new(Vec::new()).unwrap().service(&Services::new(app.clone()), Vec::new());
    let router = Router::new().fallback_service(service);
    (serve(&app, router).await, app)
}

fn remember(app: &App, keys: &[&str]) {
    for key in keys {
        app.access.remember(key, Some(Uuid::from_u128(key.as_bytes()[0].into()).into()));
    }
}

const LIST: &str = "/v1/sandboxes";

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_of_one_team_keep_out_neither_deletes_nor_other_teams() {
    const PLACES: usize = 8;
    let (address, app) = api(Limits { concurrent_requests: PLACES, ..Limits::default() }).await;
    remember(&app, &["a", "b"]);
    let slow = head("POST", LIST, "a", "content-type: application/json\r\ncontent-length: 100\r\n") + "{";
    let mut held = Vec::new();
    let text = loop {
        remember(&app, &["a"]);
        held.push(send(address, &slow).await);
        let (status, text) = ask(address, &head("GET", LIST, "a", "")).await;
        if status == 429 {
            break text;
        }
    };
    assert!(text.contains("your team has too many requests"), "{text}");
    remember(&app, &["a", "b"]);
    assert_eq!(ask(address, &head("GET", LIST, "b", "")).await.0, 503);
    let sandbox = format!("{LIST}/{}", SandboxId::new());
    assert_eq!(ask(address, &head("DELETE", &sandbox, "a", "")).await.0, 503);
    // Requests without a valid key use no permit.
    app.access.remember("wrong", None);
    for _ in 0..2 * PLACES {
        let (status, text) = ask(address, &head("GET", LIST, "wrong", "")).await;
        assert_eq!(status, 401, "{text}");
    }
    assert_eq!(ask(address, &head("GET", "/metrics", "", "")).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_of_one_team_take_no_more_than_its_share_of_memory() {
    const BODY: usize = 1 << 20;
    let (address, app) = api(Limits { memory: 4 * BODY, ..Limits::default() }).await;
    let begin = |key: &str| {
        let length = format!("content-type: application/json\r\ncontent-length: {BODY}\r\n");
        head("POST", LIST, key, &length) + "{" + &" ".repeat(BODY / 2)
    };
    let mut held = Vec::new();
    let refused = async {
        loop {
            remember(&app, &["a"]);
            let mut stream = send(address, &begin("a")).await;
            let mut first = [0; 12];
            // Admitted requests have no response yet.
            match tokio::time::timeout(Duration::from_millis(200), stream.read_exact(&mut first)).await {
                Ok(_) => return String::from_utf8_lossy(&first).into_owned(),
                Err(_) => held.push(stream),
            }
        }
    };
    assert_eq!(refused.await, "HTTP/1.1 429");
    assert_eq!(held.len(), 2);
    remember(&app, &["b"]);
    let whole = format!("content-type: application/json\r\ncontent-length: {BODY}\r\n");
    let (status, text) = ask(address, &(head("POST", LIST, "b", &whole) + "{" + &" ".repeat(BODY - 1))).await;
    assert_eq!(status, 400, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_viewer_may_load_nothing_foreign_and_stands_in_no_frame() {
    let (address, _app) = api(Limits::default()).await;
    let (status, text) = ask(address, &head("GET", "/docs/", "", "")).await;
    assert_eq!(status, 200);
    for expected in ["frame-ancestors 'none'", "x-frame-options: DENY", "x-content-type-options: nosniff"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("<script>") && !text.contains("onload="), "inline scripts would not run");
}

/// A host whose commands print one MiB of zeros for each second of their timeout; those of one second print three bytes.
fn zeros() -> connectrpc::Router {
    let run = handler_fn(async |_, request: ExecRequest| {
        let size = if request.timeout_ms == 1000 { 3 } else { (request.timeout_ms as usize / 1000) << 20 };
        let response = RpcResponse::from(ExecResponse { stdout: vec![0; size], ..Default::default() });
        Ok::<_, ConnectError>(response.with_header(OUTPUT_HEADER, size.to_string()))
    });
    connectrpc::Router::new().route::<_, ExecRequest, ExecResponse>("host.v1.Host", "Exec", run)
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_that_nobody_reads_take_a_bounded_part_of_memory() {
    const CLIENTS: usize = 24;
    const MEMORY: usize = 32 << 20;
    let (app, agent) = testing::app(Limits { memory: MEMORY, ..Limits::default() }, zeros()).await;
    let state = app.clone();
    let host = wrenn_api::HostId::new();
    let run = async move |axum::extract::Path((team, seconds)): axum::extract::Path<(u128, u32)>| {
        let memory = ResponseMemory::new(state.admission.memory.clone(), Uuid::from_u128(team));
        let agent = state.agents.with_memory(host, &agent, memory.clone());
        let request =
            serde_json::from_value(serde_json::json!({"cmd": "x", "timeout_sec": seconds})).unwrap();
        let command = TimedCommand::new(request)?;
        exec::render(sandboxes::run(&agent, SandboxId::new(), command, &memory).await?)
    };
    let router = Router::new().route("/{team}/{seconds}", axum::routing::get(run));
    let address = serve(&app, router).await;
    let before = testing::resident();
    let mut unread = Vec::new();
    for _ in 0..CLIENTS {
        unread.push(send(address, &head("GET", "/1/8", "", "")).await);
    }
    // The share of the team is used up.
    while app.admission.memory.available() > MEMORY / 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Other teams, and small responses for the same team, are served at once meanwhile.
    for path in ["/2/4", "/2/1", "/1/1"] {
        let (status, text) = ask(address, &head("GET", path, "", "")).await;
        assert_eq!(status, 200, "{path}: {text}");
    }
    let grown = testing::resident().saturating_sub(before);
    // The host of this test is in the same process, and buffers what it has not sent.
    let of_host = CLIENTS * (8 << 20);
    assert!(grown < of_host + 3 * MEMORY, "{} MiB", grown >> 20);
    // Responses that are read in the end arrive complete, one after another.
    let mut answers = Vec::new();
    for stream in unread {
        answers.push(tokio::spawn(answer(stream)));
    }
    for reading in answers {
        let bytes = reading.await.unwrap();
        assert!(bytes.len() > (8 << 20) / 3 * 4, "{} bytes", bytes.len());
    }
    assert_eq!(app.admission.memory.available(), MEMORY);
}

/// A host whose files are `parts`.
fn file(parts: Vec<Result<Part, ConnectError>>) -> connectrpc::Router {
    let parts = Arc::new(Mutex::new(Some(parts)));
    let read = streaming_handler_fn(move |_, _: ReadFileRequest| {
        let parts = parts.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let message = |part: Result<Part, ConnectError>| {
            part.map(|part| ReadFileResponse { part: Some(part), ..Default::default() })
        };
        let messages: ServiceStream<ReadFileResponse> = stream::iter(parts).map(message).boxed();
        async move { Ok(RpcResponse::new(messages)) }
    });
    connectrpc::Router::new().route_server_stream::<_, ReadFileRequest, ReadFileResponse>(
        "host.v1.Host",
        "ReadFile",
        read,
    )
}

/// Returns a download as an HTTP/1.1 client receives it.
async fn download(parts: Vec<Result<Part, ConnectError>>) -> (String, Bytes) {
    let (app, agent) = testing::app(Limits::default(), file(parts)).await;
    let state = app.clone();
    let read = async move || {
        let agent = state.agents.dedicated(wrenn_api::HostId::new(), &agent);
        let sandbox = Attached::new(agent, SandboxId::new());
        let file = sandbox.read_file(FilePath::new("x")?, OfUser::default(), Conditions::default());
        download::render(file.await?, download::BYTES)
    };
    let address = serve(&app, Router::new().route("/", axum::routing::get(read))).await;
    let bytes = answer(send(address, &head("GET", "/", "", "")).await).await;
    // What breaks at once may have no head at all.
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return (String::new(), Bytes::new());
    };
    (String::from_utf8_lossy(&bytes[..end]).into_owned(), Bytes::from(bytes).slice(end + 4..))
}

#[expect(clippy::unnecessary_wraps, reason = "it stands beside parts that fail")]
fn chunk(text: &str) -> Result<Part, ConnectError> {
    Ok(Part::Chunk(text.as_bytes().to_vec()))
}

#[expect(clippy::unnecessary_wraps, reason = "it stands beside parts that fail")]
fn size(bytes: u64) -> Result<Part, ConnectError> {
    Ok(Part::Head(Head { size: Some(bytes), ..Default::default() }.into()))
}

fn broken() -> Result<Part, ConnectError> {
    Err(ConnectError::unavailable("gone"))
}

#[tokio::test(flavor = "multi_thread")]
async fn files_whose_size_nobody_knows_are_read_whole_or_visibly_not() {
    let no_size = || Ok(Part::Head(Head::default().into()));
    let (head, body) = download(vec![no_size(), chunk("ab"), chunk("c")]).await;
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
    assert!(body.ends_with(b"0\r\n\r\n"), "{body:?}");
    let (_, body) = download(vec![no_size(), chunk("ab"), broken()]).await;
    assert!(!body.ends_with(b"0\r\n\r\n"), "it must not look whole: {body:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_while_they_are_read_are_no_longer_and_never_silently_shorter() {
    let (head, body) = download(vec![size(3), chunk("ab"), chunk("cdef")]).await;
    assert!(head.contains("content-length: 3"), "{head}");
    assert_eq!(body, "abc");
    for end in [vec![], vec![broken()]] {
        let mut parts = vec![size(5), chunk("abc")];
        parts.extend(end);
        let (head, body) = download(parts).await;
        assert!(head.is_empty() || head.contains("content-length: 5"), "{head}");
        assert!(body.len() < 5, "{body:?}");
    }
}
