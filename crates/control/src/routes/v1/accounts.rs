// SPDX-License-Identifier: Apache-2.0
//! Sign-up, sign-in and forgotten passwords: what somebody does who is not signed in.

use axum::{
    Json, RequestPartsExt as _,
    extract::{FromRequestParts, State},
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, StatusCode, header, request::Parts};
use wrenn_api::{ConfirmReset, Login, Notice, RequestReset, SignUp, SignedIn, UseLink};

use super::{
    error_responses::{OfActivate, OfConfirmReset, OfLogin, OfRequestReset, OfSignInLink, OfSignUp},
    extract::Body,
};
use crate::{
    accounts::{Device, Entry},
    error::Fault,
    routes::{came_from::CameFrom, cookie},
    services::Services,
};

/// Sign up.
///
/// A mail with a link goes to the address; the account is made when the link is used. The answer is the same if there is an account
/// with the address: then its owner is told by mail. Several sign-ups with one address do each other no harm.
///
/// Without an SMTP server this is 503 `mail_unavailable`: the operator makes accounts with `wrenn user create`.
#[utoipa::path(
    post, path = "/v1/auth/signup", operation_id = "signUp", tag = "accounts",
    request_body = SignUp,
    responses((status = 201, description = "A mail is on its way.", body = Notice), OfSignUp)
)]
pub(super) async fn sign_up(
    State(services): State<Services>,
    device: Device,
    body: Body<SignUp>,
) -> Result<(StatusCode, Json<Notice>), Fault> {
    let notice = services.accounts().sign_up(&device, body.value).await?;
    Ok((StatusCode::CREATED, Json(notice)))
}

/// Activate a sign-up.
///
/// Makes the account, with a team of its own, and signs the user in. The link works once, within 24 hours.
#[utoipa::path(
    post, path = "/v1/auth/activate", operation_id = "activateAccount", tag = "accounts",
    request_body = UseLink,
    responses((status = 200, description = "The user is signed in.", body = SignedIn), OfActivate)
)]
pub(super) async fn activate(
    State(services): State<Services>,
    (device, from): (Device, CameFrom),
    body: Body<UseLink>,
) -> Result<Response, Fault> {
    let entry = services.accounts().activate(&device, &body.value).await?;
    Ok(entered(entry, from))
}

/// Sign in with a password.
///
/// Programs get a token for the header `Authorization: Bearer TOKEN`. With `cookie`, browsers get the cookie `wrenn_session` instead (over
/// HTTPS `__Host-wrenn_session`), and a value for the header `X-CSRF-Token`, which every request that changes something needs.
///
/// After 10 attempts in 15 minutes at one account from one address, or 100 in an hour from all, this is 429 `too_many_attempts`.
#[utoipa::path(
    post, path = "/v1/auth/login", operation_id = "logIn", tag = "accounts",
    request_body = Login,
    responses((status = 200, description = "The user is signed in.", body = SignedIn), OfLogin)
)]
pub(super) async fn login(
    State(services): State<Services>,
    (device, from): (Device, CameFrom),
    body: Body<Login>,
) -> Result<Response, Fault> {
    let entry = services.accounts().login(&device, &body.value).await?;
    Ok(entered(entry, from))
}

/// Sign in by a one-time link.
///
/// Such links are made by who runs Wrenn: `wrenn up` prints one for the first administrator, `wrenn user create` one for each user.
/// They work once, within 24 hours.
#[utoipa::path(
    post, path = "/v1/auth/sign-in-link", operation_id = "useLink", tag = "accounts",
    request_body = UseLink,
    responses((status = 200, description = "The user is signed in.", body = SignedIn), OfSignInLink)
)]
pub(super) async fn sign_in_link(
    State(services): State<Services>,
    (device, from): (Device, CameFrom),
    body: Body<UseLink>,
) -> Result<Response, Fault> {
    let entry = services.accounts().sign_in_by_link(&device, &body.value).await?;
    Ok(entered(entry, from))
}

/// Ask for a link to set another password.
///
/// A mail with the link goes to the address if there is an account with it. The answer is the same if there is none.
#[utoipa::path(
    post, path = "/v1/auth/password-reset", operation_id = "requestReset", tag = "accounts",
    request_body = RequestReset,
    responses((status = 204, description = "If there is an account, a mail is on its way."), OfRequestReset)
)]
pub(super) async fn request_reset(
    State(services): State<Services>,
    device: Device,
    body: Body<RequestReset>,
) -> Result<StatusCode, Fault> {
    services.accounts().request_reset(&device, &body.value).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Set another password by a link.
///
/// Ends all sessions of the user. The link works once, within an hour.
#[utoipa::path(
    post, path = "/v1/auth/password-reset/confirm", operation_id = "confirmReset", tag = "accounts",
    request_body = ConfirmReset,
    responses((status = 204, description = "The password is set."), OfConfirmReset)
)]
pub(super) async fn confirm_reset(
    State(services): State<Services>,
    device: Device,
    body: Body<ConfirmReset>,
) -> Result<StatusCode, Fault> {
    services.accounts().confirm_reset(&device, &body.value).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Answers a sign-in. No cache keeps it.
fn entered(entry: Entry, from: CameFrom) -> Response {
    let expires_at = entry.signed_in.expires_at;
    let csrf = entry
        .signed_in
        .csrf_token
        .as_ref()
        .and_then(|token| cookie::set_csrf(token, expires_at, from.is_https));
    let mut response = Json(entry.signed_in).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(cookie) = entry.cookie.and_then(|value| cookie::set(&value, expires_at, from.is_https)) {
        headers.append(header::SET_COOKIE, cookie);
    }
    if let Some(csrf) = csrf {
        headers.append(header::SET_COOKIE, csrf);
    }
    response
}

impl FromRequestParts<Services> for Device {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &Services) -> Result<Self, Fault> {
        let Ok(from) = parts.extract::<CameFrom>().await;
        let agent =
            parts.headers.get(header::USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let agent = agent.map(|agent| agent.chars().filter(|character| !character.is_control()).collect());
        Ok(Self { address: from.address, user_agent: agent })
    }
}
