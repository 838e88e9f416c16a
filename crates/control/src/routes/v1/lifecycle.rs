// SPDX-License-Identifier: Apache-2.0
//! Life of sandboxes between their creation and their deletion: pause, resume, ping, update.

use axum::{Json, extract::State};
use http::StatusCode;
use wrenn_api::{PauseSandbox, PingSandbox, ResumeSandbox, Sandbox, UpdateSandbox};

use super::{
    error_responses::{OfPause, OfPing, OfResume, OfUpdate},
    extract::{Body, OptionalBody, Target},
};
use crate::{error::Fault, services::Services};

/// Pause a sandbox.
///
/// Its memory is written to the disk of its host, with everything that runs in it, and it uses no processor and no memory
/// until it is resumed. Commands and files in work are broken off with 409 `invalid_state`; their processes go on at the
/// resume. A paused sandbox stays as it is and is returned. If the pause fails, the sandbox runs on.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/pause", operation_id = "pauseSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    request_body(content = Option<PauseSandbox>, example = json!({})),
    responses((status = 200, description = "The sandbox is paused.", body = Sandbox), OfPause)
)]
pub(super) async fn pause(
    State(services): State<Services>,
    target: Target,
    _: OptionalBody<PauseSandbox>,
) -> Result<Json<Sandbox>, Fault> {
    Ok(Json(services.sandboxes().pause(&target.caller, target.id).await?))
}

/// Resume a paused sandbox.
///
/// It goes on where it was paused: its processes have their ids, its clock is right, its connections from before are reset.
/// The response is sent once it is ready to run code. A running sandbox stays as it is, apart from its timeout, which begins
/// now, and is returned. If the resume fails before the sandbox goes on, it stays paused; if its memory cannot be used, `error`
/// of the sandbox says so, too.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/resume", operation_id = "resumeSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    request_body(content = Option<ResumeSandbox>, example = json!({"timeout_sec": 600, "memory": true})),
    responses((status = 200, description = "The sandbox is running.", body = Sandbox), OfResume)
)]
pub(super) async fn resume(
    State(services): State<Services>,
    target: Target,
    body: OptionalBody<ResumeSandbox>,
) -> Result<Json<Sandbox>, Fault> {
    Ok(Json(services.sandboxes().resume(&target.caller, target.id, body.value).await?))
}

/// Note that a running sandbox is in use.
///
/// It puts off the pause or the deletion of a sandbox with `timeout_sec`.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/ping", operation_id = "pingSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    request_body(content = Option<PingSandbox>, example = json!({})),
    responses((status = 204, description = "The timeout begins now."), OfPing)
)]
pub(super) async fn ping(
    State(services): State<Services>,
    target: Target,
    _: OptionalBody<PingSandbox>,
) -> Result<StatusCode, Fault> {
    services.sandboxes().ping(&target.caller, target.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Change the name, the labels or the timeout of a sandbox, or whether requests resume it.
///
/// A new timeout begins now. A change makes no event; the next event of the sandbox has it.
#[utoipa::path(
    patch, path = "/v1/sandboxes/{id}", operation_id = "updateSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    request_body = UpdateSandbox,
    responses((status = 200, description = "The changed sandbox.", body = Sandbox), OfUpdate)
)]
pub(super) async fn update(
    State(services): State<Services>,
    target: Target,
    body: Body<UpdateSandbox>,
) -> Result<Json<Sandbox>, Fault> {
    Ok(Json(services.sandboxes().update(&target.caller, target.id, body.value).await?))
}
