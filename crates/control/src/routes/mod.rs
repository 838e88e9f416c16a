// SPDX-License-Identifier: Apache-2.0
//! HTTP API: routes, the OpenAPI document made from them, and middleware.

mod events;
mod exec;
mod exec_stream;
mod files;
#[cfg(test)]
mod flood_tests;
mod form;
mod health;
mod openapi;
mod output;
mod progress;
mod refusals;
mod sandboxes;
mod surround;
mod utf8;

use axum::{Router, middleware};
use http::Request;
use tower::Layer as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{auth, error::ApiError, state::App};

pub(crate) use openapi::document;
pub(crate) use progress::STILL;

/// Routes with authentication.
fn protected() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(sandboxes::create, sandboxes::list))
        .routes(routes!(sandboxes::get, sandboxes::delete))
        .routes(routes!(exec::exec))
        .routes(routes!(exec_stream::exec_stream))
        .routes(routes!(files::write))
        .routes(routes!(files::read))
        .routes(routes!(events::stream))
}

/// Routes without authentication.
fn open() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(health::health)).routes(routes!(health::metrics))
}

/// Marks a request by the older path.
#[derive(Debug, Clone, Copy)]
struct OlderPath;

/// Rewrites the older path of sandboxes.
fn alias<B>(mut request: Request<B>) -> Request<B> {
    const OLD: &str = "/v1/capsules";
    let uri = request.uri();
    let Some(rest) = uri.path().strip_prefix(OLD).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    else {
        return request;
    };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    if let Ok(new) = format!("/v1/sandboxes{rest}{query}").parse() {
        *request.uri_mut() = new;
        request.extensions_mut().insert(OlderPath);
    }
    request
}

/// Builds the service of the whole API.
pub(crate) fn service(
    app: &App,
) -> tower::util::MapRequest<Router, fn(axum::extract::Request) -> axum::extract::Request> {
    let (open, _) = open().split_for_parts();
    let (protected, _) = protected().split_for_parts();
    let bound = middleware::from_fn_with_state(app.clone(), surround::bound);
    // Authentication first: requests without a valid key use no permit.
    let protected = protected
        .route_layer(bound.clone())
        .route_layer(middleware::from_fn_with_state(app.clone(), auth::required));
    let router = open
        .merge(openapi::routes())
        .route_layer(bound)
        .merge(protected)
        .fallback(async || {
            ApiError::new(
                wrenn_api::ErrorCode::NotFound,
                "there is nothing at this path; GET /docs lists what there is",
            )
        })
        .method_not_allowed_fallback(async || {
            let message = "this path does not take this method; GET /docs lists what it takes";
            ApiError::new(wrenn_api::ErrorCode::MethodNotAllowed, message)
        })
        .layer(middleware::from_fn(surround::observe))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(app.clone());
    tower::util::MapRequestLayer::new(alias as fn(axum::extract::Request) -> axum::extract::Request)
        .layer(router)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capsules_are_sandboxes() {
        let path = |uri: &str| alias(Request::get(uri).body(()).expect("a request")).uri().to_string();
        assert_eq!(path("/v1/capsules"), "/v1/sandboxes");
        assert_eq!(path("/v1/capsules/x/exec?a=b"), "/v1/sandboxes/x/exec?a=b");
        assert_eq!(path("/v1/capsulesx"), "/v1/capsulesx");
    }
}
