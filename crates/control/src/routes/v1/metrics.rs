// SPDX-License-Identifier: Apache-2.0
//! Metrics of a sandbox.

use axum::{Json, extract::State};
use wrenn_api::{MetricsRange, SandboxMetrics};
use wrenn_rpc::Foreign;

use super::{
    error_responses::OfMetrics,
    extract::{Parameters, Target},
};
use crate::{error::Fault, services::Services};

/// Get the metrics of a sandbox.
///
/// They are measured twice a second while the sandbox runs, and kept for a day. Those of a paused sandbox are from before its pause,
/// and are told while its host is away, too.
/// A sandbox that neither runs nor is paused has none: 404. Reading them does not put off its pause.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/metrics", operation_id = "getSandboxMetrics", tag = "sandboxes",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("range" = Option<MetricsRange>, Query, description = "How far the points go back before the newest one. Default: `10m`."),
    ),
    responses((status = 200, description = "The metrics.", body = SandboxMetrics), OfMetrics)
)]
pub(super) async fn read(
    State(services): State<Services>,
    target: Target,
    parameters: Parameters,
) -> Result<Json<SandboxMetrics>, Fault> {
    let [range] = parameters.known(["range"])?;
    let range = range.map_or(Ok(MetricsRange::default()), |text| parse(&text))?;
    Ok(Json(services.sandboxes().metrics(&target.caller, target.id, range).await?))
}

fn parse(text: &str) -> Result<MetricsRange, Fault> {
    text.parse().map_err(|()| {
        let all = MetricsRange::ALL.map(MetricsRange::as_str).join(", ");
        Fault::invalid(format!("range is {}: it must be one of {all}", Foreign(text)))
    })
}
