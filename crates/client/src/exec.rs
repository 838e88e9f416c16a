// SPDX-License-Identifier: Apache-2.0
//! Command whose output is streamed over a WebSocket.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use reqwest::{Method, Upgraded};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error as WsError, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};
use wrenn_api::{ErrorCode, ExecRequest, SandboxId};

use crate::{
    Client, Error, Result,
    transport::{REQUEST_LIMIT, causes, decode},
};

/// Time without frames after which a ping is sent; a command may be silent, the server may not.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Maximum number of unanswered pings in a row.
const PINGS_MAX: u32 = 4;
/// Maximum size of a frame in bytes: the largest message of an agent, 4 MiB, with every byte escaped.
const FRAME_MAX: usize = 25 << 20;
/// Time limit for sending a frame.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// Event of a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// The command has started.
    Start {
        /// Process id in the sandbox.
        pid: u32,
    },
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// Output is missing between the previous event and the next one.
    Lost {
        /// Number of missing bytes.
        bytes: u64,
    },
    /// The command has exited; this is the last event.
    Exit {
        /// Exit status; 128 + N if signal N ended the command.
        exit_code: i32,
        /// Whether the command was killed because of its timeout.
        timed_out: bool,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Frame {
    Start {
        pid: u32,
    },
    Stdout(Output),
    Stderr(Output),
    Lost {
        bytes: u64,
    },
    Exit {
        exit_code: i32,
        #[serde(default)]
        timed_out: bool,
    },
    Error {
        #[serde(default)]
        data: String,
        #[serde(default)]
        code: String,
    },
}

#[derive(Deserialize)]
struct Output {
    data: String,
    #[serde(default)]
    encoding: Option<String>,
}

/// Running command. Dropping this kills the command.
#[derive(Debug)]
pub struct ExecStream {
    socket: WebSocketStream<Upgraded>,
    done: bool,
}

impl Client {
    /// Starts a command; [`ExecStream::next`] returns its output. Without `timeout_sec` there is no time limit.
    pub async fn exec_stream(&self, id: SandboxId, request: &ExecRequest) -> Result<ExecStream> {
        let key = generate_key();
        let call = self
            .request(Method::GET, &format!("/v1/sandboxes/{id}/exec/stream"))
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", &key);
        let response = timeout(REQUEST_LIMIT, self.send(call)).await.map_err(|_| silent())??;
        let accept = response.headers().get("sec-websocket-accept").map(|value| value.as_bytes().to_vec());
        if response.status() != 101 || accept.as_deref() != Some(derive_accept_key(key.as_bytes()).as_bytes())
        {
            return Err(Error::Protocol("it did not switch to a WebSocket".to_owned()));
        }
        let upgraded = response.upgrade().await.map_err(|error| Error::Protocol(causes(&error)))?;
        let limits =
            WebSocketConfig::default().max_message_size(Some(FRAME_MAX)).max_frame_size(Some(FRAME_MAX));
        let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(limits)).await;
        let mut stream = ExecStream { socket, done: false };
        stream.send(Message::text(start_frame(request).to_string())).await?;
        Ok(stream)
    }
}

fn start_frame(request: &ExecRequest) -> serde_json::Value {
    let mut frame =
        json!({ "type": "start", "cmd": request.cmd, "args": request.args, "envs": request.envs });
    if let Some(seconds) = request.timeout_sec {
        frame["timeout_sec"] = json!(seconds);
    }
    for (name, value) in [("cwd", &request.cwd), ("user", &request.user)] {
        if let Some(value) = value {
            frame[name] = json!(value);
        }
    }
    frame
}

impl ExecStream {
    /// Returns the next event; `None` after the exit.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>> {
        let mut pings = 0;
        while !self.done {
            let Ok(received) = timeout(PING_EVERY, self.socket.next()).await else {
                pings += 1;
                if pings > PINGS_MAX {
                    return Err(silent());
                }
                self.send(Message::Ping(Bytes::new())).await?;
                continue;
            };
            pings = 0;
            match received {
                Some(Ok(Message::Text(text))) => return self.event(text.as_bytes()).map(Some),
                Some(Ok(Message::Binary(_))) => return Err(Error::Protocol("a binary frame".to_owned())),
                Some(Ok(Message::Close(_))) | None => return Err(broken(None)),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(Some(&error))),
            }
        }
        Ok(None)
    }

    /// Stops the command; [`ExecStream::next`] still returns its exit.
    pub async fn stop(&mut self) -> Result<()> {
        self.send(Message::text(json!({ "type": "stop" }).to_string())).await
    }

    async fn send(&mut self, message: Message) -> Result<()> {
        match timeout(SEND_LIMIT, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(broken(Some(&error))),
            Err(_) => Err(silent()),
        }
    }

    fn event(&mut self, text: &[u8]) -> Result<ExecEvent> {
        let event = event(decode(text)?);
        self.done = matches!(event, Err(_) | Ok(ExecEvent::Exit { .. }));
        event
    }
}

fn event(frame: Frame) -> Result<ExecEvent> {
    Ok(match frame {
        Frame::Start { pid } => ExecEvent::Start { pid },
        Frame::Stdout(output) => ExecEvent::Stdout(bytes(output)?),
        Frame::Stderr(output) => ExecEvent::Stderr(bytes(output)?),
        Frame::Lost { bytes } => ExecEvent::Lost { bytes },
        Frame::Exit { exit_code, timed_out } => ExecEvent::Exit { exit_code, timed_out },
        Frame::Error { data, code } => {
            let status = code.parse::<ErrorCode>().map_or(500, ErrorCode::status);
            return Err(Error::Api { status, code, message: data, request_id: None, sandbox_id: None });
        }
    })
}

fn bytes(output: Output) -> Result<Bytes> {
    match output.encoding.as_deref() {
        None | Some("utf-8") => Ok(output.data.into()),
        Some("base64") => STANDARD
            .decode(&output.data)
            .map(Bytes::from)
            .map_err(|error| Error::Protocol(format!("output is not base 64: {error}"))),
        Some(other) => Err(Error::Protocol(format!("output in unknown encoding {other:?}"))),
    }
}

fn silent() -> Error {
    Error::Lost("the API server does not answer any more; the command may still run".to_owned())
}

/// The server ends a command with its connection, so that a broken one tells what became of the command.
fn broken(cause: Option<&WsError>) -> Error {
    let what = "the API server went away while the command ran; the command was ended";
    match cause {
        Some(WsError::Capacity(error)) => {
            Error::Protocol(format!("a frame of the command's stream: {error}"))
        }
        Some(WsError::Io(error)) => Error::Lost(format!("{what} ({error})")),
        _ => Error::Lost(what.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ExecEvent> {
        event(decode(text.as_bytes())?)
    }

    #[test]
    fn frames_are_understood() -> Result<()> {
        assert_eq!(read(r#"{"type":"start","pid":7}"#)?, ExecEvent::Start { pid: 7 });
        assert_eq!(read(r#"{"type":"stdout","data":"a"}"#)?, ExecEvent::Stdout(Bytes::from_static(b"a")));
        let bytes = Bytes::from_static(&[0xff, 0]);
        let frame = r#"{"type":"stderr","data":"/wA=","encoding":"base64"}"#;
        assert_eq!(read(frame)?, ExecEvent::Stderr(bytes));
        assert_eq!(read(r#"{"type":"lost","bytes":9}"#)?, ExecEvent::Lost { bytes: 9 });
        let exit = ExecEvent::Exit { exit_code: 3, timed_out: false };
        assert_eq!(read(r#"{"type":"exit","exit_code":3}"#)?, exit);
        Ok(())
    }

    #[test]
    fn an_error_frame_is_an_error_of_the_api() {
        let error = read(r#"{"type":"error","data":"no such program","code":"not_found"}"#);
        assert!(matches!(error, Err(Error::Api { status: 404, .. })), "{error:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "[]", r#"{"type":"other"}"#, r#"{"type":"stdout","data":"!","encoding":"base64"}"#] {
            assert!(matches!(read(text), Err(Error::Protocol(_))), "{text}");
        }
    }
}
