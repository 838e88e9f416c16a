// SPDX-License-Identifier: Apache-2.0
//! `POST /connect?port=N`: connects to a TCP port of the guest, also to one that is bound to a loopback address only. After
//! the response 101 the connection is a pipe of bytes; each direction ends by itself.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    extract::{ConnectInfo, Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{connections::Peer, log, respond::error};

/// Maximum number of connections to ports, which leaves the host connections for other calls.
const CONNECTIONS: usize = 512;
/// Time limit for a connect: the queue of a program that accepts nothing may be full.
const CONNECT: Duration = Duration::from_secs(5);
/// Size of the buffer of each direction, in bytes.
const BUFFER: usize = 16 << 10;
/// Protocol that the client asks for.
const PROTOCOL: HeaderValue = HeaderValue::from_static("tcp");

/// Ports of the guest, as far as envd connects to them.
pub(crate) struct Ports {
    /// envd's own port, which is reached without its help.
    own: u16,
    places: Arc<Semaphore>,
}

impl Ports {
    pub(crate) fn new(own: u16) -> Self {
        Self { own, places: Arc::new(Semaphore::new(CONNECTIONS)) }
    }
}

/// Parameters of the request.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    port: u16,
}

/// Connects, and makes the connection of the request a pipe.
pub(crate) async fn connect(
    State(ports): State<Arc<Ports>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Query(Wanted { port }): Query<Wanted>,
    request: Request,
) -> Response {
    let id = log::request_id(request.headers()).map(str::to_owned);
    if !asks_for_upgrade(request.headers()) {
        return error(StatusCode::UPGRADE_REQUIRED, "send the headers Connection: upgrade and Upgrade: tcp");
    }
    if port == 0 || port == ports.own {
        return error(StatusCode::FORBIDDEN, format!("port {port} is not reached this way"));
    }
    let Ok(place) = Arc::clone(&ports.places).try_acquire_owned() else {
        let message = format!("the sandbox has {CONNECTIONS} connections to its ports: close some");
        return error(StatusCode::TOO_MANY_REQUESTS, message);
    };
    let stream = match timeout(CONNECT, dial(port, peer.own)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(cause)) => {
            return error(StatusCode::BAD_GATEWAY, format!("nothing listens on port {port}: {cause}"));
        }
        Err(_) => {
            let message = format!("what listens on port {port} accepts no connection");
            return error(StatusCode::GATEWAY_TIMEOUT, message);
        }
    };
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(pipe) => pass(TokioIo::new(pipe), stream, place).await,
            Err(cause) => log::line(id.as_deref(), format_args!("a connection was not upgraded: {cause}")),
        }
    });
    let headers = [(header::CONNECTION, HeaderValue::from_static("upgrade")), (header::UPGRADE, PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
}

fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"tcp"))
}

/// Connects to a loopback address, or else to the guest's own.
async fn dial(port: u16, own: IpAddr) -> io::Result<TcpStream> {
    let mut refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), own] {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) if is_itself(&stream) => {}
            Ok(stream) => return Ok(stream),
            // No IPv6 is no cause of interest.
            Err(cause) if cause.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(cause) => refused = cause,
        }
    }
    Err(refused)
}

/// Whether a connection is one to itself, which the kernel makes where nothing listens and the port is also chosen for this
/// end.
fn is_itself(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(own), Ok(peer)) if own == peer)
}

/// Passes bytes on in both directions until both have ended.
async fn pass(
    mut pipe: TokioIo<hyper::upgrade::Upgraded>,
    mut stream: TcpStream,
    _place: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    // How it ended is told by both ends.
    let _ = copy_bidirectional_with_sizes(&mut pipe, &mut stream, BUFFER, BUFFER).await;
}
