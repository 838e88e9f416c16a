// SPDX-License-Identifier: Apache-2.0
//! Terminals: what they show. Their streams are in `process_stream`.

use axum::{Json, extract::State};
use wrenn_api::TerminalScreen;

use super::{
    error_responses::OfProcesses,
    extract::{OfProcess, Target},
};
use crate::{error::Fault, services::Services};

/// Read what a terminal shows.
///
/// The text of the screen and of the lines above it, for programs that do not interpret escape sequences. The screen of a
/// program that ended less than ten minutes ago can be read, too.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/pty/{selector}/screen", operation_id = "readScreen", tag = "commands",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("selector" = String, Path, description = "The terminal: digits are the process id of its program, and all else is its tag.", pattern = "^[A-Za-z0-9._-]{1,128}$", example = "pty-0a1b2c3d"),
    ),
    responses((status = 200, description = "The screen.", body = TerminalScreen), OfProcesses)
)]
pub(super) async fn screen(
    State(services): State<Services>,
    target: Target,
    OfProcess(process): OfProcess,
) -> Result<Json<TerminalScreen>, Fault> {
    Ok(Json(services.sandboxes().screen(&target.caller, target.id, process).await?))
}
