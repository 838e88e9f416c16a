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
use connectrpc::ConnectError;
use http::HeaderValue;
use serde::Deserialize;
use tokio::time::Instant;
use tracing::Span;
use wrenn_api::{
    ErrorCode, ExecClientFrame as FromClient, ExecError, ExecExit, ExecLost, ExecOutput,
    ExecServerFrame as ToClient, ExecStart, ExecStarted, SandboxId,
};
use wrenn_rpc::host::v1::{__buffa::oneof::exec_stream_response::Event, ExecStreamRequest};

use super::{
    exec::check,
    output::costly,
    progress::{By, moving},
    refusals::OfExecStream,
    utf8::{Piece, Pieces},
};
use crate::{
    admission::{Held, InWork},
    agents::AgentClient,
    auth::{self, Asker},
    error::ApiError,
    extract::Target,
    sandboxes as service,
    serving::Connection,
    state::App,
    trail,
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

/// Run a command and stream its output over a WebSocket.
///
/// Frames are JSON text: the client sends frames of the schema `ExecClientFrame`, first `start`; the server sends frames of
/// the schema `ExecServerFrame`, last `exit` or `error`. The command is killed with its descendants when the client sends
/// `stop` or a frame that is not known, or closes the connection. The command has no standard input.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/exec/stream", operation_id = "execStream", tag = "commands", security(("api_key" = [])),
    params(("id" = String, Path, description = "Id of the sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    responses((status = 101, description = "The connection is a WebSocket now."), OfExecStream)
)]
pub(super) async fn exec_stream(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    Extension(in_work): Extension<InWork>,
    Extension(connection): Extension<Arc<Connection>>,
    target: Target,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let agent = service::running_apart(&app, target.team, target.id).await?;
    let upgrade = upgrade.map_err(|_| ApiError::invalid("this path speaks WebSocket: ask for an upgrade"))?;
    Ok(open(Stream { app, asker, agent, sandbox: target.id, connection }, upgrade, in_work))
}

/// Parameters of a stream.
struct Stream {
    app: App,
    asker: Asker,
    agent: AgentClient,
    sandbox: SandboxId,
    connection: Arc<Connection>,
}

/// Upgrades to WebSocket, and keeps `held` until the end of the connection.
fn open(stream: Stream, upgrade: WebSocketUpgrade, held: impl Send + 'static) -> Response {
    // If memory is short, small commands still work.
    let memory = stream.app.admission.memory.try_take(stream.asker.team, FIRST_MAX).ok();
    let first = if memory.is_some() { FIRST_MAX } else { LATER_MAX };
    let (work, span, request) = (stream.connection.work(), Span::current(), trail::request_id());
    let upgrade = upgrade.max_message_size(first).max_frame_size(first);
    let upgrade = upgrade.read_buffer_size(READ_BUFFER).write_buffer_size(0).max_write_buffer_size(WRITE_MAX);
    stream.connection.limit_reads((first + LATER_MAX) as u64);
    upgrade.on_upgrade(async move |mut socket| {
        let _held = (held, work);
        let conversation = async {
            let ended = converse(&stream, memory, &mut socket).await;
            let _ = take_leave(&mut socket, ended).await;
        };
        trail::follow(request.unwrap_or(HeaderValue::from_static("none")), span, conversation).await;
    })
}

/// Cause of an early end.
enum Early {
    /// The client is gone, or does not read.
    Gone,
    /// An error for the client.
    Failed(ApiError),
}

impl From<ApiError> for Early {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

impl From<ConnectError> for Early {
    fn from(error: ConnectError) -> Self {
        Self::Failed(error.into())
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

    fn count(&mut self) -> Result<(), ApiError> {
        self.connection.heard();
        if self.second.elapsed() >= Duration::from_secs(1) {
            (self.second, self.count) = (Instant::now(), 0);
        }
        self.count += 1;
        if self.count > FRAMES_PER_SECOND {
            let message = format!("the client sends more than {FRAMES_PER_SECOND} frames a second");
            return Err(ApiError::new(ErrorCode::TooManyRequests, message));
        }
        Ok(())
    }
}

/// Parses a frame. Clients of other services may send a frame with standard input, which gets an error of its
/// own.
fn parse(frame: &[u8]) -> Result<FromClient, ApiError> {
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
        return Err(ApiError::invalid(message));
    }
    Err(ApiError::invalid(format!("the frame is not known: {error}")))
}

async fn first_frame(
    socket: &mut WebSocket,
    frames: &mut Frames<'_>,
) -> Result<Option<FromClient>, ApiError> {
    let deadline = Instant::now() + FIRST_FRAME;
    loop {
        let late = || ApiError::invalid("the first frame did not come in time: send {\"type\":\"start\",…}");
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
fn later_frame(frame: Option<Result<Message, axum::Error>>) -> Result<bool, ApiError> {
    let said = match frame {
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(false),
        Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(true),
        Some(Ok(Message::Text(text))) => parse(text.as_bytes())?,
        Some(Ok(Message::Binary(bytes))) => parse(&bytes)?,
    };
    match said {
        FromClient::Stop => Ok(true),
        FromClient::Start(_) => Err(ApiError::invalid(
            "a command runs already in this stream: open another stream for another command",
        )),
    }
}

async fn converse(stream: &Stream, memory: Option<Held>, socket: &mut WebSocket) -> Result<(), Early> {
    let Stream { app, asker, agent, sandbox, connection } = stream;
    let mut client = Frames::new(connection);
    let request = match first_frame(socket, &mut client).await? {
        Some(FromClient::Start(ExecStart { cmd, args, envs, cwd, user, timeout_sec })) => ExecStreamRequest {
            sandbox_id: sandbox.to_string(),
            command: check(cmd, args, envs, cwd, user)?.into(),
            timeout_ms: timeout_sec.unwrap_or_default().saturating_mul(1000),
            ..Default::default()
        },
        Some(FromClient::Stop) => {
            return Err(ApiError::invalid("nothing was started yet: send {\"type\":\"start\",…}").into());
        }
        None => return Ok(()),
    };
    connection.limit_reads(LATER_MAX as u64);
    drop(memory);
    let mut revoked = pin!(auth::revoked(app, *asker));
    let mut stream = agent.exec_stream(request).await?;
    let (mut stdout, mut stderr) = (Pieces::default(), Pieces::default());
    let mut ping = tokio::time::interval(PING);
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            frame = socket.recv() => {
                client.count()?;
                if later_frame(frame)? {
                    return Ok(());
                }
                continue;
            }
            () = &mut revoked => return Err(auth::was_revoked().into()),
            _ = ping.tick() => {
                transmit(socket, Message::Ping(Vec::new().into())).await?;
                continue;
            }
            () = app.shutdown.cancelled() => {
                let message = "the control plane is restarting; the command was ended";
                return Err(ApiError::new(ErrorCode::ServiceUnavailable, message).into());
            }
        };
        let ended = || ApiError::new(ErrorCode::AgentError, "the command's end was not reported");
        let event = message.ok_or_else(ended)?.to_owned_message().event;
        let mut last = false;
        match event {
            Some(Event::Start(start)) => {
                send(socket, &ToClient::Start(ExecStarted { pid: start.pid })).await?;
            }
            Some(Event::Stdout(bytes)) => {
                for piece in bytes.chunks(PIECE).filter_map(|bytes| stdout.push(bytes)) {
                    send(socket, &ToClient::Stdout(piece.into())).await?;
                }
            }
            Some(Event::Stderr(bytes)) => {
                for piece in bytes.chunks(PIECE).filter_map(|bytes| stderr.push(bytes)) {
                    send(socket, &ToClient::Stderr(piece.into())).await?;
                }
            }
            Some(Event::Lost(lost)) => {
                // The next output is not contiguous: an incomplete character must not be joined with it.
                rest(socket, &mut stdout, &mut stderr).await?;
                send(socket, &ToClient::Lost(ExecLost { bytes: lost.bytes })).await?;
            }
            Some(Event::End(end)) => {
                rest(socket, &mut stdout, &mut stderr).await?;
                let (exit_code, timed_out, lost_bytes) = (end.exit_code, end.timed_out, end.lost_bytes);
                send(socket, &ToClient::Exit(ExecExit { exit_code, timed_out, lost_bytes })).await?;
                last = true;
            }
            None => {}
        }
        if last {
            return Ok(());
        }
    }
}

/// Sends the rest of both outputs.
async fn rest(socket: &mut WebSocket, stdout: &mut Pieces, stderr: &mut Pieces) -> Result<(), Early> {
    if let Some(piece) = stdout.finish() {
        send(socket, &ToClient::Stdout(piece.into())).await?;
    }
    if let Some(piece) = stderr.finish() {
        send(socket, &ToClient::Stderr(piece.into())).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
