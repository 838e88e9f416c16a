// SPDX-License-Identifier: Apache-2.0
//! Authentication of requests. What a client sends on purpose goes before what a browser adds by itself: an API key, a token, a
//! ticket, what an extension knows, the signature of the URL, and last the cookie.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Uri, header, request::Parts};
use wrenn_api::ErrorCode;

use super::{came_from::CameFrom, cookie, permission::takes_tickets, v1::file_urls};
use crate::{access::is_csrf_token, caller::Caller, error::Fault, request_trace, services::Services};

/// Parameter of a URL with a ticket.
const TICKET: &str = "ticket";

/// Authenticator of one kind of credential.
pub trait Authenticator: Send + Sync + 'static {
    /// Returns the caller with the request's credential; `None` if it has none of this kind. Fails if the
    /// credential is not valid.
    fn caller<'a>(&'a self, headers: &'a HeaderMap) -> BoxFuture<'a, Result<Option<Caller>, Fault>>;
}

/// The services of a server, which know its own credentials, and the authenticators of its extensions, in their order.
#[derive(Clone)]
pub(super) struct Authenticators {
    of_extensions: Arc<[Arc<dyn Authenticator>]>,
    services: Services,
}

impl Authenticators {
    pub(super) fn new(of_extensions: Arc<[Arc<dyn Authenticator>]>, services: Services) -> Self {
        Self { of_extensions, services }
    }

    /// Returns the caller of a request. Fails if it has no credential that is valid.
    async fn caller(&self, parts: &mut Parts) -> Result<Caller, Fault> {
        let access = self.services.access();
        // It decides alone.
        if let Some(key) = parts.headers.get("x-api-key") {
            return access.by_key(key.to_str().unwrap_or_default()).await?.ok_or_else(refused);
        }
        let token = bearer(&parts.headers);
        let has_token = token.is_some();
        if let Some(token) = token
            && let Some(caller) = access.by_token(token).await?
        {
            return Ok(caller);
        }
        if let Some(caller) = self.by_ticket(parts).await? {
            return Ok(caller);
        }
        for authenticator in &*self.of_extensions {
            if let Some(caller) = authenticator.caller(&parts.headers).await? {
                return Ok(caller);
            }
        }
        // A token that nobody knows decides, too.
        if has_token {
            return Err(refused());
        }
        let route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        if let Some(caller) = file_urls::caller(&self.services, &parts.method, &parts.uri, route).await? {
            return Ok(caller);
        }
        self.by_cookie(parts).await?.ok_or_else(refused)
    }

    /// Returns the caller who made the ticket of a URL, from which it is removed; `None` if it has none. Fails if it is not valid.
    async fn by_ticket(&self, parts: &mut Parts) -> Result<Option<Caller>, Fault> {
        let Some((ticket, rest)) = without_ticket(&parts.uri) else { return Ok(None) };
        let route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        if !takes_tickets(&parts.method, route) {
            let message = "tickets are for GET requests of streams and WebSockets: send a key or a token in a header instead";
            return Err(Fault::new(ErrorCode::Unauthorized, message));
        }
        let caller =
            self.services.access().by_ticket(&ticket, parts.method.as_str(), parts.uri.path()).await?;
        let message = "the ticket was used, is too old, or is for another path: make another one";
        let caller = caller.ok_or_else(|| Fault::new(ErrorCode::Unauthorized, message))?;
        parts.uri = rest;
        Ok(Some(caller))
    }

    /// Returns the user whose browser sends a cookie; `None` if it sends none that is valid. Fails if another site may have made it
    /// send the request.
    async fn by_cookie(&self, parts: &Parts) -> Result<Option<Caller>, Fault> {
        let is_https = parts.extensions.get::<CameFrom>().is_some_and(|from| from.is_https);
        let Some(value) = cookie::of(&parts.headers, is_https) else { return Ok(None) };
        let Some(caller) = self.services.access().by_cookie(value).await? else { return Ok(None) };
        let is_safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(&parts.method);
        let given = parts.headers.get("x-csrf-token").and_then(|token| token.to_str().ok());
        if !is_safe && !given.is_some_and(|given| is_csrf_token(value, given)) {
            let message = "with a cookie, send the token of the sign-in in the header X-CSRF-Token, too";
            return Err(Fault::new(ErrorCode::Forbidden, message));
        }
        if parts.headers.contains_key(header::UPGRADE) && !is_same_origin(&parts.headers) {
            let message =
                "a page of another site may not open this with your cookie: the header Origin does not fit";
            return Err(Fault::new(ErrorCode::Forbidden, message));
        }
        Ok(Some(caller))
    }
}

/// Rejects requests without a valid credential, and gives the caller to the others.
pub(super) async fn required(
    State(authenticators): State<Authenticators>,
    request: Request,
    next: Next,
) -> Result<Response, Fault> {
    let (mut parts, body) = request.into_parts();
    let caller = authenticators.caller(&mut parts).await?;
    request_trace::caller(&caller);
    parts.extensions.insert(caller);
    // For the checks of permissions, which have no state.
    parts.extensions.insert(authenticators.services.clone());
    Ok(next.run(Request::from_parts(parts, body)).await)
}

/// Returns the token of the header `Authorization`, if it has one.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Returns the ticket of a URL, and the URL without it.
fn without_ticket(uri: &Uri) -> Option<(String, Uri)> {
    let is_ticket = |part: &&str| part.split_once('=').is_some_and(|(name, _)| name == TICKET);
    let query = uri.query()?;
    // Tickets have no characters that are escaped.
    let (_, ticket) = query.split('&').find(is_ticket)?.split_once('=')?;
    let others: Vec<&str> = query.split('&').filter(|part| !is_ticket(part)).collect();
    let path = uri.path();
    let rest = if others.is_empty() { path.to_owned() } else { format!("{path}?{}", others.join("&")) };
    Some((ticket.to_owned(), rest.parse().ok()?))
}

/// Returns whether the page that opens a WebSocket is of the server that it asks.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: http::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host_of = |origin: &str| origin.split_once("://").map(|(_, host)| host.to_ascii_lowercase());
    let origin = text(header::ORIGIN).and_then(host_of);
    origin.is_some() && origin == text(header::HOST).map(str::to_ascii_lowercase)
}

fn refused() -> Fault {
    let message = "the API key or token is missing or not valid: send a key in the header X-API-Key, or a token as \
        Authorization: Bearer TOKEN";
    Fault::new(ErrorCode::Unauthorized, message)
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        // Routes without authentication have no caller: this is a bug of the server.
        let unchecked = || Fault::new(ErrorCode::InternalError, "the request reached a handler unchecked");
        parts.extensions.get::<Self>().copied().ok_or_else(unchecked)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn tokens_are_read_from_their_header() {
        let of = |value| bearer(&headers(&[("authorization", value)])).map(str::to_owned);
        assert_eq!(of("Bearer a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(of("bearer  a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(of("Bearer"), None);
        assert_eq!(of("Basic YTpi"), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn handlers_do_not_see_the_ticket() {
        let of = |uri: &'static str| {
            without_ticket(&Uri::from_static(uri)).map(|(ticket, rest)| (ticket, rest.to_string()))
        };
        let taken = |ticket: &str, rest: &str| Some((ticket.to_owned(), rest.to_owned()));
        assert_eq!(of("/v1/events/stream?ticket=a-_1"), taken("a-_1", "/v1/events/stream"));
        assert_eq!(of("/x?a=b&ticket=t&c=d"), taken("t", "/x?a=b&c=d"));
        assert_eq!(of("/x?tickets=t"), None);
        assert_eq!(of("/x?ticket"), None);
        assert_eq!(of("/x"), None);
    }

    #[test]
    fn only_pages_of_the_server_open_web_sockets_by_cookie() {
        let of = |all: &[(&'static str, &'static str)]| is_same_origin(&headers(all));
        assert!(of(&[("host", "wrenn.example:8443"), ("origin", "https://Wrenn.example:8443")]));
        assert!(!of(&[("host", "wrenn.example"), ("origin", "https://evil.example")]));
        assert!(!of(&[("host", "wrenn.example"), ("origin", "https://8080-sb1.wrenn.example")]));
        assert!(!of(&[("host", "wrenn.example"), ("origin", "null")]));
        assert!(!of(&[("host", "wrenn.example")]));
        assert!(!of(&[]));
    }
}
