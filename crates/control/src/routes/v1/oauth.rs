// SPDX-License-Identifier: Apache-2.0
//! Sign-in by accounts at providers, and accounts at providers that users connect.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use wrenn_api::{ConnectProvider, ErrorCode};

use super::{
    error_responses::{OfOauth, OfProvider},
    extract::Parameters,
    oauth_cookie::{self, Place},
};
use crate::{
    accounts::{Device, Entry},
    caller::Caller,
    error::Fault,
    oauth::{Back, Outcome},
    routes::{came_from::CameFrom, cookie},
    services::Services,
};

/// Path at which a browser goes on if none is named.
const HOME: &str = "/";

/// Begin a sign-in by an account at a provider.
///
/// A browser goes to this URL and from there to the provider. It comes back to `finishOauth`, and goes on at `return_to`, below the path
/// of `server.public_url`, with the cookie of a session, and a cookie `wrenn_csrf` (over HTTPS `__Host-wrenn_csrf`) with the value of
/// `X-CSRF-Token`. If there is no sign-in, `oauth_error` is added to that path: `access_denied`, `invalid_state`, `exchange_failed`,
/// `email_not_verified`, `no_account` (sign up first, with `intent=signup`), `email_taken` (sign in as usual and connect the provider),
/// `account_disabled`, or another error code.
///
/// `github` is known if the operator has configured it.
#[utoipa::path(
    get, path = "/auth/oauth/{provider}", operation_id = "beginOauth", tag = "accounts",
    params(
        ("provider" = String, Path, description = "Name of the provider.", pattern = "^[a-z]{1,32}$", example = "github"),
        ("intent" = Option<String>, Query, description = "`signup` makes an account if there is none; `login` does not. Default: `login`.", pattern = "^(login|signup)$"),
        ("return_to" = Option<String>, Query, description = "Path of this server at which the browser goes on. Default: `/`.", pattern = "^/([^/\\\\\\s][^\\\\\\s]*)?$", max_length = 512),
    ),
    responses((status = 303, description = "The browser goes to the provider."), OfOauth)
)]
pub(super) async fn begin(
    State(services): State<Services>,
    (device, from): (Device, CameFrom),
    provider: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Fault> {
    let provider = named(provider)?;
    let [intent, return_to] = parameters.known(["intent", "return_to"])?;
    let is_signup = match intent.as_deref() {
        None | Some("login") => false,
        Some("signup") => true,
        Some(_) => return Err(Fault::invalid("intent: give login or signup")),
    };
    let return_to = return_to.as_deref().unwrap_or(HOME);
    let begun = services.oauth().begin(&provider, return_to, is_signup, device.address).await?;
    let mut response = redirect(&begun.url)?;
    oauth_cookie::keep(response.headers_mut(), &headers, &begun, place(&services, from));
    Ok(response)
}

/// End a sign-in by an account at a provider.
///
/// Browsers come back to this from the provider. It works once for each sign-in that `beginOauth` or `connectProvider` has begun in
/// the same browser in the last 10 minutes. In any case the browser goes on where it wanted to return to; if that is not known any more,
/// as when the page is loaded again, at `/`, and its session stays as it is.
#[utoipa::path(
    get, path = "/auth/oauth/{provider}/callback", operation_id = "finishOauth", tag = "accounts",
    params(
        ("provider" = String, Path, description = "Name of the provider.", pattern = "^[a-z]{1,32}$", example = "github"),
        ("state" = Option<String>, Query, description = "What the provider was given.", max_length = 256),
        ("code" = Option<String>, Query, description = "What the provider gives for the account.", max_length = 512),
        ("error" = Option<String>, Query, description = "Why the provider gives none.", max_length = 256),
    ),
    responses((status = 303, description = "The browser goes on."), OfOauth)
)]
pub(super) async fn finish(
    State(services): State<Services>,
    (device, from): (Device, CameFrom),
    provider: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    Parameters(parameters): Parameters,
) -> Result<Response, Fault> {
    let provider = named(provider)?;
    // Providers add parameters of their own.
    let find =
        |name: &str| parameters.iter().find(|(given, _)| given == name).map(|(_, value)| value.clone());
    let state = find("state");
    let back = Back {
        browser: state.as_deref().and_then(|state| oauth_cookie::of(&headers, state)).map(str::to_owned),
        state: state.clone(),
        code: find("code"),
        is_error: find("error").is_some(),
        device,
    };
    let finished = services.oauth().finish(&provider, back).await?;
    let path = &finished.return_to;
    let mut response = match finished.outcome {
        Outcome::SignedIn(entry) => signed_in(path, *entry, from)?,
        Outcome::Connected => redirect(&with(path, "connected", &provider))?,
        Outcome::Refused(code) => refused(path, code)?,
    };
    if let Some(state) = state {
        oauth_cookie::remove(response.headers_mut(), &state, place(&services, from));
    }
    Ok(response)
}

/// Begin to connect an account at a provider.
///
/// The user can then sign in by it, too. The browser, which gets a cookie, goes to `auth_url`, and comes back to `return_to`, to
/// which `connected` or `oauth_error` is added: also `already_connected`, if another user has the account at the provider or the
/// user has another one there, and `session_ended`.
#[utoipa::path(
    get, path = "/v1/me/providers/{provider}/connect", operation_id = "connectProvider", tag = "accounts",
    params(
        ("provider" = String, Path, description = "Name of the provider.", pattern = "^[a-z]{1,32}$", example = "github"),
        ("return_to" = Option<String>, Query, description = "Path of this server at which the browser goes on. Default: `/`.", pattern = "^/([^/\\\\\\s][^\\\\\\s]*)?$", max_length = 512),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "Where the browser goes.", body = ConnectProvider), OfProvider)
)]
pub(super) async fn connect(
    State(services): State<Services>,
    (caller, from): (Caller, CameFrom),
    provider: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Fault> {
    let provider = named(provider)?;
    let [return_to] = parameters.known(["return_to"])?;
    let return_to = return_to.as_deref().unwrap_or(HOME);
    let begun = services.oauth().connect(&caller, &provider, return_to).await?;
    let mut response = Json(ConnectProvider { auth_url: begun.url.clone() }).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    oauth_cookie::keep(response.headers_mut(), &headers, &begun, place(&services, from));
    Ok(response)
}

/// Disconnect an account at a provider.
///
/// This is 409 `last_login_method` if the user could not sign in any more.
#[utoipa::path(
    delete, path = "/v1/me/providers/{provider}", operation_id = "disconnectProvider", tag = "accounts",
    params(
        ("provider" = String, Path, description = "Name of the provider.", pattern = "^[a-z]{1,32}$", example = "github"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The account is disconnected."), OfProvider)
)]
pub(super) async fn disconnect(
    State(services): State<Services>,
    caller: Caller,
    provider: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Fault> {
    services.oauth().disconnect(&caller, &named(provider)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn named(provider: Result<Path<String>, PathRejection>) -> Result<String, Fault> {
    let Path(provider) = provider.map_err(|_| Fault::invalid("the provider in the path is not text"))?;
    Ok(provider)
}

/// Sends a browser on; no cache keeps it, and the next server is not told where it came from.
fn redirect(to: &str) -> Result<Response, Fault> {
    let location = HeaderValue::from_str(to).map_err(|_| Fault::internal())?;
    let headers = [
        (header::LOCATION, location),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    Ok((StatusCode::SEE_OTHER, headers).into_response())
}

fn signed_in(path: &str, entry: Entry, from: CameFrom) -> Result<Response, Fault> {
    let mut response = redirect(path)?;
    let headers = response.headers_mut();
    let expires_at = entry.signed_in.expires_at;
    if let Some(cookie) = entry.cookie.and_then(|value| cookie::set(&value, expires_at, from.is_https)) {
        headers.append(header::SET_COOKIE, cookie);
    }
    let csrf = entry
        .signed_in
        .csrf_token
        .as_ref()
        .and_then(|token| cookie::set_csrf(token, expires_at, from.is_https));
    if let Some(csrf) = csrf {
        headers.append(header::SET_COOKIE, csrf);
    }
    Ok(response)
}

fn refused(path: &str, code: &'static str) -> Result<Response, Fault> {
    let mut response = redirect(&with(path, "oauth_error", code))?;
    // For the logs: to the browser it is a redirection like others.
    let message = format!("the sign-in by a provider was refused: {code}");
    response.extensions_mut().insert(Fault::new(ErrorCode::Unauthorized, message));
    Ok(response)
}

fn place(services: &Services, from: CameFrom) -> Place<'_> {
    Place { public_path: &services.state().public_path, from }
}

/// Adds a parameter to a path.
fn with(path: &str, name: &str, value: &str) -> String {
    let (before, fragment) = path.split_once('#').map_or((path, None), |(path, rest)| (path, Some(rest)));
    let sign = if before.contains('?') { '&' } else { '?' };
    let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
    let fragment = fragment.map(|fragment| format!("#{fragment}")).unwrap_or_default();
    // An underscore needs no escape, and codes have some.
    format!("{before}{sign}{name}={}{fragment}", value.to_string().replace("%5F", "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_goes_before_the_fragment() {
        assert_eq!(with("/", "oauth_error", "no_account"), "/?oauth_error=no_account");
        assert_eq!(with("/a?b=c#d", "connected", "github"), "/a?b=c&connected=github#d");
        assert_eq!(with("/a", "connected", "a&b"), "/a?connected=a%26b");
    }

    #[test]
    fn a_refusal_is_in_the_log_and_not_in_the_body() {
        let response = refused("/x", "invalid_state").expect("a response");
        assert_eq!(response.status(), 303);
        assert_eq!(response.headers()["location"], "/x?oauth_error=invalid_state");
        assert!(response.extensions().get::<Fault>().is_some());
    }
}
