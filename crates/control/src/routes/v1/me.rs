// SPDX-License-Identifier: Apache-2.0
//! The signed-in user: account, password, sessions, and the team that the session acts for.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, header};
use wrenn_api::{ChangePassword, DeleteMe, Me, Session, SessionId, SwitchTeam, UpdateMe};

use super::{
    error_responses::{OfDeleteMe, OfEndSession, OfMe, OfPassword, OfSwitchTeam, OfUpdateMe},
    extract::Body,
};
use crate::{
    caller::Caller,
    error::Fault,
    routes::{came_from::CameFrom, cookie},
    services::Services,
};

/// Sign out.
///
/// Ends the session at once, on all servers, with its open streams. Other sessions of the user go on.
#[utoipa::path(
    post, path = "/v1/auth/logout", operation_id = "logOut", tag = "accounts",
    responses((status = 204, description = "The session is ended."), OfMe)
)]
pub(super) async fn logout(
    State(services): State<Services>,
    caller: Caller,
    from: CameFrom,
) -> Result<Response, Fault> {
    services.accounts().logout(&caller).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(cookie) = cookie::clear(from.is_https) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// Let the session act for another team.
///
/// Its token or cookie stays the same. Who administers the platform can let it act for the platform, whose team is
/// `team0000000000000000000000000`: its sandboxes, templates and snapshots are reached as those of any team then, and its snapshots are
/// templates of all teams. The platform has no members, API keys and channels.
#[utoipa::path(
    post, path = "/v1/auth/switch-team", operation_id = "switchTeam", tag = "accounts",
    request_body = SwitchTeam,
    responses((status = 200, description = "The user, in that team.", body = Me), OfSwitchTeam)
)]
pub(super) async fn switch_team(
    State(services): State<Services>,
    caller: Caller,
    body: Body<SwitchTeam>,
) -> Result<Json<Me>, Fault> {
    Ok(Json(services.accounts().switch_team(&caller, body.value.team_id).await?))
}

/// Get the signed-in user.
#[utoipa::path(
    get, path = "/v1/me", operation_id = "getMe", tag = "accounts",
    responses((status = 200, description = "The user.", body = Me), OfMe)
)]
pub(super) async fn get(State(services): State<Services>, caller: Caller) -> Result<Json<Me>, Fault> {
    Ok(Json(services.accounts().me(&caller).await?))
}

/// Rename the signed-in user.
#[utoipa::path(
    patch, path = "/v1/me", operation_id = "updateMe", tag = "accounts",
    request_body = UpdateMe,
    responses((status = 200, description = "The renamed user.", body = Me), OfUpdateMe)
)]
pub(super) async fn update(
    State(services): State<Services>,
    caller: Caller,
    body: Body<UpdateMe>,
) -> Result<Json<Me>, Fault> {
    Ok(Json(services.accounts().update_me(&caller, &body.value).await?))
}

/// Delete the signed-in user's account.
///
/// Ends all sessions at once, and deletes the teams that nobody else is in and the API keys that the user has made. Who owns a team
/// that others are in hands it over or deletes it first. The name and address are kept for 15 days, in which an administrator can undo
/// it, and then removed; who signs up with the address again gets a new account at once. The only administrator of the platform is not
/// deleted.
#[utoipa::path(
    delete, path = "/v1/me", operation_id = "deleteMe", tag = "accounts",
    request_body = DeleteMe,
    responses((status = 204, description = "The account is deleted."), OfDeleteMe)
)]
pub(super) async fn delete(
    State(services): State<Services>,
    caller: Caller,
    from: CameFrom,
    body: Body<DeleteMe>,
) -> Result<Response, Fault> {
    services.accounts().delete_me(&caller, &body.value).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(cookie) = cookie::clear(from.is_https) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// Change the password.
///
/// Ends all other sessions of the user.
#[utoipa::path(
    post, path = "/v1/me/password", operation_id = "changePassword", tag = "accounts",
    request_body = ChangePassword,
    responses((status = 204, description = "The password is changed."), OfPassword)
)]
pub(super) async fn change_password(
    State(services): State<Services>,
    caller: Caller,
    body: Body<ChangePassword>,
) -> Result<StatusCode, Fault> {
    services.accounts().change_password(&caller, &body.value).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the user's sessions, newest first.
///
/// There are at most 100: a sign-in beyond that ends the oldest.
#[utoipa::path(
    get, path = "/v1/me/sessions", operation_id = "listSessions", tag = "accounts",
    responses((status = 200, description = "All sessions of the user that have not ended.", body = Vec<Session>), OfMe)
)]
pub(super) async fn sessions(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Json<Vec<Session>>, Fault> {
    Ok(Json(services.accounts().sessions(&caller).await?))
}

/// End a session of the user.
///
/// It ends at once, on all servers, with its open streams.
#[utoipa::path(
    delete, path = "/v1/me/sessions/{id}", operation_id = "endSession", tag = "accounts",
    params(("id" = String, Path, description = "Id of the session.", pattern = "^se[0-9a-e][0-9a-z]{24}$",
        example = "se03halx8fdhw2fu3txwbd0kdw0")),
    responses((status = 204, description = "The session is ended."), OfEndSession)
)]
pub(super) async fn end_session(
    State(services): State<Services>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Fault> {
    let Path(id) = id.map_err(|_| Fault::invalid("the session in the path is not text"))?;
    let id: SessionId =
        id.parse().map_err(|error| Fault::invalid(format!("the session in the path: {error}")))?;
    services.accounts().end_session(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
