// SPDX-License-Identifier: Apache-2.0
//! Health and metrics of the control plane.

use std::time::Duration;

use axum::{Json, extract::State, response::IntoResponse};
use http::{StatusCode, header};
use wrenn_api::{DriverHealth, Health};

use crate::{db::hosts, state::App};

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
pub(super) async fn health(State(app): State<App>) -> (StatusCode, Json<Health>) {
    let database = async { hosts::online(&app.access).await.ok() };
    let events = async { app.events.ping().await.is_ok() };
    let looked = tokio::time::timeout(LOOK, futures::future::join(database, events)).await;
    let (hosts, events) = looked.unwrap_or((None, false));
    let well = hosts.is_some() && events;
    let drivers: Vec<DriverHealth> = hosts.unwrap_or_default().into_iter().map(driver).collect();
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = if well { "ok" } else { "degraded" };
    let health = Health {
        status: text.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hosts_online: drivers.iter().map(|driver| driver.hosts).sum(),
        drivers,
        max_upload_bytes: Some(app.limits.upload_body as u64),
    };
    (status, Json(health))
}

fn driver(online: hosts::Online) -> DriverHealth {
    let hosts::Online { driver, security_boundary, hosts } = online;
    DriverHealth { driver, security_boundary, hosts: hosts.try_into().unwrap_or_default() }
}

/// Get metrics in the text format of Prometheus.
#[utoipa::path(
    get, path = "/metrics", operation_id = "getMetrics", tag = "service",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain",
        example = json!("# TYPE wrenn_sandboxes gauge\nwrenn_sandboxes{status=\"running\"} 3\n")))
)]
pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.figures.text().await)
}
