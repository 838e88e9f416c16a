// SPDX-License-Identifier: Apache-2.0
//! Middleware of every request: request id, permit, log and metrics, and a response even if a handler panics.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures::FutureExt as _;
use http::{
    HeaderValue, Method,
    header::{HeaderName, X_CONTENT_TYPE_OPTIONS},
};
use uuid::Uuid;
use wrenn_api::ErrorCode;

use crate::{
    admission::{Admission, InWork, Places},
    caller::Caller,
    error::Fault,
    request_trace,
    services::Services,
    serving::{Connection, Holding},
    telemetry,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Maximum length of a request id that a client chooses.
const ID_MAX: usize = 128;
/// Paths that monitoring requests all the time: they are not logged as other requests.
const PROBES: [&str; 2] = ["/health", "/metrics"];

/// Assigns a request id, and measures and logs the request.
pub(super) async fn observe(request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let id = request_id(&request);
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = telemetry::method(request.method());
    let connection = request.extensions().get::<Arc<Connection>>();
    let span = request_trace::span(&id, connection.map(AsRef::as_ref));
    let handling = request_trace::follow(id.clone(), span.clone(), next.run(request));
    let handled = AssertUnwindSafe(handling).catch_unwind().await;
    let mut response = handled.unwrap_or_else(|_| {
        let message = "the control plane failed at this request; its log says why, under the request id";
        Fault::new(ErrorCode::InternalError, message).into_response()
    });
    response.headers_mut().insert(REQUEST_ID, id);
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let (took, status) = (begin.elapsed(), response.status().as_u16());
    let labels = [("method", method.to_owned()), ("route", route.clone()), ("status", status.to_string())];
    metrics::histogram!("wrenn_http_request_seconds", &labels).record(took.as_secs_f64());
    let ms = took.as_millis() as u64;
    let code = response.extensions().get::<Fault>().map(|fault| tracing::field::display(fault.code));
    span.in_scope(|| {
        if PROBES.contains(&route.as_str()) && status < 400 {
            tracing::debug!(method, route, status, code, ms, "handled");
        } else {
            tracing::info!(method, route, status, code, ms, "handled");
        }
    });
    response
}

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

/// Rejects requests beyond the limit of the server or of the team. The permit is released after the response
/// was sent.
pub(super) async fn bound(
    State(services): State<Services>,
    mut request: Request,
    next: Next,
) -> Result<Response, Fault> {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str);
    let team = request.extensions().get::<Caller>().map(|caller| caller.team().uuid());
    let places = places(&services.state().admission, request.method(), route, team.is_some());
    let in_work = InWork::new(places.take(team)?);
    request.extensions_mut().insert(in_work.clone());
    Ok(next.run(request).await.map(|body| Holding::body(body, in_work)))
}

/// Returns the limit that applies to a route, which has a caller or is open to everybody.
fn places<'a>(admission: &'a Admission, method: &Method, route: &str, has_caller: bool) -> &'a Places {
    match route {
        _ if !has_caller && PROBES.contains(&route) => &admission.probes,
        _ if !has_caller => &admission.pages,
        _ if ["/stream", "/watch", "/logs", "/export"].iter().any(|last| route.ends_with(last)) => {
            &admission.streams
        }
        _ if method == Method::DELETE => &admission.deletes,
        _ => &admission.requests,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::{Router, body::Body, routing::get};
    use tower::ServiceExt as _;

    use super::*;
    use crate::config::Limits;

    #[test]
    fn each_kind_of_request_has_places_of_its_own() {
        let admission = Admission::new(&Limits::default());
        let of = |method: Method, route: &str| {
            std::ptr::from_ref(places(&admission, &method, route, route.starts_with("/v1/")))
        };
        let kinds: BTreeSet<_> = [
            (Method::GET, "/health"),
            (Method::GET, "/docs"),
            (Method::GET, "/v1/sandboxes/{id}"),
            (Method::DELETE, "/v1/sandboxes/{id}"),
            (Method::GET, "/v1/sandboxes/{id}/exec/stream"),
        ]
        .map(|(method, route)| of(method, route))
        .into();
        assert_eq!(kinds.len(), 5);
        for stream in ["/v1/events/stream", "/v1/templates/builds/{id}/logs"] {
            assert_eq!(of(Method::GET, stream), of(Method::GET, "/v1/sandboxes/{id}/exec/stream"));
        }
    }

    #[tokio::test]
    async fn no_client_makes_the_figures_grow() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new()
            .set_buckets(&[1.0])
            .expect("a bucket")
            .build_recorder();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let router = Router::new()
            .route("/known/{id}", get(async || ()))
            .fallback(async || Fault::new(ErrorCode::NotFound, "nothing"))
            .layer(axum::middleware::from_fn(observe));
        let send = async |method: &str, path: &str| {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("x-request-id", format!("id-{method}"))
                .header("x-api-key", path)
                .body(Body::empty());
            router.clone().oneshot(request.expect("a request")).await.expect("an answer");
        };
        for number in 0..2000 {
            send(&format!("M{number:x}"), &format!("/nothing/{number}")).await;
            send(&format!("M{number:x}"), &format!("/known/{number}")).await;
            send("GET", &format!("/known/{number}")).await;
        }
        let text = recorder.handle().render();
        let mut values = BTreeSet::new();
        for labels in text.lines().filter_map(|line| Some(line.split_once('{')?.1.rsplit_once('}')?.0)) {
            values.extend(labels.split(',').map(str::to_owned));
        }
        let known = [
            r#"method="GET""#,
            r#"method="other""#,
            r#"route="/known/{id}""#,
            r#"route="none""#,
            r#"status="200""#,
            r#"status="404""#,
            r#"status="405""#,
            r#"le="1""#,
            r#"le="+Inf""#,
        ];
        let unknown: Vec<&String> = values.iter().filter(|value| !known.contains(&value.as_str())).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(text.len() < 4000, "{} bytes", text.len());
    }
}
