// SPDX-License-Identifier: Apache-2.0
//! Listener: accepts connections and serves HTTP on them, with limits on all resources of a peer:
//! connections, in total and per address; the head of a request, in bytes and time; responses that are not
//! read.

mod answer;
mod connection;
mod io;
mod places;
mod request_body;

pub(crate) use answer::Holding;
pub(crate) use connection::Connection;

use std::{
    convert::Infallible,
    io::ErrorKind,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{body::Body, extract::Request, response::Response};
use http::{HeaderValue, Version, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use answer::Answer;
use io::Io;
use places::Places;
use request_body::RequestBody;

/// Time limit for running requests after a stop.
const GRACE: Duration = Duration::from_secs(5);
/// Time for which a client may go on sending after it was answered and before the connection is closed.
pub(crate) const LINGER: Duration = Duration::from_secs(30);
/// Maximum size of a request's head, in bytes; also of a connection's read and write buffers.
const HEAD_MAX: usize = 32 << 10;
/// Maximum number of concurrent requests per HTTP/2 connection.
const STREAMS: u32 = 128;
/// HTTP/2 flow-control windows in bytes, per request and per connection.
const WINDOWS: (u32, u32) = (128 << 10, 256 << 10);
/// Interval and timeout of HTTP/2 keep-alive pings.
const ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));
/// Pause after a failed accept, for example for lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Minimum interval between log messages about a repeated event.
const LOGGED: Duration = Duration::from_secs(10);

/// Limits on connections.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Maximum number of connections.
    pub(crate) connections: usize,
    /// Maximum number of connections of one address (one /64 of IPv6).
    pub(crate) per_address: usize,
    /// Time limit for receiving a request's head; for the first one, since the connection was accepted.
    pub(crate) head: Duration,
    /// Idle time after which a connection without requests is closed.
    pub(crate) idle: Duration,
    /// Time after which a connection is closed if the client reads nothing.
    pub(crate) stall: Duration,
    /// Time for which a connection that was answered early is still read from, before it is closed.
    pub(crate) linger: Duration,
}

/// Rate limit of a log message.
struct Seldom {
    state: Mutex<(Option<Instant>, u64)>,
}

impl Seldom {
    const fn new() -> Self {
        Self { state: Mutex::new((None, 0)) }
    }

    /// Counts an event; returns the number of events since the last message, if a message is due.
    fn due(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 += 1;
        if state.0.is_some_and(|at| at.elapsed() < LOGGED) {
            return None;
        }
        state.0 = Some(Instant::now());
        Some(std::mem::take(&mut state.1))
    }
}

/// Serves `service` on connections of `listener` until `shutdown` is cancelled and running requests have
/// ended, or their grace period is over.
pub(crate) async fn serve<S>(
    listener: TcpListener,
    service: S,
    bounds: Bounds,
    tls: Option<TlsAcceptor>,
    shutdown: CancellationToken,
) where
    S: tower::Service<Request, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let places = Places::new(bounds.connections, bounds.per_address);
    let (tracker, bounds) = (TaskTracker::new(), Arc::new(bounds));
    let (full, failing) = (Seldom::new(), Seldom::new());
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // The peer closed the connection before it was accepted.
            Err(error) if gone(error.kind()) => continue,
            Err(error) => {
                metrics::counter!("wrenn_http_accept_errors_total").increment(1);
                if let Some(times) = failing.due() {
                    tracing::error!(%error, times, "connections cannot be accepted");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let connection = Arc::new(Connection::new(peer));
        let Some(place) = places.take(&connection) else {
            metrics::counter!("wrenn_http_connections_refused_total").increment(1);
            if let Some(times) = full.due() {
                let (all, per_address) = (bounds.connections, bounds.per_address);
                tracing::warn!(%peer, times, all, per_address, "connections are refused: all places are taken by requests in work; see server.connections and server.connections_per_address");
            }
            continue;
        };
        // Small frames are sent at once; without it the kernel just waits for more.
        let _ = stream.set_nodelay(true);
        let io = Io::new(stream, connection.clone(), place, &bounds);
        let (service, bounds, shutdown) = (service.clone(), bounds.clone(), shutdown.clone());
        match tls.clone() {
            None => tracker.spawn(drive(io, connection, service, bounds, shutdown)),
            Some(tls) => tracker.spawn(async move {
                let shaken = tokio::time::timeout(bounds.head, tls.accept(io)).await;
                if let Ok(Ok(io)) = shaken {
                    drive(io, connection, service, bounds, shutdown).await;
                }
            }),
        };
    }
    drop(listener);
    tracker.close();
    let _ = tokio::time::timeout(GRACE, tracker.wait()).await;
}

fn gone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
}

/// Serves one connection to its end.
async fn drive<S, T>(
    io: T,
    connection: Arc<Connection>,
    service: S,
    bounds: Arc<Bounds>,
    shutdown: CancellationToken,
) where
    S: tower::Service<Request, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(bounds.head).max_buf_size(HEAD_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_MAX as u32)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_send_buf_size(HEAD_MAX)
        .keep_alive_interval(ALIVE.0)
        .keep_alive_timeout(ALIVE.1);
    let answered = connection.clone();
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (service, connection) = (service.clone(), answered.clone());
        let work = connection.work();
        async move {
            let (head, body) = request.into_parts();
            let (version, (body, ended)) = (head.version, RequestBody::new(body));
            let mut request = Request::from_parts(head, Body::new(body));
            request.extensions_mut().insert(connection);
            let mut response = service.oneshot(request).await?;
            if version < Version::HTTP_2 && !ended.get() {
                // The connection will be closed. A client that is not told could send its next request over it.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Answer::new(body, work)))
        }
    });
    let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
    let mut look = tokio::time::interval(bounds.head.min(bounds.idle).min(bounds.stall) / 4);
    let mut stopping = false;
    loop {
        tokio::select! {
            result = serving.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(peer = %connection.peer(), %error, "a connection ended");
                }
                return;
            }
            () = connection.ended() => return,
            _ = look.tick() => {
                if let Some(why) = connection.overdue(&bounds) {
                    tracing::debug!(peer = %connection.peer(), why, "a connection is closed");
                    return;
                }
            }
            () = shutdown.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests;
