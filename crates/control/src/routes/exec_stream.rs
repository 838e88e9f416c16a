//! Commands with output streamed over a WebSocket.

use std::time::Duration;

use axum::{
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use connectrpc::ConnectError;
use tokio::time::Instant;
use wrenn_api::{
    ErrorCode, ExecClientFrame as FromClient, ExecError, ExecExit, ExecLost, ExecOutput,
    ExecServerFrame as ToClient, ExecStart, ExecStarted,
};
use wrenn_rpc::host::v1::{__buffa::oneof::exec_stream_response::Event, ExecStreamRequest};

use super::{
    exec::check,
    progress::{By, moving},
    refusals::OfExecStream,
    utf8::{Piece, Pieces},
};
use crate::{agents::AgentClient, error::ApiError, extract::Target, sandboxes as service, state::App};

/// Time limit for the client's first frame.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// The largest frame of a client.
const FRAME_MAX: usize = 2 << 20;
/// A sign of life, so that nothing between client and server takes the connection for dead.
const PING: Duration = Duration::from_secs(20);

impl From<Piece> for ExecOutput {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Text(data) => Self { data, encoding: None },
            Piece::Bytes(bytes) => Self { data: STANDARD.encode(bytes), encoding: Some("base64".to_owned()) },
        }
    }
}

/// Run a command and stream its output over a WebSocket.
///
/// Frames are JSON text: the client sends frames of the schema `ExecClientFrame`, first `start`; the server sends frames of
/// the schema `ExecServerFrame`, last `exit` or `error`. The command is killed with its descendants when the client sends
/// `stop` or closes the connection.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/exec/stream", operation_id = "execStream", tag = "commands", security(("api_key" = [])),
    params(("id" = String, Path, description = "Id of the sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    responses((status = 101, description = "The connection is a WebSocket now."), OfExecStream)
)]
pub(super) async fn exec_stream(
    State(app): State<App>,
    target: Target,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let agent = service::running_apart(&app, target.team, target.id).await?;
    let upgrade = upgrade.map_err(|_| ApiError::invalid("this path speaks WebSocket: ask for an upgrade"))?;
    let Ok(permit) = app.streams.clone().try_acquire_owned() else {
        let message = "the control plane has too many streams open; close some, or try again later";
        return Err(ApiError::new(ErrorCode::TooManyRequests, message));
    };
    let upgrade = upgrade.max_message_size(FRAME_MAX).max_frame_size(FRAME_MAX);
    Ok(upgrade.on_upgrade(async move |mut socket| {
        let _permit = permit;
        let id = target.id.to_string();
        let ended = converse(&app, agent, id, &mut socket).await;
        let _ = take_leave(&mut socket, ended).await;
    }))
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

async fn first_frame(socket: &mut WebSocket) -> Result<Option<FromClient>, ApiError> {
    let deadline = Instant::now() + FIRST_FRAME;
    loop {
        let late = || ApiError::invalid("the first frame did not come in time: send {\"type\":\"start\",…}");
        let frame = tokio::time::timeout_at(deadline, socket.recv()).await.map_err(|_| late())?;
        let bytes = match frame {
            Some(Ok(Message::Text(text))) => text.as_bytes().to_vec(),
            Some(Ok(Message::Binary(bytes))) => bytes.to_vec(),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(None),
        };
        let parsed = serde_json::from_slice(&bytes);
        return parsed.map(Some).map_err(|error| ApiError::invalid(format!("the first frame: {error}")));
    }
}

async fn converse(app: &App, agent: AgentClient, id: String, socket: &mut WebSocket) -> Result<(), Early> {
    let request = match first_frame(socket).await? {
        Some(FromClient::Start(ExecStart { cmd, args, envs, cwd, user, timeout_sec })) => ExecStreamRequest {
            sandbox_id: id,
            command: check(cmd, args, envs, cwd, user)?.into(),
            timeout_ms: timeout_sec.unwrap_or_default().saturating_mul(1000),
            ..Default::default()
        },
        Some(FromClient::Stop) => {
            return Err(ApiError::invalid("nothing was started yet: send {\"type\":\"start\",…}").into());
        }
        None => return Ok(()),
    };
    let mut stream = agent.exec_stream(request).await?;
    let (mut stdout, mut stderr) = (Pieces::default(), Pieces::default());
    let mut ping = tokio::time::interval(PING);
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            frame = socket.recv() => match frame {
                Some(Ok(Message::Text(text))) if matches!(serde_json::from_str(&text), Ok(FromClient::Stop)) => return Ok(()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(()),
                Some(Ok(_)) => continue,
            },
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
        let mut frames = Vec::new();
        let mut last = false;
        match event {
            Some(Event::Start(start)) => frames.push(ToClient::Start(ExecStarted { pid: start.pid })),
            Some(Event::Stdout(bytes)) => {
                frames.extend(stdout.push(&bytes).map(|piece| ToClient::Stdout(piece.into())));
            }
            Some(Event::Stderr(bytes)) => {
                frames.extend(stderr.push(&bytes).map(|piece| ToClient::Stderr(piece.into())));
            }
            Some(Event::Lost(lost)) => frames.push(ToClient::Lost(ExecLost { bytes: lost.bytes })),
            Some(Event::End(end)) => {
                frames.extend(stdout.finish().map(|piece| ToClient::Stdout(piece.into())));
                frames.extend(stderr.finish().map(|piece| ToClient::Stderr(piece.into())));
                frames.push(ToClient::Exit(ExecExit { exit_code: end.exit_code, timed_out: end.timed_out }));
                last = true;
            }
            None => {}
        }
        for frame in &frames {
            send(socket, frame).await?;
        }
        if last {
            return Ok(());
        }
    }
}
