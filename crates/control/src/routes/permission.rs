// SPDX-License-Identifier: Apache-2.0
//! Permissions of routes: declared where a route is added, checked before its handler, and written into the
//! OpenAPI document.

use axum::{
    Extension,
    extract::{RawPathParams, Request},
    middleware::{self, Next},
    response::Response,
};
use http::Method;
use utoipa::openapi::{
    PathItem,
    path::{Operation, Paths},
    security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
};
use utoipa_axum::router::UtoipaMethodRouter;
use wrenn_api::TeamId;

use super::cookie;
use crate::{
    caller::{Caller, Permission},
    error::Fault,
    services::Services,
};

/// Names of the security schemes in the document.
const API_KEY: &str = "api_key";
const BEARER: &str = "bearer";
const COOKIE: &str = "cookie";
const CSRF: &str = "csrf";
const TICKET: &str = "ticket";
/// Field of an operation that names its permission.
const FIELD: &str = "x-permission";
/// What that field has for operations that every caller may use.
const ANY: &str = "caller.any";
/// Ends of the routes that are streams or WebSockets.
const STREAMS: [&str; 4] = ["/stream", "/watch", "/logs", "/pty"];

/// Declares the permission that a route needs: `.routes(needs(Permission::SandboxRead, routes!(list)))`.
pub fn needs(permission: Permission, routes: UtoipaMethodRouter<Services>) -> UtoipaMethodRouter<Services> {
    let (schemas, paths, methods) =
        declared(permission.as_str(), permission != Permission::AccountSelf, routes);
    let check = move |caller: Caller, request: Request, next: Next| async move {
        caller.require(permission)?;
        Ok::<Response, Fault>(next.run(request).await)
    };
    (schemas, paths, methods.route_layer(middleware::from_fn(check)))
}

/// Declares the permission that a route needs in the team of its path, `/v1/teams/{id}`. Its handler gets the caller acting for that
/// team. The route answers 404 to who is not in it.
pub fn needs_in_team(
    permission: Permission,
    routes: UtoipaMethodRouter<Services>,
) -> UtoipaMethodRouter<Services> {
    let (schemas, paths, methods) = declared(permission.as_str(), true, routes);
    let check = move |caller: Caller,
                      Extension(services): Extension<Services>,
                      parameters: RawPathParams,
                      mut request: Request,
                      next: Next| async move {
        let id = parameters.iter().find(|(name, _)| *name == "id").map(|(_, value)| value);
        let wrong = |error| Fault::invalid(format!("the team in the path: {error}"));
        let team: TeamId = id.unwrap_or_default().parse().map_err(wrong)?;
        let caller = services.access().in_team(&caller, team).await?;
        caller.require(permission)?;
        request.extensions_mut().insert(caller);
        Ok::<Response, Fault>(next.run(request).await)
    };
    (schemas, paths, methods.route_layer(middleware::from_fn(check)))
}

/// Declares that every caller may use a route.
pub(super) fn needs_caller(routes: UtoipaMethodRouter<Services>) -> UtoipaMethodRouter<Services> {
    declared(ANY, true, routes)
}

/// Writes into the document what routes need, and by which credentials.
fn declared(
    permission: &str,
    by_key: bool,
    (schemas, mut paths, methods): UtoipaMethodRouter<Services>,
) -> UtoipaMethodRouter<Services> {
    for (path, item) in &mut paths.paths {
        for (method, operation) in with_methods(item) {
            let mut ways = vec![way(BEARER), way(COOKIE)];
            if method != Method::GET {
                ways[1] = way(COOKIE).add(CSRF, Vec::<String>::new());
            }
            if by_key {
                ways.insert(0, way(API_KEY));
            }
            if takes_tickets(&method, path) {
                ways.push(way(TICKET));
            }
            operation.security = Some(ways);
            operation.extensions.get_or_insert_default().insert(FIELD.to_owned(), permission.into());
        }
    }
    (schemas, paths, methods)
}

fn way(scheme: &str) -> SecurityRequirement {
    SecurityRequirement::new(scheme, Vec::<String>::new())
}

/// Returns whether a request is of the kind that browsers send without headers of their own: a stream of events or a WebSocket.
pub(super) fn takes_tickets(method: &Method, route: &str) -> bool {
    method == Method::GET && STREAMS.iter().any(|last| route.ends_with(last))
}

/// Returns the security schemes, by their names.
pub(super) fn schemes() -> [(&'static str, SecurityScheme); 5] {
    let described = |name: &str, text: &str| ApiKeyValue::with_description(name, text);
    let mut bearer = Http::new(HttpAuthScheme::Bearer);
    bearer.bearer_format = Some("JWT".to_owned());
    bearer.description = Some("A token of a user, from a sign-in without `cookie`.".to_owned());
    let of_key =
        "An API key of the team. `wrenn up` creates the first one and writes it to its configuration file.";
    let of_cookie = "The cookie of a user's browser, from a sign-in with `cookie`. Over HTTPS its name is `__Host-wrenn_session`.";
    let of_csrf = "What the sign-in returned as `csrf_token`; after one by a provider it is in the cookie `wrenn_csrf`, over HTTPS \
        `__Host-wrenn_csrf`.";
    let of_ticket = "A ticket from `POST /v1/tickets`, for one request.";
    [
        (API_KEY, SecurityScheme::ApiKey(ApiKey::Header(described("X-API-Key", of_key)))),
        (BEARER, SecurityScheme::Http(bearer)),
        (COOKIE, SecurityScheme::ApiKey(ApiKey::Cookie(described(cookie::SESSION, of_cookie)))),
        (CSRF, SecurityScheme::ApiKey(ApiKey::Header(described("X-CSRF-Token", of_csrf)))),
        (TICKET, SecurityScheme::ApiKey(ApiKey::Query(described("ticket", of_ticket)))),
    ]
}

/// Returns the operations of these paths that declare no permission, by their path.
pub(super) fn undeclared(paths: &mut Paths) -> Vec<String> {
    let mut found = Vec::new();
    for (path, item) in &mut paths.paths {
        let declared = |operation: &mut Operation| {
            operation.extensions.as_ref().is_some_and(|fields| fields.contains_key(FIELD))
        };
        if !of_item(item).all(declared) {
            found.push(path.clone());
        }
    }
    found
}

/// Returns all operations of paths.
pub(super) fn operations(paths: &mut Paths) -> impl Iterator<Item = &mut Operation> {
    paths.paths.values_mut().flat_map(of_item)
}

fn of_item(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    with_methods(item).map(|(_, operation)| operation)
}

fn with_methods(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let all = [
        (Method::GET, &mut item.get),
        (Method::POST, &mut item.post),
        (Method::PUT, &mut item.put),
        (Method::PATCH, &mut item.patch),
        (Method::DELETE, &mut item.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_open_streams_only() {
        for route in ["/v1/events/stream", "/v1/sandboxes/{id}/pty", "/v1/templates/builds/{id}/logs"] {
            assert!(takes_tickets(&Method::GET, route), "{route}");
            assert!(!takes_tickets(&Method::POST, route), "{route}");
        }
        for route in ["", "/v1/sandboxes", "/v1/audit-logs", "/v1/sandboxes/{id}/files/stream/read"] {
            assert!(!takes_tickets(&Method::GET, route), "{route}");
        }
    }
}
