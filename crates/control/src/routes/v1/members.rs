// SPDX-License-Identifier: Apache-2.0
//! Members of teams: list, roles, remove, leave, and the transfer to another owner.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use http::{HeaderMap, StatusCode};
use wrenn_api::{MadeKeys, TeamMember, TransferTeam, UpdateMember};
use wrenn_rpc::Foreign;

use super::{
    error_responses::{OfMember, OfTeam, OfUpdateMember},
    extract::{Body, Parameters},
    paging,
};
use crate::{caller::Caller, error::Fault, services::Services};

/// List the members of a team.
#[utoipa::path(
    get, path = "/v1/teams/{id}/members", operation_id = "listMembers", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("limit" = Option<u32>, Query, description = "Maximum number of members in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^us[0-9a-e][0-9a-z]{24}$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of members.", body = Vec<TeamMember>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfTeam)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<TeamMember>>), Fault> {
    let [limit, cursor] = parameters.known(["limit", "cursor"])?;
    let (limit, after) = (paging::limit(limit.as_deref())?, paging::id("cursor", cursor.as_deref())?);
    let listed = services.teams().members(&caller, after, limit).await?;
    Ok(paging::page(listed.members, listed.next))
}

/// Change the role of a member.
///
/// The owner stays the owner; a team is transferred to make another one.
#[utoipa::path(
    patch, path = "/v1/teams/{id}/members/{user_id}", operation_id = "updateMember", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("user_id" = String, Path, description = "Id of the user.", pattern = "^us[0-9a-e][0-9a-z]{24}$", example = "us03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = UpdateMember,
    responses((status = 200, description = "The member.", body = TeamMember), OfUpdateMember)
)]
pub(super) async fn update(
    State(services): State<Services>,
    caller: Caller,
    place: Result<Path<(String, String)>, PathRejection>,
    body: Body<UpdateMember>,
) -> Result<Json<TeamMember>, Fault> {
    let user = paging::second_in_path("user", place)?;
    Ok(Json(services.teams().set_role(&caller, user, body.value.role).await?))
}

/// Remove a member from a team.
///
/// From then on the user sees nothing of the team, also on streams that are open. If the user has made API keys that still work, and it
/// is not said what becomes of them, the request is refused with `member_has_keys`, which lists them with their last use.
#[utoipa::path(
    delete, path = "/v1/teams/{id}/members/{user_id}", operation_id = "removeMember", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("user_id" = String, Path, description = "Id of the user.", pattern = "^us[0-9a-e][0-9a-z]{24}$", example = "us03halx8fdhw2fu3txwbd0kdw0"),
        ("keys" = Option<MadeKeys>, Query, description = "What becomes of the API keys that the user has made: `revoke` ends them now, with `keep` they stay and are the team's. Needed if there are any."),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The user is no member any more."), OfMember)
)]
pub(super) async fn remove(
    State(services): State<Services>,
    caller: Caller,
    place: Result<Path<(String, String)>, PathRejection>,
    parameters: Parameters,
) -> Result<StatusCode, Fault> {
    let user = paging::second_in_path("user", place)?;
    services.teams().remove_member(&caller, user, keys(parameters)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Leave a team.
///
/// The owner cannot leave it. Of API keys that the user has made see `removeMember`.
#[utoipa::path(
    post, path = "/v1/teams/{id}/leave", operation_id = "leaveTeam", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("keys" = Option<MadeKeys>, Query, description = "What becomes of the API keys that the user has made: `revoke` ends them now, with `keep` they stay and are the team's. Needed if there are any."),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The user is no member any more."), OfMember)
)]
pub(super) async fn leave(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<StatusCode, Fault> {
    services.teams().leave(&caller, keys(parameters)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make another member the owner of a team.
///
/// Who owned it before is an admin of it from then on.
#[utoipa::path(
    post, path = "/v1/teams/{id}/transfer", operation_id = "transferTeam", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = TransferTeam,
    responses((status = 204, description = "The member owns the team."), OfUpdateMember)
)]
pub(super) async fn transfer(
    State(services): State<Services>,
    caller: Caller,
    body: Body<TransferTeam>,
) -> Result<StatusCode, Fault> {
    services.teams().transfer(&caller, body.value.user_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Parses the only parameter, which says what becomes of API keys.
pub(super) fn keys(parameters: Parameters) -> Result<Option<MadeKeys>, Fault> {
    let [keys] = parameters.known(["keys"])?;
    let parse = |text: &String| {
        let wrong = |()| Fault::invalid(format!("keys is {}: it must be revoke or keep", Foreign(text)));
        text.parse().map_err(wrong)
    };
    keys.as_ref().map(parse).transpose()
}
