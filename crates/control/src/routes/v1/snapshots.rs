// SPDX-License-Identifier: Apache-2.0
//! Named snapshots: create, list, delete.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use http::StatusCode;
use wrenn_api::{CreateSnapshot, Snapshot};

use super::{
    error_responses::{OfCreateSnapshot, OfDeleteSnapshot, OfLook},
    extract::{Body, OptionalKey, Parameters, flag},
};
use crate::{
    caller::Caller,
    deeds::{self, AuditResource},
    error::Fault,
    services::Services,
};

/// Make a named snapshot of a sandbox.
///
/// It has the memory, the processes and the disk of the sandbox at one instant. A running sandbox goes on, and stands still
/// only while its memory is captured. Sandboxes are created from the snapshot by giving its name as `template`; each goes on
/// where the snapshot was made, with an id, a host name and randomness of its own. One that is made for the platform is a template of
/// all teams, with all that its memory and its disk have.
///
/// If the team has a snapshot of that name, the request is rejected with 409 `template_name_taken`; with `overwrite` the new one
/// is made beside it and takes its name as soon as it is kept, and the old one is deleted. If the new one cannot be made, the old
/// one stays.
///
/// Repeating the request with the same `Idempotency-Key` within 24 hours makes nothing and returns the snapshot of the first
/// request; once that snapshot was deleted, it is rejected with 409 `idempotency_sandbox_deleted`. A different request with
/// the same key is rejected with 409. A request that failed can be repeated with its key, and is then tried again.
#[utoipa::path(
    post, path = "/v1/snapshots", operation_id = "createSnapshot", tag = "snapshots",
    params(
        ("overwrite" = Option<bool>, Query, description = "Whether it replaces the team's snapshot of that name, if there is one. Default: false."),
        ("Idempotency-Key" = Option<String>, Header,
            description = "Any text that is unique to this snapshot, for example a UUID. It makes it safe to repeat the request.",
            min_length = 1, max_length = 255, pattern = "^[!-~]+$", example = "01890a5d-ac96-774b-bcce-b302099a8057"),
    ),
    request_body = CreateSnapshot,
    responses((status = 201, description = "The snapshot is kept.", body = Snapshot), OfCreateSnapshot)
)]
pub(super) async fn create(
    State(services): State<Services>,
    caller: Caller,
    OptionalKey(idempotency): OptionalKey,
    parameters: Parameters,
    body: Body<CreateSnapshot>,
) -> Result<(StatusCode, Json<Snapshot>), Fault> {
    let [overwrite] = parameters.known(["overwrite"])?;
    let overwrite = flag("overwrite", overwrite.as_deref())?;
    let snapshot = services.snapshots().create(&caller, body.value, overwrite, idempotency).await?;
    deeds::about(AuditResource::new("snapshot", &snapshot.name));
    Ok((StatusCode::CREATED, Json(snapshot)))
}

/// List the team's snapshots, newest first.
#[utoipa::path(
    get, path = "/v1/snapshots", operation_id = "listSnapshots", tag = "snapshots",
    responses((status = 200, description = "All snapshots of the team.", body = Vec<Snapshot>), OfLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Json<Vec<Snapshot>>, Fault> {
    Ok(Json(services.snapshots().list(&caller).await?))
}

/// Delete a snapshot.
///
/// Sandboxes that were created from it do not need it. Templates of the platform cannot be deleted.
#[utoipa::path(
    delete, path = "/v1/snapshots/{name}", operation_id = "deleteSnapshot", tag = "snapshots",
    params(("name" = String, Path, description = "Name of the snapshot.", pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$", example = "after-setup")),
    responses((status = 204, description = "The snapshot is deleted."), OfDeleteSnapshot)
)]
pub(super) async fn delete(
    State(services): State<Services>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Fault> {
    let Path(name) = name.map_err(|_| Fault::invalid("the name in the path is not text"))?;
    services.snapshots().delete(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
