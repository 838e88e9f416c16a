// SPDX-License-Identifier: Apache-2.0
//! Commands with output streamed over a WebSocket.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use serde::Deserialize;
use tokio::time::Instant;
use tracing::Span;
use wrenn_api::{
    ErrorCode, ExecClientFrame as FromClient, ExecError, ExecExit, ExecLost, ExecOutput,
    ExecServerFrame as ToClient, ExecStarted,
};

use super::{
    error_responses::OfExecStream,
    exec_body::costly,
    extract::Target,
    utf8::{Piece, Pieces},
};
use crate::{
    admission::{Held, InWork},
    caller::Caller,
    error::Fault,
    request_trace,
    sandboxes::{Attached, CommandEvent},
    services::Services,
    serving::Connection,
    stall::{By, moving},
};

/// Time limit for the client's first frame.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// Maximum size of a client's first frame, which has the command, in bytes.
const FIRST_MAX: usize = 2 << 20;
/// Maximum size of later input of a client between two frames, in bytes; also of the first frame if memory is
/// short.
const LATER_MAX: usize = 128 << 10;
/// Maximum number of a client's frames per second, pings included.
const FRAMES_PER_SECOND: u32 = 64;
/// Size of the write buffer for pongs and frames, in bytes.
const WRITE_MAX: usize = 256 << 10;
/// Maximum number of output bytes per frame, before encoding.
const PIECE: usize = 32 << 10;
/// Size of the read buffer, in bytes.
const READ_BUFFER: usize = 16 << 10;
/// Size in bytes below which text is never sent as base 64.
const SMALL: usize = 1 << 10;
/// Interval between WebSocket pings, so that proxies do not close an idle connection.
const PING: Duration = Duration::from_secs(20);

/// Run a command and stream its output over a WebSocket.
///
/// Frames are JSON text: the client sends frames of the schema `ExecClientFrame`, first `start`; the server sends frames of
/// the schema `ExecServerFrame`, last `exit` or `error`. The command is killed with its descendants when the client sends
/// `stop` or a frame that is not known, or closes the connection. The command has no standard input.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/exec/stream", operation_id = "execStream", tag = "commands",
    params(("id" = String, Path, description = "Id of the sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    responses((status = 101, description = "The connection is a WebSocket now."), OfExecStream)
)]
pub(super) async fn exec_stream(
    State(services): State<Services>,
    Extension(in_work): Extension<InWork>,
    Extension(connection): Extension<Arc<Connection>>,
    target: Target,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Fault> {
    let sandbox = services.sandboxes().attach(&target.caller, target.id).await?;
    let upgrade = upgrade.map_err(|_| Fault::invalid("this path speaks WebSocket: ask for an upgrade"))?;
    Ok(open(Stream { services, caller: target.caller, sandbox, connection }, upgrade, in_work))
}

/// Parameters of a stream.
struct Stream {
    services: Services,
    caller: Caller,
    sandbox: Attached,
    connection: Arc<Connection>,
}

/// Upgrades to WebSocket, and keeps `held` until the end of the connection.
fn open(stream: Stream, upgrade: WebSocketUpgrade, held: impl Send + 'static) -> Response {
    // If memory is short, small commands still work.
    let all = &stream.services.state().admission.memory;
    let memory = all.try_take(stream.caller.team().uuid(), FIRST_MAX).ok();
    let first = if memory.is_some() { FIRST_MAX } else { LATER_MAX };
    let (work, span, request) = (stream.connection.work(), Span::current(), request_trace::request_id());
    let upgrade = upgrade.max_message_size(first).max_frame_size(first);
    let upgrade = upgrade.read_buffer_size(READ_BUFFER).write_buffer_size(0).max_write_buffer_size(WRITE_MAX);
    stream.connection.limit_reads((first + LATER_MAX) as u64);
    upgrade.on_upgrade(async move |mut socket| {
        let _held = (held, work);
        let conversation = async {
            let ended = converse(&stream, memory, &mut socket).await;
            let _ = take_leave(&mut socket, ended).await;
        };
        request_trace::follow(request.unwrap_or(HeaderValue::from_static("none")), span, conversation).await;
    })
}

/// Cause of an early end.
enum Early {
    /// The client is gone, or does not read.
    Gone,
    /// An error for the client.
    Failed(Fault),
}

impl From<Fault> for Early {
    fn from(error: Fault) -> Self {
        Self::Failed(error)
    }
}

/// Sends the error, if any, and closes the socket.
async fn take_leave(socket: &mut WebSocket, ended: Result<(), Early>) -> Result<(), Early> {
    if let Err(early) = ended {
        let Early::Failed(error) = early else { return Err(early) };
        send(socket, &ToClient::Error(ExecError { data: error.message, code: error.code })).await?;
    }
    transmit(socket, Message::Close(None)).await
}

async fn send(socket: &mut WebSocket, frame: &ToClient) -> Result<(), Early> {
    let text = serde_json::to_string(frame).map_err(|_| Early::Gone)?;
    transmit(socket, Message::Text(text.into())).await
}

async fn transmit(socket: &mut WebSocket, message: Message) -> Result<(), Early> {
    match moving(By::ClientTakes, socket.send(message)).await {
        Ok(sent) => sent.map_err(|_| Early::Gone),
        Err(error) => {
            // The client would not read the error either.
            tracing::warn!(%error, "a command whose output nobody reads is ended");
            Err(Early::Gone)
        }
    }
}

/// Rate limit of a client's frames.
struct Frames<'a> {
    connection: &'a Connection,
    second: Instant,
    count: u32,
}

impl<'a> Frames<'a> {
    fn new(connection: &'a Connection) -> Self {
        Self { connection, second: Instant::now(), count: 0 }
    }

    fn count(&mut self) -> Result<(), Fault> {
        self.connection.heard();
        if self.second.elapsed() >= Duration::from_secs(1) {
            (self.second, self.count) = (Instant::now(), 0);
        }
        self.count += 1;
        if self.count > FRAMES_PER_SECOND {
            let message = format!("the client sends more than {FRAMES_PER_SECOND} frames a second");
            return Err(Fault::new(ErrorCode::TooManyRequests, message));
        }
        Ok(())
    }
}

/// Parses a frame. Clients of other services may send a frame with standard input, which gets an error of its
/// own.
fn parse(frame: &[u8]) -> Result<FromClient, Fault> {
    #[derive(Deserialize)]
    struct Kind {
        r#type: String,
    }
    let error = match serde_json::from_slice(frame) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    if serde_json::from_slice(frame).is_ok_and(|kind: Kind| kind.r#type == "stdin") {
        let message =
            "there is no standard input yet: write a file into the sandbox and have the command read it";
        return Err(Fault::invalid(message));
    }
    Err(Fault::invalid(format!("the frame is not known: {error}")))
}

async fn first_frame(socket: &mut WebSocket, frames: &mut Frames<'_>) -> Result<Option<FromClient>, Fault> {
    let deadline = Instant::now() + FIRST_FRAME;
    loop {
        let late = || Fault::invalid("the first frame did not come in time: send {\"type\":\"start\",…}");
        let frame = tokio::time::timeout_at(deadline, socket.recv()).await.map_err(|_| late())?;
        frames.count()?;
        return match frame {
            Some(Ok(Message::Text(text))) => parse(text.as_bytes()).map(Some),
            Some(Ok(Message::Binary(bytes))) => parse(&bytes).map(Some),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => Ok(None),
        };
    }
}

/// Handles a later frame of the client: true if the command must stop. All other frames but pings and pongs
/// are errors.
fn later_frame(frame: Option<Result<Message, axum::Error>>) -> Result<bool, Fault> {
    let said = match frame {
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(false),
        Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(true),
        Some(Ok(Message::Text(text))) => parse(text.as_bytes())?,
        Some(Ok(Message::Binary(bytes))) => parse(&bytes)?,
    };
    match said {
        FromClient::Stop => Ok(true),
        FromClient::Start(_) => Err(Fault::invalid(
            "a command runs already in this stream: open another stream for another command",
        )),
    }
}

async fn converse(stream: &Stream, memory: Option<Held>, socket: &mut WebSocket) -> Result<(), Early> {
    let Stream { services, caller, sandbox, connection } = stream;
    let mut client = Frames::new(connection);
    let start = match first_frame(socket, &mut client).await? {
        Some(FromClient::Start(start)) => start,
        Some(FromClient::Stop) => {
            return Err(Fault::invalid("nothing was started yet: send {\"type\":\"start\",…}").into());
        }
        None => return Ok(()),
    };
    connection.limit_reads(LATER_MAX as u64);
    drop(memory);
    let mut command = sandbox.exec_stream(start).await?;
    let mut revoked = pin!(services.keys().revoked(caller));
    let mut output = Output::default();
    let mut ping = tokio::time::interval(PING);
    loop {
        let event = tokio::select! {
            event = command.next() => event?,
            frame = socket.recv() => {
                client.count()?;
                if later_frame(frame)? {
                    return Ok(());
                }
                continue;
            }
            () = &mut revoked => return Err(was_revoked().into()),
            _ = ping.tick() => {
                transmit(socket, Message::Ping(Vec::new().into())).await?;
                continue;
            }
            () = services.shutdown().cancelled() => {
                let message = "the control plane is restarting; the command was ended";
                return Err(Fault::new(ErrorCode::ServiceUnavailable, message).into());
            }
        };
        let last = matches!(event, CommandEvent::Ended { .. });
        output.pass_on(event, socket).await?;
        if last {
            return Ok(());
        }
    }
}

/// Fault of a stream whose key was revoked.
fn was_revoked() -> Fault {
    Fault::new(ErrorCode::Unauthorized, "the API key was revoked while the stream was open")
}

/// Incomplete characters at the end of both outputs.
#[derive(Default)]
struct Output {
    stdout: Pieces,
    stderr: Pieces,
}

impl Output {
    /// Sends an event of the command to the client.
    async fn pass_on(&mut self, event: CommandEvent, socket: &mut WebSocket) -> Result<(), Early> {
        match event {
            CommandEvent::Started(pid) => send(socket, &ToClient::Start(ExecStarted { pid })).await?,
            CommandEvent::Stdout(bytes) => {
                for piece in bytes.chunks(PIECE).filter_map(|bytes| self.stdout.push(bytes)) {
                    send(socket, &ToClient::Stdout(piece.into())).await?;
                }
            }
            CommandEvent::Stderr(bytes) => {
                for piece in bytes.chunks(PIECE).filter_map(|bytes| self.stderr.push(bytes)) {
                    send(socket, &ToClient::Stderr(piece.into())).await?;
                }
            }
            CommandEvent::Lost(bytes) => {
                // The next output is not contiguous: an incomplete character must not be joined with it.
                self.rest(socket).await?;
                send(socket, &ToClient::Lost(ExecLost { bytes })).await?;
            }
            CommandEvent::Ended { exit_code, timed_out, lost_bytes } => {
                self.rest(socket).await?;
                send(socket, &ToClient::Exit(ExecExit { exit_code, timed_out, lost_bytes })).await?;
            }
        }
        Ok(())
    }

    /// Sends the rest of both outputs.
    async fn rest(&mut self, socket: &mut WebSocket) -> Result<(), Early> {
        if let Some(piece) = self.stdout.finish() {
            send(socket, &ToClient::Stdout(piece.into())).await?;
        }
        if let Some(piece) = self.stderr.finish() {
            send(socket, &ToClient::Stderr(piece.into())).await?;
        }
        Ok(())
    }
}

impl From<Piece> for ExecOutput {
    fn from(piece: Piece) -> Self {
        let base64 =
            |bytes: Vec<u8>| Self { data: STANDARD.encode(bytes), encoding: Some("base64".to_owned()) };
        match piece {
            Piece::Text(data) if !costly(data.as_bytes(), SMALL) => Self { data, encoding: None },
            Piece::Text(data) => base64(data.into_bytes()),
            Piece::Bytes(bytes) => base64(bytes),
        }
    }
}

#[cfg(test)]
mod tests;
