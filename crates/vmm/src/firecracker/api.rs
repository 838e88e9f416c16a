// SPDX-License-Identifier: Apache-2.0
//! Client of Firecracker's API: HTTP over a unix socket.

use std::{io, path::Path, pin::pin, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::UnixStream, time::timeout};

use super::jail::SOCKET;
use crate::{VmmError, running::failed, socket};

/// Text by which Firecracker's errors report ENOSPC.
const DISK_FULL: &str = "(os error 28)";
/// Time limit of a call that moves no memory: longer than an overloaded host may stand still, because a resume that is given
/// up loses the memory.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Maximum length of a response, in bytes.
const ANSWER_MAX: usize = 64 << 10;

type Sender = http1::SendRequest<Full<Bytes>>;

/// A connection to one Firecracker. The task that waits for a response polls it: a separate task would have
/// to be woken for every piece, and waits for its turn each time on a busy machine.
pub(super) struct Api {
    sender: Sender,
    /// `None` once it is closed.
    connection: Option<http1::Connection<TokioIo<UnixStream>, Full<Bytes>>>,
}

/// Sends one request and reads the whole response; the caller must poll the connection meanwhile.
async fn exchange(sender: &mut Sender, request: Request<Full<Bytes>>) -> io::Result<(bool, Bytes)> {
    // The previous response may not have been read to its end.
    sender.ready().await.map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let good = response.status().is_success();
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(io::Error::other)?;
    Ok((good, body.to_bytes()))
}

fn unreachable(action: &str) -> impl FnOnce(io::Error) -> VmmError {
    move |error| failed(format!("{action}: the VMM's control socket does not answer"), error)
}

impl Api {
    /// Connects to the Firecracker of this run directory.
    pub(super) async fn connect(run_dir: &Path, action: &'static str) -> Result<Self, VmmError> {
        let handshake = async {
            let stream = socket::connect(&run_dir.join(SOCKET)).await?;
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)
        };
        let (sender, connection) = timeout(CALL_LIMIT, handshake)
            .await
            .map_err(|_| VmmError::Deadline { action, limit: CALL_LIMIT })?
            .map_err(unreachable(action))?;
        Ok(Self { sender, connection: Some(connection) })
    }

    async fn send(&mut self, method: Method, path: &str, body: &Value) -> io::Result<(bool, Bytes)> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body));
        let mut answer = pin!(exchange(&mut self.sender, request.map_err(io::Error::other)?));
        if let Some(connection) = &mut self.connection {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                // Its errors also reach the future that waits for the response.
                _ = connection => {}
            }
        }
        self.connection = None;
        answer.await
    }

    /// Makes one call. `action` describes it for errors; `limit` is its time limit.
    pub(super) async fn call(
        &mut self,
        (method, path): (Method, &str),
        body: &Value,
        action: &'static str,
        limit: Duration,
    ) -> Result<Value, VmmError> {
        let answer = timeout(limit, self.send(method, path, body)).await;
        let (good, body) =
            answer.map_err(|_| VmmError::Deadline { action, limit })?.map_err(unreachable(action))?;
        // A response without a body means success.
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        if good {
            return Ok(value);
        }
        let reason = value["fault_message"].as_str().unwrap_or("no reason given").to_owned();
        if reason.contains(DISK_FULL) {
            return Err(VmmError::Full { action: action.to_owned() });
        }
        Err(VmmError::Refused { action, reason })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, proptest};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use wrenn_testkit::fuzz;

    use super::*;

    const ANSWERS: &[&str] = &[
        "HTTP/1.1 204 No Content\r\nServer: Firecracker API\r\n\r\n",
        "HTTP/1.1 200 \r\ncontent-length: 19\r\n\r\n{\"state\": \"Running\"}",
        "HTTP/1.1 400 \r\ncontent-length: 23\r\n\r\n{\"fault_message\": \"no\"}",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nnull\r\n0\r\n\r\n",
    ];

    /// Makes a call that the VMM answers with these bytes before it closes the connection.
    async fn answered(answer: &[u8]) -> Result<Value, VmmError> {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let vmm = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            // It fails if the other side has given up.
            let _ = stream.write_all(answer).await;
        };
        let ask = async {
            let mut api = Api::connect(dir.path(), "ask").await?;
            api.call((Method::GET, "/"), &Value::Null, "ask", CALL_LIMIT).await
        };
        tokio::join!(vmm, ask).1
    }

    #[tokio::test]
    async fn a_long_answer_is_refused() {
        let body = "x".repeat(ANSWER_MAX + 1);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        assert!(answered(answer.as_bytes()).await.is_err());
    }

    proptest! {
        #![proptest_config(fuzz::config())]

        /// A guest that took over its VMM says what it likes: the call ends, with a result or an error.
        #[test]
        fn whatever_a_vmm_answers_the_call_ends(answer in fuzz::damaged(ANSWERS)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            if let Err(error) = runtime.block_on(answered(&answer)) {
                prop_assert!(!matches!(error, VmmError::Deadline { .. }), "{error}");
            }
        }
    }
}
