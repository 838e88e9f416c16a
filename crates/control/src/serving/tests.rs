// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use std::{future::Future, net::SocketAddr, sync::Arc};

use axum::{Router, routing::get};
use http_body_util::{BodyExt as _, Empty};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// More than the buffers of two sockets.
const LARGE: usize = 64 << 20;
/// Number of idle connections, many times as many as there may be.
const IDLE: usize = 1100;

fn bounds() -> Bounds {
    let long = Duration::from_secs(600);
    Bounds { connections: 64, per_address: 64, head: long, idle: long, stall: long, linger: long }
}

/// Serves a router; the token ends it.
async fn serving(router: Router, bounds: Bounds) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    tokio::spawn(serve(listener, router, bounds, None, stop.clone()));
    (address, stop)
}

fn small() -> Router {
    Router::new().route("/", get(async || "well"))
}

/// A router with a large response that keeps `held`.
fn large(held: &Arc<()>) -> Router {
    let held = held.clone();
    Router::new().route("/", get(async move || Holding::body(Body::from(vec![b'x'; LARGE]), held.clone())))
}

async fn ask(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// Returns whether the server closes a connection.
async fn closed(stream: &mut TcpStream) -> bool {
    stream.read(&mut [0; 4096]).await.map_or(true, |read| read == 0)
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Fails if a future does not end soon.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it hangs")
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_nobody_out() {
    // This process has both ends of all of them.
    wrenn_os::open_files::allow_all().unwrap();
    let (address, _stop) = serving(small(), bounds()).await;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
        idle.push(stream);
    }
    for _ in 0..20 {
        let answer = soon(ask(address)).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("well"), "{answer}");
    }
    let open = idle.iter().filter(|stream| {
        let mut byte = [0];
        stream.try_read(&mut byte).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    });
    let open = open.count();
    assert!(open <= bounds().connections, "{open} of {IDLE} idle connections are open");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_send_no_whole_head_are_closed() {
    let bounds = Bounds { head: Duration::from_millis(200), ..bounds() };
    let (address, _stop) = serving(small(), bounds).await;
    for head in [&b""[..], b"G", b"GET / HTTP/1.1\r\nhost: x\r\nx: y", b"PRI * HTTP/2.0\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head).await.unwrap();
        assert!(soon(closed(&mut stream)).await, "{head:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_end_is_refused() {
    let bounds = Bounds { linger: Duration::from_millis(300), ..bounds() };
    let (address, _stop) = serving(small(), bounds).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
    stream.write_all(&vec![b'a'; 2 * HEAD_MAX]).await.unwrap();
    let mut line = [0; 12];
    soon(stream.read_exact(&mut line)).await.unwrap();
    assert_eq!(line, *b"HTTP/1.1 431");
    soon(async { while stream.write_all(&[b'a'; 4096]).await.is_ok() {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_small_headers_are_refused_and_keep_nobody_out() {
    let bounds = Bounds { linger: Duration::from_millis(300), ..bounds() };
    let (address, _stop) = serving(small(), bounds).await;
    let field = "a: b\r\n";
    // More fields than a head may have, and more bytes.
    for fields in [200, 2 * HEAD_MAX / field.len()] {
        let head = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", field.repeat(fields));
        let mut floods = Vec::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // The connection may be closed before all was sent.
            let _ = soon(stream.write_all(head.as_bytes())).await;
            floods.push(stream);
        }
        let answer = soon(ask(address)).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("well"), "{fields}: {answer}");
        for stream in &mut floods {
            let mut taken = Vec::new();
            let _ = soon(stream.read_to_end(&mut taken)).await;
            let told = String::from_utf8_lossy(&taken);
            assert!(told.is_empty() || told.starts_with("HTTP/1.1 431"), "{fields}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_is_held_no_longer_than_the_stall() {
    let held = Arc::new(());
    let bounds = Bounds { stall: Duration::from_millis(300), ..bounds() };
    let (address, _stop) = serving(large(&held), bounds).await;
    let before = Arc::strong_count(&held);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    soon(until(|| Arc::strong_count(&held) > before)).await;
    soon(until(|| Arc::strong_count(&held) == before)).await;
    let mut taken = Vec::new();
    let _ = soon(stream.read_to_end(&mut taken)).await;
    assert!(taken.len() < LARGE, "the answer was broken off");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_over_http2_that_nobody_reads_is_held_no_longer_than_the_stall() {
    let held = Arc::new(());
    let bounds = Bounds { stall: Duration::from_millis(300), ..bounds() };
    let (address, _stop) = serving(large(&held), bounds).await;
    let before = Arc::strong_count(&held);
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://x/").body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = soon(sender.send_request(request)).await.unwrap();
    assert!(Arc::strong_count(&held) > before);
    soon(until(|| Arc::strong_count(&held) == before)).await;
    assert!(soon(response.into_body().collect()).await.is_err(), "the answer was broken off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_all_of_a_large_answer() {
    let held = Arc::new(());
    let bounds = Bounds { stall: Duration::from_millis(500), ..bounds() };
    let (address, _stop) = serving(large(&held), bounds).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let (mut taken, mut piece) = (0, vec![0; 4 << 20]);
    loop {
        // Longer than the stall limit in total.
        tokio::time::sleep(Duration::from_millis(40)).await;
        match soon(stream.read(&mut piece)).await.unwrap() {
            0 => break,
            read => taken += read,
        }
    }
    assert!(taken > LARGE, "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_reaches_a_client_that_sends_its_whole_body_first() {
    let refuse = async || http::StatusCode::PAYLOAD_TOO_LARGE;
    let (address, _stop) = serving(Router::new().route("/", axum::routing::post(refuse)), bounds()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {LARGE}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let body = vec![b'x'; LARGE];
    soon(stream.write_all(&body)).await.expect("the body is taken");
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.expect("the answer is not lost by a reset");
    assert!(text.starts_with("HTTP/1.1 413") && text.contains("connection: close\r\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_bodies_were_read_is_kept() {
    let take = async |body: String| body.len().to_string();
    let (address, _stop) = serving(Router::new().route("/", axum::routing::post(take)), bounds()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
        let mut answer = [0; 512];
        let size = soon(stream.read(&mut answer)).await.unwrap();
        let text = String::from_utf8_lossy(&answer[..size]).into_owned();
        assert!(text.starts_with("HTTP/1.1 200") && !text.contains("close"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_stops_sending_is_not_waited_for_long() {
    let refuse = async || http::StatusCode::PAYLOAD_TOO_LARGE;
    let bounds = Bounds { linger: Duration::from_millis(300), ..bounds() };
    let (address, _stop) = serving(Router::new().route("/", axum::routing::post(refuse)), bounds).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", u64::MAX / 2);
    stream.write_all(head.as_bytes()).await.unwrap();
    soon(async { while stream.write_all(&[b'x'; 4096]).await.is_ok() {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_work_are_answered_after_a_stop() {
    let begun = Arc::new(tokio::sync::Notify::new());
    let (go, stopped) = (begun.clone(), CancellationToken::new());
    let told = stopped.clone();
    let work = async move || {
        go.notify_one();
        told.cancelled().await;
        "done"
    };
    let (address, stop) = serving(Router::new().route("/", get(work)), bounds()).await;
    let asking = tokio::spawn(ask(address));
    soon(begun.notified()).await;
    stop.cancel();
    soon(async { while TcpStream::connect(address).await.is_ok() {} }).await;
    stopped.cancel();
    assert!(soon(asking).await.unwrap().ends_with("done"));
}
