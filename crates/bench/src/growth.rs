// SPDX-License-Identifier: Apache-2.0
//! How the time in the database of a list, a get and a create grows with the number of sandboxes there.

use std::time::Duration;

use anyhow::{Result, ensure};
use axum::body::{Body, to_bytes};
use http::{Method, Request};
use tower::ServiceExt as _;
use wrenn_control::{HttpService, Server};

use crate::{control_plane::ControlPlane, row::Row};

/// Sandboxes of all teams: there are 100 before, and afterwards so many.
const MANY: usize = 10_000;
/// Number of requests of each kind.
const LOOKS: usize = 300;
const CREATES: usize = 30;
/// Time after which PostgreSQL has counted what its idle processes did.
const COUNTED: Duration = Duration::from_secs(11);
/// Largest growth.
const GOAL: f64 = 1.2;
/// Milliseconds that PostgreSQL has spent on statements.
const ACTIVE: &str = "SELECT active_time FROM pg_stat_database WHERE datname = current_database()";

/// Times of a request in the database, in milliseconds.
struct Times {
    list: f64,
    get: f64,
    create: f64,
}

/// Measures with few and with many sandboxes; the team that asks has 100 of them in both.
pub(crate) async fn of_database_time(plane: &ControlPlane) -> Result<Vec<Row>> {
    // No worker runs, so that the statements of the requests are the only ones.
    let config = plane.config(([127, 0, 0, 1], 0).into(), ([127, 0, 0, 1], 0).into());
    let service = Server::builder(config).build().await?.router();
    let few = measure(plane, &service).await?;
    plane.fill(MANY).await?;
    let many = measure(plane, &service).await?;
    let row = |what, ours: f64, floor: f64, runs| Row {
        what,
        unit: "ms",
        ours,
        floor: Some(floor),
        figure: ours / floor,
        goal: GOAL,
        runs,
    };
    Ok(vec![
        row("list in the database: 10,000 sandboxes of 100 teams ÷ 100", many.list, few.list, LOOKS),
        row("get in the database: the same", many.get, few.get, LOOKS),
        row("create in the database, until its host is asked: the same", many.create, few.create, CREATES),
    ])
}

async fn measure(plane: &ControlPlane, service: &HttpService) -> Result<Times> {
    let one = format!("/v1/sandboxes/{}", plane.sandbox);
    let list = async || ask(plane, service, Method::GET, "/v1/sandboxes?limit=50", 200).await;
    let get = async || ask(plane, service, Method::GET, &one, 200).await;
    let create = async || {
        // Otherwise it would be left out after some creates.
        plane.run("UPDATE hosts SET failed_creates = 0, ejected_until = NULL, status = 'online'").await?;
        ask(plane, service, Method::POST, "/v1/sandboxes", 503).await
    };
    for _ in 0..10 {
        list().await?;
        get().await?;
    }
    create().await?;
    Ok(Times {
        list: database_time(plane, LOOKS, list).await?,
        get: database_time(plane, LOOKS, get).await?,
        create: database_time(plane, CREATES, create).await?,
    })
}

/// Time in the database of one of these requests.
async fn database_time(
    plane: &ControlPlane,
    runs: usize,
    request: impl AsyncFn() -> Result<()>,
) -> Result<f64> {
    let active = async || {
        tokio::time::sleep(COUNTED).await;
        plane.number(ACTIVE).await
    };
    let before = active().await?;
    for _ in 0..runs {
        request().await?;
    }
    Ok((active().await? - before) / runs as f64)
}

async fn ask(
    plane: &ControlPlane,
    service: &HttpService,
    method: Method,
    path: &str,
    expected: u16,
) -> Result<()> {
    let request = Request::builder().method(&method).uri(path).header("x-api-key", &plane.key);
    let request = if method == Method::POST {
        request.header("content-type", "application/json").body(Body::from(r#"{"memory_mb": 256}"#))?
    } else {
        request.body(Body::empty())?
    };
    let Ok(response) = service.clone().oneshot(request).await;
    let status = response.status();
    let body = to_bytes(response.into_body(), 4 << 20).await?;
    ensure!(status == expected, "{path}: {status}: {}", String::from_utf8_lossy(&body));
    Ok(())
}
