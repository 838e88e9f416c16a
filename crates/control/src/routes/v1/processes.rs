// SPDX-License-Identifier: Apache-2.0
//! Running processes: list and signals.

use axum::{Json, extract::State};
use wrenn_api::{ProcessList, Signal, Signalled};

use super::{
    error_responses::OfProcesses,
    extract::{OfProcess, Parameters, Target},
};
use crate::{error::Fault, services::Services};

/// List the running processes.
///
/// Only those that were started through the API, and not their descendants.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/processes", operation_id = "listProcesses", tag = "commands",
    params(("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    responses((status = 200, description = "All processes.", body = ProcessList), OfProcesses)
)]
pub(super) async fn list(
    State(services): State<Services>,
    target: Target,
) -> Result<Json<ProcessList>, Fault> {
    let processes = services.sandboxes().processes(&target.caller, target.id).await?;
    Ok(Json(ProcessList { processes }))
}

/// End a process with all its descendants, or send them another signal.
///
/// Also descendants that left the process group, or outlive the process, get the signal. The response says how many got it.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{id}/processes/{selector}", operation_id = "signalProcess", tag = "commands",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("selector" = String, Path, description = "The process: digits are its id, and all else is its tag.", pattern = "^[A-Za-z0-9._-]{1,128}$", example = "proc-0a1b2c3d"),
        ("signal" = Option<String>, Query, description = "The signal: its number, 1 to 64, or its name, such as `SIGTERM` or `TERM`. Default: `SIGKILL`.",
            pattern = "^[A-Za-z0-9]{1,16}$", example = "SIGKILL"),
    ),
    responses((status = 200, description = "The signal was sent.", body = Signalled), OfProcesses)
)]
pub(super) async fn signal(
    State(services): State<Services>,
    target: Target,
    OfProcess(process): OfProcess,
    parameters: Parameters,
) -> Result<Json<Signalled>, Fault> {
    let mut signal = Signal::KILL;
    for value in parameters.only("signal")? {
        signal = value.parse().map_err(|error| Fault::invalid(format!("signal: {error}")))?;
    }
    Ok(Json(services.sandboxes().signal_process(&target.caller, target.id, process, signal).await?))
}
