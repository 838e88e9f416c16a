// SPDX-License-Identifier: Apache-2.0
//! Commands without streaming: the response is sent after their end, or after their start in the background.

use axum::{
    Extension, Json,
    body::Body as HttpBody,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, header};
use wrenn_api::{BackgroundProcess, ExecRequest, ExecResponse};

use super::{
    error_responses::OfExec,
    exec_body::ExecBody,
    extract::{Body, Target},
};
use crate::{
    admission::InWork,
    error::Fault,
    sandboxes::{BackgroundCommand, Finished, TimedCommand},
    services::Services,
    serving::Holding,
};

/// Run a command and wait until it ends, or start it in the background.
///
/// The program is started directly, without a shell; for a shell, run `sh -c`. A command that runs longer than `timeout_sec`
/// is killed with its descendants; `timed_out` is then true, and the output is what it wrote until then. With `background` the
/// response comes at once, and the process runs on: it is in the list of processes, can be read and sent input over
/// `processes/{selector}/stream`, and is ended by `DELETE`.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/exec", operation_id = "execCommand", tag = "commands",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = ExecRequest,
    responses(
        (status = 200, description = "The command ended, with whatever exit status.", body = ExecResponse),
        (status = 202, description = "The command runs in the background.", body = BackgroundProcess),
        OfExec
    )
)]
pub(super) async fn exec(
    State(services): State<Services>,
    Extension(in_work): Extension<InWork>,
    target: Target,
    body: Body<ExecRequest>,
) -> Result<Response, Fault> {
    if body.value.background {
        let command = BackgroundCommand::new(body.value)?;
        let started = services.sandboxes().start_process(&target.caller, target.id, command).await?;
        return Ok((StatusCode::ACCEPTED, Json(started)).into_response());
    }
    let command = TimedCommand::new(body.value)?;
    if command.is_long() {
        let places = &services.state().admission.commands;
        in_work.exchange(places.take(Some(target.caller.team().uuid()))?);
    }
    render(services.sandboxes().exec(&target.caller, target.id, command).await?)
}

/// Renders a result. Its memory is released after it was sent.
pub(super) fn render(mut finished: Finished) -> Result<Response, Fault> {
    let held = finished.held.take();
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "an answer cannot be made");
        Fault::internal()
    };
    let body = ExecBody::new(finished).map_err(|error| failed(&error))?;
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Holding::body(HttpBody::new(body), held))
        .map_err(|error| failed(&error))
}
