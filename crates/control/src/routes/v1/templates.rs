// SPDX-License-Identifier: Apache-2.0
//! Templates: list.

use axum::{Json, extract::State};
use wrenn_api::Template;

use super::error_responses::OfLook;
use crate::{caller::Caller, error::Fault, services::Services};

/// List what sandboxes can be created from.
///
/// The platform's templates by name, and then the team's snapshots, newest first.
#[utoipa::path(
    get, path = "/v1/templates", operation_id = "listTemplates", tag = "templates",
    responses((status = 200, description = "All templates that the team can use.", body = Vec<Template>), OfLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Json<Vec<Template>>, Fault> {
    Ok(Json(services.snapshots().templates(&caller).await?))
}
