// SPDX-License-Identifier: Apache-2.0
//! Users, for administrators of the platform.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use http::{HeaderMap, StatusCode};
use wrenn_api::{AdminUser, MadeKeys, SetActive, SetAdmin, UserStatus};
use wrenn_rpc::Foreign;

use super::{
    error_responses::{OfAdminChange, OfAdminDelete, OfAdminLook},
    extract::{Body, Parameters},
    members::keys,
    paging,
};
use crate::{caller::Caller, contact::EMAIL_MAX, error::Fault, platform::UserFilter, services::Services};

/// List all users, newest first.
#[utoipa::path(
    get, path = "/v1/admin/users", operation_id = "listUsers", tag = "platform",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of users in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^us[0-9a-e][0-9a-z]{24}$"),
        ("status" = Option<UserStatus>, Query, description = "List only users of this state."),
        ("email" = Option<String>, Query, description = "List only the user with this address.", max_length = 254),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of users.", body = Vec<AdminUser>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfAdminLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<AdminUser>>), Fault> {
    let [limit, cursor, status, email] = parameters.known(["limit", "cursor", "status", "email"])?;
    let (limit, before) = (paging::limit(limit.as_deref())?, paging::id("cursor", cursor.as_deref())?);
    let parse = |text: &String| {
        let all = UserStatus::ALL.map(UserStatus::as_str).join(", ");
        let wrong = |()| Fault::invalid(format!("status is {}: it must be one of {all}", Foreign(text)));
        text.parse().map_err(wrong)
    };
    let status = status.as_ref().map(parse).transpose()?;
    if email.as_ref().is_some_and(|email| email.chars().count() > EMAIL_MAX || email.contains('\0')) {
        return Err(Fault::invalid(format!(
            "email is no address: one has at most {EMAIL_MAX} characters, and no NUL"
        )));
    }
    let listed = services.platform().users(&caller, UserFilter { status, email }, before, limit).await?;
    Ok(paging::page(listed.users, listed.next))
}

/// Shut a user out, or let it in again.
///
/// The sessions of a user who is shut out end at once. What its teams have stays. If it has made API keys that still work, and it is not
/// said what becomes of them, the request is refused with `member_has_keys`, which lists them with their last use. You cannot shut
/// yourself out, and nobody the only administrator of the platform.
#[utoipa::path(
    put, path = "/v1/admin/users/{id}/active", operation_id = "setUserActive", tag = "platform",
    params(
        ("id" = String, Path, description = "Id of the user.", pattern = "^us[0-9a-e][0-9a-z]{24}$", example = "us03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = SetActive,
    responses((status = 200, description = "The user.", body = AdminUser), OfAdminChange)
)]
pub(super) async fn set_active(
    State(services): State<Services>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    body: Body<SetActive>,
) -> Result<Json<AdminUser>, Fault> {
    let id = paging::id_in_path("user", id)?;
    Ok(Json(services.platform().set_active(&caller, id, &body.value).await?))
}

/// Make a user an administrator of the platform, or take that back.
///
/// It acts at once. You cannot take it from yourself, and nobody from the only administrator, so that somebody is left who can give it.
#[utoipa::path(
    put, path = "/v1/admin/users/{id}/admin", operation_id = "setUserAdmin", tag = "platform",
    params(
        ("id" = String, Path, description = "Id of the user.", pattern = "^us[0-9a-e][0-9a-z]{24}$", example = "us03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = SetAdmin,
    responses((status = 200, description = "The user.", body = AdminUser), OfAdminChange)
)]
pub(super) async fn set_admin(
    State(services): State<Services>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    body: Body<SetAdmin>,
) -> Result<Json<AdminUser>, Fault> {
    let id = paging::id_in_path("user", id)?;
    Ok(Json(services.platform().set_admin(&caller, id, body.value.admin).await?))
}

/// Delete a user.
///
/// The teams that nobody else is in are deleted, too; a user who owns another one is not deleted before that has another owner. Of API
/// keys that the user has made see `setUserActive`. The only administrator of the platform is not deleted.
#[utoipa::path(
    delete, path = "/v1/admin/users/{id}", operation_id = "deleteUser", tag = "platform",
    params(
        ("id" = String, Path, description = "Id of the user.", pattern = "^us[0-9a-e][0-9a-z]{24}$", example = "us03halx8fdhw2fu3txwbd0kdw0"),
        ("keys" = Option<MadeKeys>, Query, description = "What becomes of the API keys that the user has made: `revoke` ends them now, with `keep` they stay and are the team's. Needed if there are any."),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The user is deleted."), OfAdminDelete)
)]
pub(super) async fn delete(
    State(services): State<Services>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    parameters: Parameters,
) -> Result<StatusCode, Fault> {
    let id = paging::id_in_path("user", id)?;
    services.platform().delete_user(&caller, id, keys(parameters)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
