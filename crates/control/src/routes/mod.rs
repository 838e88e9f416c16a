// SPDX-License-Identifier: Apache-2.0
//! HTTP: the surfaces, what stands beside them (health, metrics, documentation), and the middleware of all.
//! Surfaces only render; what they offer is done by the services.

mod account_page;
mod audit;
mod auth;
mod came_from;
mod cookie;
mod dispatch;
mod health;
mod layers;
mod openapi;
mod permission;
mod v1;

use std::sync::Arc;

use anyhow::ensure;
use axum::{Router, extract::Request, middleware};
use tower::{Layer as _, util::MapRequest};
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};
use wrenn_api::ErrorCode;

use crate::{error::Fault, services::Services};

pub use auth::Authenticator;
pub use permission::{needs, needs_in_team};

/// Service of a whole server.
pub type HttpService = MapRequest<Router, fn(Request) -> Request>;

/// Routes of a server, and their document.
pub(crate) struct Routes {
    /// Routes without authentication.
    open: Router<Services>,
    /// Routes that need a caller.
    protected: Router<Services>,
    document: OpenApi,
}

impl Routes {
    /// Collects the routes of the server and of its extensions. Fails if one of an extension declares no
    /// permission: anybody could call it.
    pub(crate) fn new(of_extensions: Vec<(&str, OpenApiRouter<Services>)>) -> anyhow::Result<Self> {
        let open = OpenApiRouter::new().routes(routes!(health::health)).routes(routes!(health::metrics));
        let open = open.merge(v1::open_routes());
        let (open, of_open) = open.split_for_parts();
        let (mut protected, mut of_protected) = v1::routes().split_for_parts();
        for (name, routes) in of_extensions {
            let (router, mut document) = routes.split_for_parts();
            let undeclared = permission::undeclared(&mut document.paths);
            ensure!(
                undeclared.is_empty(),
                "the extension {name} has routes without a permission ({}): add them with needs(…)",
                undeclared.join(", ")
            );
            protected = protected.merge(router);
            of_protected.merge(document);
        }
        Ok(Self { open, protected, document: openapi::document(of_open, of_protected) })
    }

    /// The OpenAPI document.
    pub(crate) const fn document(&self) -> &OpenApi {
        &self.document
    }

    /// Builds the service. Requests to protected routes are authenticated by a credential of the server, or by the authenticators
    /// of extensions.
    pub(crate) fn service(&self, services: &Services, others: Vec<Arc<dyn Authenticator>>) -> HttpService {
        let authenticators = auth::Authenticators::new(others.into(), services.clone());
        let bound = middleware::from_fn_with_state(services.clone(), layers::bound);
        // Within the bounds: what is refused for want of room was not begun.
        let recorder = audit::Recorder::new(services.clone(), &self.document);
        let recorded = middleware::from_fn_with_state(recorder, audit::record);
        // Authentication first: requests without a valid key use no permit.
        let protected = self
            .protected
            .clone()
            .route_layer(recorded.clone())
            .route_layer(bound.clone())
            .route_layer(middleware::from_fn_with_state(authenticators, auth::required));
        let router = self
            .open
            .clone()
            .merge(openapi::routes(&self.document, &services.state().public_path))
            .merge(account_page::routes())
            .route_layer(recorded)
            .route_layer(bound)
            .merge(protected)
            .fallback(async || {
                let message = "there is nothing at this path; GET /docs lists what there is";
                Fault::new(ErrorCode::NotFound, message)
            })
            .method_not_allowed_fallback(async || {
                let message = "this path does not take this method; GET /docs lists what it takes";
                Fault::new(ErrorCode::MethodNotAllowed, message)
            })
            .layer(middleware::from_fn_with_state(services.clone(), came_from::note))
            .layer(middleware::from_fn(layers::observe))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(services.clone());
        tower::util::MapRequestLayer::new(dispatch::dispatch as fn(Request) -> Request).layer(router)
    }
}
