// SPDX-License-Identifier: Apache-2.0
//! Processes over a WebSocket: a command that is started so, a process that runs, or a terminal, with input and output.

mod conversation;
mod frames;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{
    Extension,
    extract::{State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    response::Response,
};
use http::HeaderValue;
use tracing::Span;

use self::{
    conversation::{Subject, hold},
    frames::{Dialect, FIRST_MAX, LATER_MAX, Output, SUBPROTOCOL, TERMINAL_SUBPROTOCOL},
};
use super::{
    error_responses::OfExecStream,
    extract::{OfProcess, Parameters, Target},
};
use crate::{
    admission::InWork,
    caller::Caller,
    error::Fault,
    request_trace,
    sandboxes::{Attached, From},
    services::Services,
    serving::Connection,
};

/// Size of the write buffer for pongs and frames, in bytes.
const WRITE_MAX: usize = 256 << 10;
/// Size of the read buffer, in bytes.
const READ_BUFFER: usize = 16 << 10;

/// Run a command and stream its input and output over a WebSocket.
///
/// Frames are JSON text: the client sends frames of the schema `ExecClientFrame`, first `start`; the server sends frames of
/// the schema `ExecServerFrame`, last `exit` or `error`. With the subprotocol `wrenn.process.v1`, input and output are binary
/// frames instead: a byte for the channel (0 standard input, 1 standard output, 2 standard error), and then the bytes. The
/// command is killed with its descendants when the client sends `stop` or a frame that is not known, or closes the connection.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/exec/stream", operation_id = "execStream", tag = "commands",
    params(("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
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
    let stream = Stream { services, caller: target.caller, sandbox, connection };
    let (upgrade, dialect) = of_process(checked(upgrade)?);
    Ok(open(stream, Subject::Named, dialect, upgrade, in_work))
}

/// Attach to a running process over a WebSocket.
///
/// The frames are those of `execStream`, without `start`. Output is read from `from`, which makes it possible to go on where
/// a stream broke off; what is not kept any more is told by a frame `lost`. The process goes on when the client leaves. One
/// that ended less than ten minutes ago can be read, too.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/processes/{selector}/stream", operation_id = "processStream", tag = "commands",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("selector" = String, Path, description = "The process: digits are its id, and all else is its tag.", pattern = "^[A-Za-z0-9._-]{1,128}$", example = "proc-0a1b2c3d"),
        ("from" = Option<String>, Query, description = "Where the output begins: `beginning`, `now`, or a number of bytes since the start of the process. Default: `beginning`.",
            pattern = "^(beginning|now|[0-9]{1,19})$", example = "now"),
    ),
    responses((status = 101, description = "The connection is a WebSocket now."), OfExecStream)
)]
pub(super) async fn process_stream(
    State(services): State<Services>,
    Extension(in_work): Extension<InWork>,
    Extension(connection): Extension<Arc<Connection>>,
    target: Target,
    OfProcess(process): OfProcess,
    parameters: Parameters,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Fault> {
    let from = from(parameters)?;
    let sandbox = services.sandboxes().attach(&target.caller, target.id).await?;
    let stream = Stream { services, caller: target.caller, sandbox, connection };
    let (upgrade, dialect) = of_process(checked(upgrade)?);
    Ok(open(stream, Subject::Process(process, from), dialect, upgrade, in_work))
}

/// Open a terminal over a WebSocket.
///
/// The client sends frames of the schema `TerminalClientFrame`, first `start` or `connect`; the server sends frames of the schema
/// `TerminalServerFrame`, first `started`, last `exit`, or `error` with `fatal`. Output comes in binary frames, and binary
/// frames of the client are input. The program goes on when the client leaves: who connects again by `connect` gets the lines
/// above the screen, the screen itself, and then its further output. Several clients may be connected; the size of the
/// terminal is the one that was set last.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/pty", operation_id = "openTerminal", tag = "commands",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("output" = Option<String>, Query, description = "How output is sent: in `binary` frames, or in `base64` within frames `output`. Default: `binary`.",
            pattern = "^(binary|base64)$", example = "binary"),
    ),
    responses((status = 101, description = "The connection is a WebSocket now."), OfExecStream)
)]
pub(super) async fn terminal(
    State(services): State<Services>,
    Extension(in_work): Extension<InWork>,
    Extension(connection): Extension<Arc<Connection>>,
    target: Target,
    parameters: Parameters,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Fault> {
    let asked = output(parameters)?;
    let sandbox = services.sandboxes().attach(&target.caller, target.id).await?;
    let upgrade = checked(upgrade)?.protocols([TERMINAL_SUBPROTOCOL]);
    let output = upgrade.selected_protocol().map_or(asked, |_| Output::Typed);
    let stream = Stream { services, caller: target.caller, sandbox, connection };
    Ok(open(stream, Subject::Named, Dialect::Terminal(output), upgrade, in_work))
}

/// Parses how the output of a terminal is sent.
fn output(parameters: Parameters) -> Result<Output, Fault> {
    let mut output = Output::Binary;
    for value in parameters.only("output")? {
        output = match value.as_str() {
            "binary" => Output::Binary,
            "base64" => Output::Base64,
            _ => return Err(Fault::invalid("output: give `binary` or `base64`")),
        };
    }
    Ok(output)
}

/// Chooses the dialect of a process's stream.
fn of_process(upgrade: WebSocketUpgrade) -> (WebSocketUpgrade, Dialect) {
    let upgrade = upgrade.protocols([SUBPROTOCOL]);
    let binary = upgrade.selected_protocol().is_some();
    (upgrade, Dialect::Process { binary })
}

/// Parses where output is read from.
fn from(parameters: Parameters) -> Result<From, Fault> {
    let mut from = From::default();
    for value in parameters.only("from")? {
        let none = |_| {
            Fault::invalid(
                "from: give `beginning`, `now`, or a number of bytes since the start of the process",
            )
        };
        from = match value.as_str() {
            "beginning" => From::Beginning,
            "now" => From::Now,
            number => From::Offset(number.parse().map_err(none)?),
        };
    }
    Ok(from)
}

fn checked(upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>) -> Result<WebSocketUpgrade, Fault> {
    upgrade.map_err(|_| Fault::invalid("this path speaks WebSocket: ask for an upgrade"))
}

/// Parameters of a stream.
struct Stream {
    services: Services,
    caller: Caller,
    sandbox: Attached,
    connection: Arc<Connection>,
}

/// Upgrades to WebSocket, and keeps `held` until the end of the connection.
fn open(
    stream: Stream,
    subject: Subject,
    dialect: Dialect,
    upgrade: WebSocketUpgrade,
    held: impl Send + 'static,
) -> Response {
    // If memory is short, small commands still work.
    let all = &stream.services.state().admission.memory;
    let begins = matches!(subject, Subject::Named);
    let memory = if begins { all.try_take(stream.caller.team().uuid(), FIRST_MAX).ok() } else { None };
    let first = if memory.is_some() { FIRST_MAX } else { LATER_MAX };
    let (work, span, request) = (stream.connection.work(), Span::current(), request_trace::request_id());
    let upgrade = upgrade.max_message_size(first).max_frame_size(first);
    let upgrade = upgrade.read_buffer_size(READ_BUFFER).write_buffer_size(0).max_write_buffer_size(WRITE_MAX);
    stream.connection.limit_reads((first + LATER_MAX) as u64);
    upgrade.on_upgrade(async move |socket| {
        let _held = (held, work);
        let conversation = hold(&stream, subject, dialect, memory, socket);
        request_trace::follow(request.unwrap_or(HeaderValue::from_static("none")), span, conversation).await;
    })
}
