// SPDX-License-Identifier: Apache-2.0
//! Teams, for administrators of the platform.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use http::{HeaderMap, StatusCode};
use wrenn_api::{AdminTeam, SetByoc, TeamQuotas};

use super::{
    error_responses::{OfAdminChange, OfAdminLook, OfTeam},
    extract::{Body, Parameters, flag},
    paging,
};
use crate::{caller::Caller, error::Fault, services::Services};

/// List all teams, newest first.
#[utoipa::path(
    get, path = "/v1/admin/teams", operation_id = "listPlatformTeams", tag = "platform",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of teams in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^team[0-9a-e][0-9a-z]{24}$"),
        ("deleted" = Option<bool>, Query, description = "Whether deleted teams are listed, too. Default: false."),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of teams.", body = Vec<AdminTeam>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfAdminLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<AdminTeam>>), Fault> {
    let [limit, cursor, deleted] = parameters.known(["limit", "cursor", "deleted"])?;
    let (limit, before) = (paging::limit(limit.as_deref())?, paging::id("cursor", cursor.as_deref())?);
    let with_deleted = flag("deleted", deleted.as_deref())?;
    let listed = services.platform().teams(&caller, with_deleted, before, limit).await?;
    Ok(paging::page(listed.teams, listed.next))
}

/// Let a team bring hosts of its own, or take that back.
///
/// It can be taken back while the team has no host.
#[utoipa::path(
    put, path = "/v1/admin/teams/{id}/byoc", operation_id = "setTeamByoc", tag = "platform",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = SetByoc,
    responses((status = 200, description = "The team.", body = AdminTeam), OfAdminChange)
)]
pub(super) async fn set_byoc(
    State(services): State<Services>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    body: Body<SetByoc>,
) -> Result<Json<AdminTeam>, Fault> {
    let id = paging::id_in_path("team", id)?;
    Ok(Json(services.platform().set_byoc(&caller, id, body.value.enabled).await?))
}

/// Give a team quotas of its own.
///
/// They take the place of those that it had; one that is left out is that of the server. What the team has beyond a quota stays, and it
/// gets no more.
#[utoipa::path(
    put, path = "/v1/admin/teams/{id}/quotas", operation_id = "setTeamQuotas", tag = "platform",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = TeamQuotas,
    responses((status = 200, description = "The team.", body = AdminTeam), OfAdminChange)
)]
pub(super) async fn set_quotas(
    State(services): State<Services>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    body: Body<TeamQuotas>,
) -> Result<Json<AdminTeam>, Fault> {
    let id = paging::id_in_path("team", id)?;
    Ok(Json(services.platform().set_quotas(&caller, id, &body.value).await?))
}

/// Delete a team, as `deleteTeam` does.
#[utoipa::path(
    delete, path = "/v1/admin/teams/{id}", operation_id = "deletePlatformTeam", tag = "platform",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The team is deleted."), OfTeam)
)]
pub(super) async fn delete(
    State(services): State<Services>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Fault> {
    services.platform().delete_team(&caller, paging::id_in_path("team", id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
