// SPDX-License-Identifier: Apache-2.0
//! Health and metrics of the control plane.

use std::time::Duration;

use axum::{Json, extract::State, response::IntoResponse};
use http::{StatusCode, header};
use wrenn_api::Health;

use crate::services::Services;

/// Time limit of each check.
const LOOK: Duration = Duration::from_secs(2);

/// Get the health of the control plane.
#[utoipa::path(
    get, path = "/health", operation_id = "getHealth", tag = "service",
    responses(
        (status = 200, description = "The control plane reaches PostgreSQL and Redis.", body = Health),
        (status = 503, description = "PostgreSQL or Redis cannot be reached; `status` is `degraded`.", body = Health,
            example = json!({"status": "degraded", "version": "0.1.0", "hosts_online": 0, "drivers": [], "max_upload_bytes": 104_857_600})),
    )
)]
pub(super) async fn health(State(services): State<Services>) -> (StatusCode, Json<Health>) {
    let database = async { services.hosts().online().await.ok() };
    let events = async { services.state().events.ping().await.is_ok() };
    let looked = tokio::time::timeout(LOOK, futures::future::join(database, events)).await;
    let (drivers, events) = looked.unwrap_or((None, false));
    let well = drivers.is_some() && events;
    let drivers = drivers.unwrap_or_default();
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = if well { "ok" } else { "degraded" };
    let health = Health {
        status: text.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hosts_online: drivers.iter().map(|driver| driver.hosts).sum(),
        drivers,
        max_upload_bytes: Some(services.state().limits.upload_body as u64),
    };
    (status, Json(health))
}

/// Get metrics in the text format of Prometheus.
#[utoipa::path(
    get, path = "/metrics", operation_id = "getMetrics", tag = "service",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain",
        example = json!("# TYPE wrenn_sandboxes gauge\nwrenn_sandboxes{status=\"running\"} 3\n")))
)]
pub(super) async fn metrics(State(services): State<Services>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], services.state().telemetry.text().await)
}
