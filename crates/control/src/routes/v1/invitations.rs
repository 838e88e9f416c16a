// SPDX-License-Identifier: Apache-2.0
//! Invitations into teams: make, list, withdraw, and those of the user.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use http::{HeaderMap, StatusCode};
use wrenn_api::{AcceptInvitation, CreateInvitation, Invitation, MadeInvitation, MyInvitation, Team};

use super::{
    error_responses::{OfAccept, OfAdminLook, OfInvite, OfTeam},
    extract::{Body, Parameters},
    paging,
};
use crate::{caller::Caller, error::Fault, services::Services};

/// Invite the user of an address into a team.
///
/// The link in the mail works for a week and once. An invitation that the address has already is replaced. If the server sends no mail,
/// the user finds the invitation with `listMyInvitations` after signing in.
#[utoipa::path(
    post, path = "/v1/teams/{id}/invitations", operation_id = "createInvitation", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = CreateInvitation,
    responses((status = 201, description = "The invitation.", body = MadeInvitation), OfInvite)
)]
pub(super) async fn create(
    State(services): State<Services>,
    caller: Caller,
    body: Body<CreateInvitation>,
) -> Result<(StatusCode, Json<MadeInvitation>), Fault> {
    let made = services.teams().invite(&caller, &body.value).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// List the invitations into a team that were not accepted yet, newest first.
#[utoipa::path(
    get, path = "/v1/teams/{id}/invitations", operation_id = "listInvitations", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("limit" = Option<u32>, Query, description = "Maximum number of invitations in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^iv[0-9a-e][0-9a-z]{24}$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of invitations.", body = Vec<Invitation>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfTeam)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<Invitation>>), Fault> {
    let [limit, cursor] = parameters.known(["limit", "cursor"])?;
    let (limit, before) = (paging::limit(limit.as_deref())?, paging::id("cursor", cursor.as_deref())?);
    let listed = services.teams().invitations(&caller, before, limit).await?;
    Ok(paging::page(listed.invitations, listed.next))
}

/// Withdraw an invitation into a team.
#[utoipa::path(
    delete, path = "/v1/teams/{id}/invitations/{invitation_id}", operation_id = "withdrawInvitation", tag = "teams",
    params(
        ("id" = String, Path, description = "Id of the team.", pattern = "^team[0-9a-e][0-9a-z]{24}$", example = "team03halx8fdhw2fu3txwbd0kdw0"),
        ("invitation_id" = String, Path, description = "Id of the invitation.", pattern = "^iv[0-9a-e][0-9a-z]{24}$", example = "iv03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The invitation is withdrawn."), OfTeam)
)]
pub(super) async fn withdraw(
    State(services): State<Services>,
    caller: Caller,
    place: Result<Path<(String, String)>, PathRejection>,
) -> Result<StatusCode, Fault> {
    services.teams().withdraw(&caller, paging::second_in_path("invitation", place)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the invitations of the user, newest first.
#[utoipa::path(
    get, path = "/v1/me/invitations", operation_id = "listMyInvitations", tag = "accounts",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of invitations in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^iv[0-9a-e][0-9a-z]{24}$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of invitations.", body = Vec<MyInvitation>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfAdminLook)
)]
pub(super) async fn mine(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<MyInvitation>>), Fault> {
    let [limit, cursor] = parameters.known(["limit", "cursor"])?;
    let (limit, before) = (paging::limit(limit.as_deref())?, paging::id("cursor", cursor.as_deref())?);
    let listed = services.teams().my_invitations(&caller, before, limit).await?;
    Ok(paging::page(listed.invitations, listed.next))
}

/// Accept an invitation, by the token of its mail or by its id.
///
/// The invitation must be of the address of the user. A session without a team acts for this one from then on; another one goes on to
/// act for its own, until it is switched.
#[utoipa::path(
    post, path = "/v1/invitations/accept", operation_id = "acceptInvitation", tag = "accounts",
    params(
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = AcceptInvitation,
    responses((status = 200, description = "The team, of which the user is a member.", body = Team), OfAccept)
)]
pub(super) async fn accept(
    State(services): State<Services>,
    caller: Caller,
    body: Body<AcceptInvitation>,
) -> Result<Json<Team>, Fault> {
    Ok(Json(services.teams().accept(&caller, &body.value).await?))
}
