// SPDX-License-Identifier: Apache-2.0
//! Authentication of requests: the first authenticator that finds its kind of credential decides who the
//! caller is, and without one, the signature of the URL.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use futures::future::BoxFuture;
use http::{HeaderMap, request::Parts};
use wrenn_api::ErrorCode;

use super::v1::file_urls;
use crate::{caller::Caller, error::Fault, request_trace, services::Services};

/// Authenticator of one kind of credential.
pub trait Authenticator: Send + Sync + 'static {
    /// Returns the caller with the request's credential; `None` if it has none of this kind. Fails if the
    /// credential is not valid.
    fn caller<'a>(&'a self, headers: &'a HeaderMap) -> BoxFuture<'a, Result<Option<Caller>, Fault>>;
}

/// Authenticator of API keys in the header `X-API-Key`.
pub(super) struct ApiKey {
    services: Services,
}

impl ApiKey {
    pub(super) const fn new(services: Services) -> Self {
        Self { services }
    }
}

impl Authenticator for ApiKey {
    fn caller<'a>(&'a self, headers: &'a HeaderMap) -> BoxFuture<'a, Result<Option<Caller>, Fault>> {
        Box::pin(async {
            let Some(given) = headers.get("x-api-key") else { return Ok(None) };
            let caller = self.services.keys().caller(given.to_str().unwrap_or_default()).await?;
            caller.map(Some).ok_or_else(refused)
        })
    }
}

/// All authenticators of a server, in their order, and its services, which know signatures.
#[derive(Clone)]
pub(super) struct Authenticators {
    all: Arc<[Arc<dyn Authenticator>]>,
    services: Services,
}

impl Authenticators {
    pub(super) fn new(all: Arc<[Arc<dyn Authenticator>]>, services: Services) -> Self {
        Self { all, services }
    }
}

/// Rejects requests without a valid credential, and gives the caller to the others.
pub(super) async fn required(
    State(authenticators): State<Authenticators>,
    mut request: Request,
    next: Next,
) -> Result<Response, Fault> {
    let caller = match authenticate(&authenticators.all, request.headers()).await? {
        Some(caller) => caller,
        None => {
            let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
            let (method, uri) = (request.method(), request.uri());
            let signed = file_urls::caller(&authenticators.services, method, uri, route).await?;
            signed.ok_or_else(refused)?
        }
    };
    request_trace::caller(&caller);
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

async fn authenticate(all: &[Arc<dyn Authenticator>], headers: &HeaderMap) -> Result<Option<Caller>, Fault> {
    for authenticator in all {
        if let Some(caller) = authenticator.caller(headers).await? {
            return Ok(Some(caller));
        }
    }
    Ok(None)
}

fn refused() -> Fault {
    let message = "the API key is missing or not valid: send it in the header X-API-Key";
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
