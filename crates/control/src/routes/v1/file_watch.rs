// SPDX-License-Identifier: Apache-2.0
//! Changes in a directory over a WebSocket, until the client leaves, the directory or the sandbox is gone, its key is revoked
//! or the server stops.

use std::{pin::pin, sync::Arc};

use axum::{
    Extension,
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, WebSocket, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use futures::StreamExt as _;
use http::HeaderValue;
use tracing::Span;
use wrenn_api::{ErrorCode, FileWatchFrame};

use super::{
    error_responses::OfWatch,
    extract::{Parameters, Target, flag},
    web_socket::{Sink, Source, pings, take_leave, text, transmit},
};
use crate::{
    admission::InWork,
    caller::Caller,
    error::Fault,
    request_trace,
    sandboxes::{AnyPath, FileChanges, OfUser},
    services::Services,
    serving::Connection,
};

/// Maximum size of what a client sends at once, in bytes: pings.
const READ_MAX: usize = 4 << 10;
/// Size of the write buffer, in bytes.
const WRITE_MAX: usize = 64 << 10;

/// Watch a directory over a WebSocket.
///
/// The server sends frames of the schema `FileWatchFrame` as JSON text: first `start`, and then what changes. If there is more
/// than is read, some is left out, and `overflow` says so. The last frame is `error`: the directory was removed, or the sandbox
/// ended or was paused. The client sends nothing.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/files/watch", operation_id = "watchFiles", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("path" = String, Query, description = "Path of the directory: absolute, or relative to a home directory.",
            min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$", example = "project"),
        ("recursive" = Option<bool>, Query, description = "Whether to watch the directories below it, too, also those that come later. Default: false."),
        ("user" = Option<String>, Query, description = "The user from whose home directory a relative path begins. Default: the template's default user.",
            min_length = 1, max_length = 256, pattern = "^[^\\x00]+$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 101, description = "The connection is a WebSocket now."), OfWatch)
)]
pub(super) async fn watch(
    State(services): State<Services>,
    Extension(in_work): Extension<InWork>,
    Extension(connection): Extension<Arc<Connection>>,
    target: Target,
    parameters: Parameters,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Fault> {
    let [path, recursive, user] = parameters.known(["path", "recursive", "user"])?;
    let path = path.ok_or_else(|| Fault::invalid("the parameter path is missing: name the directory"))?;
    let (path, user) = (AnyPath::new("path", path)?, OfUser::new(user)?);
    let recursive = flag("recursive", recursive.as_deref())?;
    let sandbox = services.sandboxes().attach(&target.caller, target.id).await?;
    let upgrade = upgrade.map_err(|_| Fault::invalid("this path speaks WebSocket: ask for an upgrade"))?;
    let changes = sandbox.watch_files(path, user, recursive).await?;
    let (work, span, request) = (connection.work(), Span::current(), request_trace::request_id());
    connection.limit_reads(READ_MAX as u64 * 2);
    let upgrade = upgrade.max_message_size(READ_MAX).max_frame_size(READ_MAX);
    let upgrade = upgrade.read_buffer_size(READ_MAX).write_buffer_size(0).max_write_buffer_size(WRITE_MAX);
    Ok(upgrade.on_upgrade(async move |socket| {
        let _held = (in_work, work);
        let told = tell(&services, &target.caller, &connection, changes, socket);
        request_trace::follow(request.unwrap_or(HeaderValue::from_static("none")), span, told).await;
    }))
}

/// Tells the changes to the client, and at their end why.
async fn tell(
    services: &Services,
    caller: &Caller,
    connection: &Connection,
    changes: FileChanges,
    socket: WebSocket,
) {
    let (mut sink, mut source) = socket.split();
    let mut revoked = pin!(services.access().ended(caller));
    let ended = tokio::select! {
        ended = give(changes, &mut sink) => ended,
        ended = listen(connection, &mut source) => ended,
        () = &mut revoked => {
            Some(Fault::new(ErrorCode::Unauthorized, "the API key or session ended, or lost a permission, while the directory was watched"))
        }
        () = services.shutdown().cancelled() => {
            let message = "the control plane is restarting; watch the directory again";
            Some(Fault::new(ErrorCode::ServiceUnavailable, message))
        }
    };
    let render = |fault: Fault| text(&FileWatchFrame::Error { data: fault.message, code: fault.code });
    let _ = take_leave(&mut sink, ended.map_or(Ok(()), Err), render).await;
}

/// Sends changes until there are no more; returns why, unless the client is gone.
async fn give(mut changes: FileChanges, sink: &mut Sink) -> Option<Fault> {
    let mut ping = pings();
    loop {
        let message = tokio::select! {
            change = changes.next() => match change {
                Ok(frame) => text(&frame),
                Err(fault) => return Some(fault),
            },
            _ = ping.tick() => Message::Ping(Vec::new().into()),
        };
        if transmit(sink, message).await.is_err() {
            return None;
        }
    }
}

/// Waits until the client leaves, or says something.
async fn listen(connection: &Connection, source: &mut Source) -> Option<Fault> {
    loop {
        let message = source.next().await;
        connection.heard();
        match message {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(Message::Text(_) | Message::Binary(_))) => {
                return Some(Fault::invalid(
                    "the client sends no frames here: close the connection to leave",
                ));
            }
        }
    }
}
