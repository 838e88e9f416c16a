// SPDX-License-Identifier: Apache-2.0
//! Tests over real sockets, with a host over the real RPC.
#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::{Router, routing::get};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use connectrpc::{Response as RpcResponse, ServiceStream, bidi_streaming_handler_fn};
use futures::{SinkExt as _, StreamExt as _, stream};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message as Frame};
use uuid::Uuid;
use wrenn_api::{HostId, SandboxId, TeamId};
use wrenn_rpc::host::v1::{
    __buffa::oneof::{process_stream_request::Part, process_stream_response::Event},
    ProcessStreamRequest, ProcessStreamResponse, process_stream_response,
};

use super::{
    frames::{FIRST_MAX, LATER_MAX, SUBPROTOCOL},
    *,
};
use crate::{
    config::Limits,
    serving::{self, Bounds},
    testing,
};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

fn event(event: Event) -> ProcessStreamResponse {
    ProcessStreamResponse { event: Some(event), ..Default::default() }
}

fn started() -> ProcessStreamResponse {
    event(Event::Start(process_stream_response::Start { pid: 7, ..Default::default() }.into()))
}

fn ended(lost_bytes: u64) -> ProcessStreamResponse {
    event(Event::End(process_stream_response::End { exit_code: 0, lost_bytes, ..Default::default() }.into()))
}

/// A host whose commands produce `events`, also from what they are sent.
fn talking<S>(
    events: impl Fn(ServiceStream<ProcessStreamRequest>) -> S + Clone + Send + Sync + 'static,
) -> connectrpc::Router
where
    S: futures::Stream<Item = ProcessStreamResponse> + Send + 'static,
{
    let run = bidi_streaming_handler_fn(move |_, requests: ServiceStream<ProcessStreamRequest>| {
        let events: ServiceStream<ProcessStreamResponse> =
            stream::iter([started()]).chain(events(requests)).map(Ok).boxed();
        async move { Ok(RpcResponse::new(events)) }
    });
    connectrpc::Router::new().route_bidi_stream::<_, ProcessStreamRequest, ProcessStreamResponse>(
        "host.v1.Host",
        "ProcessStream",
        run,
    )
}

/// A host whose commands produce `events`.
fn host<S>(events: impl Fn() -> S + Clone + Send + Sync + 'static) -> connectrpc::Router
where
    S: futures::Stream<Item = ProcessStreamResponse> + Send + 'static,
{
    talking(move |_| events())
}

/// A host whose commands write what they are sent, up to the end of their input.
fn echo() -> connectrpc::Router {
    talking(|requests| {
        requests.filter_map(async |request| {
            Some(event(match request.ok()?.part? {
                Part::Input(bytes) => Event::Stdout(bytes),
                Part::Signal(number) => Event::Stderr(number.to_string().into_bytes()),
                Part::CloseInput(_) => return Some(ended(0)),
                Part::Start(start) => {
                    let command = start.command.into_option()?;
                    Event::Stderr(format!("{} {} {}", command.cmd, command.tag, command.stdin).into_bytes())
                }
                Part::Resize(size) => Event::Stderr(format!("{}x{}", size.cols, size.rows).into_bytes()),
                Part::Leave(_) => return None,
                Part::Attach(attach) => {
                    Event::Stderr(format!("{:?} {:?}", attach.process.selector, attach.from).into_bytes())
                }
            }))
        })
    })
}

/// A host that takes its time for each piece of input, counts the bytes, and ends when the caller leaves.
fn slow(taken: Arc<AtomicUsize>) -> connectrpc::Router {
    talking(move |requests| {
        let taken = taken.clone();
        stream::unfold(requests, move |mut requests| {
            let taken = taken.clone();
            async move {
                loop {
                    match requests.next().await?.ok()?.part {
                        Some(Part::Input(bytes)) => {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            taken.fetch_add(bytes.len(), Ordering::Relaxed);
                        }
                        Some(Part::Leave(_)) => return None::<(ProcessStreamResponse, _)>,
                        _ => {}
                    }
                }
            }
        })
    })
}

/// A host whose commands print nothing, and never end before the caller leaves.
fn silent() -> connectrpc::Router {
    slow(Arc::default())
}

/// A server with such a host, and its state.
async fn server(limits: Limits, host: connectrpc::Router) -> (SocketAddr, Services) {
    serve(limits, host, || Subject::Named).await
}

async fn serve(
    limits: Limits,
    host: connectrpc::Router,
    subject: impl Fn() -> Subject + Clone + Send + Sync + 'static,
) -> (SocketAddr, Services) {
    let (app, agent) = testing::app(limits, host).await;
    let (shutdown, services) = (app.shutdown.clone(), Services::new(app.clone()));
    let state = services.clone();
    let route = async move |Extension(connection): Extension<Arc<Connection>>, upgrade: WebSocketUpgrade| {
        let stream = Stream {
            services: state,
            caller: testing::caller(TeamId::new()),
            sandbox: Attached::new(app.agents.dedicated(HostId::new(), &agent), SandboxId::new()),
            connection,
        };
        let (upgrade, dialect) = of_process(upgrade);
        open(stream, subject(), dialect, upgrade, ())
    };
    let router = Router::new().route("/", get(route));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let long = Duration::from_secs(600);
    let bounds =
        Bounds { connections: 512, per_address: 512, head: long, idle: long, stall: long, linger: long };
    tokio::spawn(serving::serve(listener, router, bounds, None, shutdown));
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
async fn a_silent_command_is_kept_alive_by_pings() {
    let (address, _app) = server(Limits::default(), silent()).await;
    let mut socket = run(address).await;
    for _ in 0..5 {
        let frame = tokio::time::timeout(Duration::from_secs(60), socket.next()).await.expect("no ping");
        assert!(matches!(frame, Some(Ok(Frame::Ping(_)))), "{frame:?}");
    }
}

/// A client that leaves, by a close or by ending its connection, has sent what it sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_typed_before_leaving_arrives() {
    const PIECES: usize = 40;
    for closes in [true, false] {
        let taken = Arc::new(AtomicUsize::new(0));
        let (address, _app) = server(Limits::default(), slow(taken.clone())).await;
        let mut socket = run(address).await;
        for _ in 0..PIECES {
            say(&mut socket, r#"{"type":"stdin","data":"abc"}"#).await;
        }
        if closes {
            socket.close(None).await.unwrap();
            while socket.next().await.is_some_and(|frame| frame.is_ok()) {}
            assert_eq!(taken.load(Ordering::Relaxed), PIECES * 3, "it was told too early");
        }
        drop(socket);
        for _ in 0..600 {
            if taken.load(Ordering::Relaxed) == PIECES * 3 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(taken.load(Ordering::Relaxed), PIECES * 3, "closed: {closes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_output_is_told_where_it_was_lost() {
    let half = |bytes: &[u8]| event(Event::Stdout(bytes.to_vec()));
    let lost = || event(Event::Lost(process_stream_response::Lost { bytes: 9, ..Default::default() }.into()));
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
        (r#"{"type":"stdin","data":"*","encoding":"base64"}"#, "stdin is not base 64"),
        (r#"{"type":"stdin","data":"x","encoding":"hex"}"#, "encoding: give `base64`"),
        (r#"{"type":"signal","signal":"SIGNONE"}"#, "is no signal"),
        (r#"{"type":"resize","rows":2}"#, "the frame is not known"),
        ("no JSON", "the frame is not known"),
        (r#"{"type":"start","cmd":"x"}"#, "a program runs already"),
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
    assert!(hear(&mut socket).await["data"].as_str().unwrap().contains("nothing was started yet"));
    let Some(Ok(Frame::Close(Some(close)))) = socket.next().await else {
        panic!("it does not say why it closes")
    };
    assert_eq!((u16::from(close.code), close.reason.as_str()), (1008, "invalid_request"));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_and_signals_reach_the_process() {
    let (address, _app) = server(Limits::default(), echo()).await;
    let mut socket = connect(address).await;
    say(&mut socket, r#"{"type":"start","cmd":"x","tag":"t","stdin":true}"#).await;
    let said = [
        r#"{"type":"stdin","data":"one"}"#,
        r#"{"type":"signal","signal":"INT"}"#,
        r#"{"type":"signal","signal":9}"#,
        r#"{"type":"stdin","data":"/w==","encoding":"base64"}"#,
        r#"{"type":"close_stdin"}"#,
    ];
    for frame in said {
        say(&mut socket, frame).await;
    }
    let mut heard = Vec::new();
    while heard.last().is_none_or(|frame: &serde_json::Value| frame["type"] != "exit") {
        heard.push(hear(&mut socket).await);
    }
    let heard: Vec<_> = heard.iter().map(|frame| frame["data"].as_str().unwrap_or_default()).collect();
    assert_eq!(heard, ["", "x t true", "one", "2", "9", "/w==", ""]);
    let Some(Ok(Frame::Close(Some(close)))) = socket.next().await else { panic!("it does not close") };
    assert_eq!(u16::from(close.code), 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_attached_to_in_binary_frames() {
    let subject = || Subject::Process("tag-1".parse().unwrap(), From::Offset(7));
    let (address, _app) = serve(Limits::default(), echo(), subject).await;
    let mut request = tokio_tungstenite::tungstenite::client::IntoClientRequest::into_client_request(
        format!("ws://{address}/"),
    )
    .unwrap();
    request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
    let (mut socket, response) = tokio_tungstenite::connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], SUBPROTOCOL);
    assert_eq!(hear(&mut socket).await["type"], "start");
    socket.send(Frame::binary([&[0][..], b"\xff\x00"].concat())).await.unwrap();
    let mut heard = Vec::new();
    while heard.len() < 2 {
        if let Frame::Binary(bytes) = socket.next().await.unwrap().unwrap() {
            heard.push(bytes);
        }
    }
    let told = String::from_utf8_lossy(&heard[0][1..]).into_owned();
    assert!(heard[0][0] == 2 && told.contains("tag-1") && told.contains("Offset(7)"), "{told}");
    assert_eq!(heard[1].as_ref(), b"\x01\xff\x00");
    socket.send(Frame::binary(vec![1, 2])).await.unwrap();
    assert_eq!(hear(&mut socket).await["code"], "invalid_request");
}

#[test]
fn where_output_begins_is_checked() {
    let parse = |value: &str| {
        from(Parameters(vec![("from".to_owned(), value.to_owned())])).map_err(|fault| fault.code)
    };
    assert_eq!(parse("now"), Ok(From::Now));
    assert_eq!(parse("12"), Ok(From::Offset(12)));
    assert_eq!(from(Parameters(Vec::new())).map_err(|fault| fault.code), Ok(From::Beginning));
    for bad in ["", "-1", "end", "1.5", "99999999999999999999"] {
        assert_eq!(parse(bad), Err(wrenn_api::ErrorCode::InvalidRequest), "{bad}");
    }
    assert!(from(Parameters(vec![("to".to_owned(), "now".to_owned())])).is_err());
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
