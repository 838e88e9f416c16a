// SPDX-License-Identifier: Apache-2.0
//! Teams: create, list, rename, delete, and their quotas.

use axum::{Json, extract::State};
use http::{HeaderMap, StatusCode};
use wrenn_api::{CreateTeam, Quota, Team, UpdateTeam};

use super::{
    error_responses::{OfCreateTeam, OfLook, OfTeam, OfUpdateTeam},
    extract::{Body, Parameters},
    paging,
};
use crate::{caller::Caller, error::Fault, services::Services};

/// Create a team.
///
/// The user who creates it owns it.
#[utoipa::path(
    post, path = "/v1/teams", operation_id = "createTeam", tag = "teams",
    params(
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = CreateTeam,
    responses((status = 201, description = "The team.", body = Team), OfCreateTeam)
)]
pub(super) async fn create(
    State(services): State<Services>,
    caller: Caller,
    body: Body<CreateTeam>,
) -> Result<(StatusCode, Json<Team>), Fault> {
    let team = services.teams().create(&caller, &body.value.name).await?;
    Ok((StatusCode::CREATED, Json(team)))
}

/// List the teams of the user, by id; of an API key its team.
#[utoipa::path(
    get, path = "/v1/teams", operation_id = "listTeams", tag = "teams",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of teams in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^team[0-9a-e][0-9a-z]{24}$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of teams.", body = Vec<Team>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<Team>>), Fault> {
    let [limit, cursor] = parameters.known(["limit", "cursor"])?;
    let (limit, after) = (paging::limit(limit.as_deref())?, paging::id("cursor", cursor.as_deref())?);
    let listed = services.teams().list(&caller, after, limit).await?;
    Ok(paging::page(listed.teams, listed.next))
}

/// Get a team.
#[utoipa::path(
    get, path = "/v1/teams/{id}", operation_id = "getTeam", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The team.", body = Team), OfTeam)
)]
pub(super) async fn get(State(services): State<Services>, caller: Caller) -> Result<Json<Team>, Fault> {
    Ok(Json(services.teams().get(&caller).await?))
}

/// Rename a team.
#[utoipa::path(
    patch, path = "/v1/teams/{id}", operation_id = "updateTeam", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = UpdateTeam,
    responses((status = 200, description = "The team.", body = Team), OfUpdateTeam)
)]
pub(super) async fn update(
    State(services): State<Services>,
    caller: Caller,
    body: Body<UpdateTeam>,
) -> Result<Json<Team>, Fault> {
    Ok(Json(services.teams().rename(&caller, &body.value.name).await?))
}

/// Delete a team with everything that it has.
///
/// Its API keys, members and invitations end at once. Its sandboxes, snapshots, templates and images are removed from all hosts, from
/// those that do not answer as soon as they are back. Its members are told by mail.
#[utoipa::path(
    delete, path = "/v1/teams/{id}", operation_id = "deleteTeam", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The team is deleted."), OfTeam)
)]
pub(super) async fn delete(State(services): State<Services>, caller: Caller) -> Result<StatusCode, Fault> {
    services.teams().delete(&caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the quotas of a team, and how much of each it uses.
#[utoipa::path(
    get, path = "/v1/teams/{id}/quotas", operation_id = "listQuotas", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "All quotas.", body = Vec<Quota>), OfTeam)
)]
pub(super) async fn quotas(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Json<Vec<Quota>>, Fault> {
    Ok(Json(services.teams().quotas(&caller).await?))
}
