// SPDX-License-Identifier: Apache-2.0
//! Tests over real sockets, with a host over the real RPC.
#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::{Router, routing::get};
use connectrpc::{Response as RpcResponse, ServiceStream, streaming_handler_fn};
use futures::{SinkExt as _, StreamExt as _, stream};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message as Frame};
use uuid::Uuid;
use wrenn_api::{HostId, SandboxId, TeamId};
use wrenn_rpc::host::v1::{
    __buffa::oneof::exec_stream_response::Event, ExecStreamRequest, ExecStreamResponse, exec_stream_response,
};

use super::*;
use crate::{
    config::Limits,
    serving::{self, Bounds},
    testing,
};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

fn event(event: Event) -> ExecStreamResponse {
    ExecStreamResponse { event: Some(event), ..Default::default() }
}

fn started() -> ExecStreamResponse {
    event(Event::Start(exec_stream_response::Start { pid: 7, ..Default::default() }.into()))
}

fn ended(lost_bytes: u64) -> ExecStreamResponse {
    event(Event::End(exec_stream_response::End { exit_code: 0, lost_bytes, ..Default::default() }.into()))
}

/// A host whose commands produce `events`.
fn host<S>(events: impl Fn() -> S + Clone + Send + Sync + 'static) -> connectrpc::Router
where
    S: futures::Stream<Item = ExecStreamResponse> + Send + 'static,
{
    let run = streaming_handler_fn(move |_, _: ExecStreamRequest| {
        let events: ServiceStream<ExecStreamResponse> =
            stream::iter([started()]).chain(events()).map(Ok).boxed();
        async move { Ok(RpcResponse::new(events)) }
    });
    connectrpc::Router::new().route_server_stream::<_, ExecStreamRequest, ExecStreamResponse>(
        "host.v1.Host",
        "ExecStream",
        run,
    )
}

/// A host whose commands print nothing, and never end.
fn silent() -> connectrpc::Router {
    host(stream::pending)
}

/// A server with such a host, and its state.
async fn server(limits: Limits, host: connectrpc::Router) -> (SocketAddr, Services) {
    let (app, agent) = testing::app(limits, host).await;
    let (shutdown, services) = (app.shutdown.clone(), Services::new(app.clone()));
    let state = services.clone();
    let route = async move |Extension(connection): Extension<Arc<Connection>>, upgrade: WebSocketUpgrade| {
        let stream = Stream {
            services: state,
            caller: testing::caller(TeamId::new()),
            sandbox: Attached::new(app.agents.dedicated(HostId::new(), &agent), SandboxId::new(), 0),
            connection,
        };
        open(stream, upgrade, ())
    };
    let router = Router::new().route("/", get(route));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let long = Duration::from_secs(600);
    let bounds =
        Bounds { connections: 512, per_address: 512, head: long, idle: long, stall: long, linger: long };
    tokio::spawn(serving::serve(listener, router, bounds, shutdown));
    (address, services)
}

async fn connect(address: SocketAddr) -> Socket {
    tokio_tungstenite::connect_async(format!("ws://{address}/")).await.unwrap().0
}

async fn say(socket: &mut Socket, text: &str) {
    socket.send(Frame::text(text)).await.unwrap();
}

async fn run(address: SocketAddr) -> Socket {
    let mut socket = connect(address).await;
    say(&mut socket, r#"{"type":"start","cmd":"x"}"#).await;
    let start = hear(&mut socket).await;
    assert_eq!(start["type"], "start", "{start}");
    socket
}

/// Returns the next frame that is neither ping nor pong.
async fn hear(socket: &mut Socket) -> serde_json::Value {
    loop {
        let frame = tokio::time::timeout(Duration::from_secs(60), socket.next()).await.expect("it hangs");
        if let Frame::Text(text) = frame.expect("a frame").unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_rests_gets_all_output() {
    const PIECE: usize = 64 << 10;
    const PIECES: usize = 800;
    let said = Arc::new(AtomicUsize::new(0));
    let count = said.clone();
    let pieces = move || {
        let count = count.clone();
        let piece = move |number: usize| {
            count.store(number, Ordering::Relaxed);
            event(Event::Stdout(vec![b'a' + (number % 26) as u8; PIECE]))
        };
        stream::iter(0..PIECES).map(piece).chain(stream::iter([ended(0)]))
    };
    let (address, _app) = server(Limits::default(), host(pieces)).await;
    let mut socket = run(address).await;
    // Waits until no data moves any more: all buffers between the host and the client are full.
    let mut before = usize::MAX;
    while before != said.load(Ordering::Relaxed) {
        before = said.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(before < PIECES - 1, "the command waits for its reader");
    let mut taken = String::new();
    loop {
        let frame = hear(&mut socket).await;
        if frame["type"] == "exit" {
            assert_eq!(frame["lost_bytes"], 0);
            break;
        }
        taken.push_str(frame["data"].as_str().unwrap());
    }
    assert_eq!(taken.len(), PIECES * PIECE);
    let right = taken
        .as_bytes()
        .chunks(PIECE)
        .enumerate()
        .all(|(number, piece)| piece.iter().all(|byte| *byte == b'a' + (number % 26) as u8));
    assert!(right, "in its order");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_output_is_told_where_it_was_lost() {
    let half = |bytes: &[u8]| event(Event::Stdout(bytes.to_vec()));
    let lost = || event(Event::Lost(exec_stream_response::Lost { bytes: 9, ..Default::default() }.into()));
    let events = move || stream::iter([half(b"a\xc3"), lost(), half(b"\xa9b"), ended(9)]);
    let (address, _app) = server(Limits::default(), host(events)).await;
    let mut socket = run(address).await;
    let mut frames = Vec::new();
    while frames.last().is_none_or(|frame: &serde_json::Value| frame["type"] != "exit") {
        frames.push(hear(&mut socket).await);
    }
    let of = |frame: &serde_json::Value| frame["data"].as_str().unwrap_or_default().to_owned();
    // Bytes before and after a gap are not joined to one character.
    assert_eq!(of(&frames[0]), "a");
    assert_eq!((frames[1]["encoding"].as_str(), of(&frames[1])), (Some("base64"), STANDARD.encode(b"\xc3")));
    assert_eq!((frames[2]["type"].as_str(), frames[2]["bytes"].as_u64()), (Some("lost"), Some(9)));
    assert_eq!(of(&frames[3]), STANDARD.encode(b"\xa9b"));
    assert_eq!(frames[4]["lost_bytes"], 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_not_known_are_answered_by_an_error() {
    let (address, _app) = server(Limits::default(), silent()).await;
    for (frame, told) in [
        (r#"{"type":"stdin","data":"x\n"}"#, "there is no standard input yet"),
        (r#"{"type":"resize","rows":2}"#, "the frame is not known"),
        ("no JSON", "the frame is not known"),
        (r#"{"type":"start","cmd":"x"}"#, "a command runs already"),
    ] {
        let mut socket = run(address).await;
        say(&mut socket, frame).await;
        let error = hear(&mut socket).await;
        assert_eq!(
            (error["type"].as_str(), error["code"].as_str()),
            (Some("error"), Some("invalid_request"))
        );
        assert!(error["data"].as_str().unwrap().contains(told), "{error}");
    }
    let mut socket = connect(address).await;
    say(&mut socket, r#"{"type":"stdin","data":""}"#).await;
    assert!(hear(&mut socket).await["data"].as_str().unwrap().contains("no standard input"));
}

#[tokio::test(flavor = "multi_thread")]
async fn control_characters_cost_no_more_than_base64() {
    const SIZE: usize = 32 << 10;
    let events = || stream::iter([event(Event::Stdout(vec![1; SIZE])), ended(0)]);
    let (address, _app) = server(Limits::default(), host(events)).await;
    let frame = hear(&mut run(address).await).await;
    assert_eq!(frame["encoding"], "base64");
    assert_eq!(STANDARD.decode(frame["data"].as_str().unwrap()).unwrap(), vec![1; SIZE]);
}

/// Sends pings without reading until the server closes the connection, and returns their number.
async fn flood(mut socket: Socket) -> usize {
    // More than all socket buffers can store.
    const ALL: usize = 4_000_000;
    let mut sent = 0;
    while sent < ALL && socket.feed(Frame::Ping(vec![b'x'; 125].into())).await.is_ok() {
        sent += 1;
        if sent % 1000 == 0 && socket.flush().await.is_err() {
            break;
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_ends_the_conversation_and_takes_no_memory() {
    let (address, services) = server(Limits::default(), silent()).await;
    let before = testing::resident();
    for running in [true, false] {
        let socket = if running { run(address).await } else { connect(address).await };
        let sent = tokio::time::timeout(Duration::from_secs(120), flood(socket)).await.expect("it hangs");
        assert!(sent < 4_000_000, "running: {running}");
    }
    let grown = testing::resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB", grown >> 20);
    drop(services);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_frames_are_kept_within_the_bound() {
    const CLIENTS: usize = 100;
    let (address, _app) = server(Limits::default(), silent()).await;
    let before = testing::resident();
    let mut sockets = Vec::new();
    for _ in 0..CLIENTS {
        let mut socket = run(address).await;
        // The beginning of a frame of 1 MiB, which never ends.
        let MaybeTlsStream::Plain(stream) = socket.get_mut() else { unreachable!() };
        let mut head = vec![0x81, 0xff];
        head.extend((1_u64 << 20).to_be_bytes());
        head.extend([0; 4]);
        stream.write_all(&head).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.write_all(&vec![b'x'; 1_000_000])).await;
        sockets.push(socket);
    }
    let grown = testing::resident().saturating_sub(before);
    assert!(grown < CLIENTS * LATER_MAX * 3, "{} MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_a_first_frame_is_given_back() {
    let limits = Limits { memory: 2 * FIRST_MAX, ..Limits::default() };
    let (address, services) = server(limits, silent()).await;
    let team = Uuid::now_v7();
    let waiting = connect(address).await;
    assert!(services.state().admission.memory.try_take(team, FIRST_MAX).is_ok());
    // While others wait with their first frames, small commands still start.
    let also = connect(address).await;
    let mut sockets = Vec::new();
    for _ in 0..4 {
        sockets.push(run(address).await);
    }
    drop((waiting, also));
    while services.state().admission.memory.available() < 2 * FIRST_MAX {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
