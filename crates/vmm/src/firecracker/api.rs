//! Firecracker's API: HTTP over a unix socket, one connection a call.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::UnixStream, time::timeout};

use super::jail::SOCKET;
use crate::{VmmError, running::failed};

/// How long a call may take that moves no memory.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const ANSWER_MAX: usize = 64 << 10;

/// Connects through a handle of the directory: its path may be longer than a socket's may.
async fn connect(run_dir: &Path) -> io::Result<UnixStream> {
    let dir = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(run_dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())).await
}

async fn send(run_dir: &Path, method: Method, path: &str, body: &Value) -> io::Result<(bool, Bytes)> {
    let stream = connect(run_dir).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body));
    let request = request.map_err(io::Error::other)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let good = response.status().is_success();
        let body =
            Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(io::Error::other)?;
        Ok((good, body.to_bytes()))
    };
    // The connection ends with the exchange, and with this future: nothing is left behind.
    tokio::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        done = &mut exchange => done,
        ended = &mut connection => match ended {
            // The answer may have come with the end.
            Ok(()) => exchange.await,
            Err(error) => Err(io::Error::other(error)),
        },
    }
}

/// Makes one call. `action` says what for, `limit` how long it may take.
pub(super) async fn call(
    run_dir: &Path,
    (method, path): (Method, &str),
    body: &Value,
    action: &'static str,
    limit: Duration,
) -> Result<Value, VmmError> {
    let answer = timeout(limit, send(run_dir, method, path, body)).await;
    let (good, body) = answer
        .map_err(|_| VmmError::Deadline { action, limit })?
        .map_err(|error| failed(format!("{action}: the VMM's control socket does not answer"), error))?;
    let value: Value =
        if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap_or_default() };
    if good {
        return Ok(value);
    }
    let reason = value["fault_message"].as_str().unwrap_or("no reason given").to_owned();
    Err(VmmError::Refused { action, reason })
}
