//! Around every request: an id, a bound on how many are in work, a record, and an answer even when a handler
//! panics.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures::FutureExt as _;
use http::{HeaderValue, header::HeaderName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument as _;
use uuid::Uuid;
use wrenn_api::ErrorCode;

use crate::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Maximum length of a request id that a client chooses.
const ID_MAX: usize = 128;
/// Paths that monitoring requests all the time: they are not logged as other requests.
const PROBES: [&str; 2] = ["/health", "/metrics"];

fn request_id(request: &Request) -> HeaderValue {
    let given = request
        .headers()
        .get(&REQUEST_ID)
        .filter(|id| (1..=ID_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic));
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&Uuid::now_v7().simple().to_string())
            .unwrap_or(HeaderValue::from_static("none"))
    })
}

/// Assigns a request id, and measures and logs the request.
pub(super) async fn observe(request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let id = request_id(&request);
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().as_str().to_owned();
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default());
    let handled = AssertUnwindSafe(next.run(request).instrument(span.clone())).catch_unwind().await;
    let mut response = handled.unwrap_or_else(|_| {
        let message = "the control plane failed at this request; its log says why, under the request id";
        ApiError::new(ErrorCode::InternalError, message).into_response()
    });
    response.headers_mut().insert(REQUEST_ID, id);
    let (took, status) = (begin.elapsed(), response.status());
    let labels =
        [("method", method.clone()), ("route", route.clone()), ("status", status.as_u16().to_string())];
    metrics::histogram!("wrenn_http_request_seconds", &labels).record(took.as_secs_f64());
    let (status, ms) = (status.as_u16(), took.as_secs_f64() * 1000.0);
    span.in_scope(|| {
        if PROBES.contains(&route.as_str()) && status < 400 {
            tracing::debug!(method, route, status, ms, "handled");
        } else {
            tracing::info!(method, route, status, ms, "handled");
        }
    });
    response
}

/// A request's place among those in work. What outlives its handler, such as the body of a download, keeps it.
#[derive(Debug, Clone)]
pub(super) struct InWork {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// Refuses what is more than the server takes at a time.
pub(super) async fn bound(
    State(places): State<Arc<Semaphore>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let Ok(permit) = places.try_acquire_owned() else {
        let message = "the control plane has too many requests in work; try again in a moment";
        return Err(ApiError::new(ErrorCode::TooManyRequests, message));
    };
    let in_work = InWork { _permit: Arc::new(permit) };
    request.extensions_mut().insert(in_work.clone());
    let response = next.run(request).await;
    drop(in_work);
    Ok(response)
}
