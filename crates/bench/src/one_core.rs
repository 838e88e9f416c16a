// SPDX-License-Identifier: Apache-2.0
//! Requests for a sandbox that a server answers on one thread, against a bare handler with one indexed query.

use std::{
    net::{SocketAddr, TcpListener},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use futures::future::try_join_all;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wrenn_control::Server;

use crate::{control_plane::ControlPlane, row::Row};

/// Connections that send requests.
const CONNECTIONS: usize = 16;
/// Rounds of each side, alternating, and how long one is.
const ROUNDS: usize = 4;
const ROUND: Duration = Duration::from_secs(3);
/// Time limit for a server to start.
const START: Duration = Duration::from_secs(60);

/// Measures both; the figure is how much longer a request takes.
pub(crate) async fn gets(plane: &ControlPlane) -> Result<Row> {
    let stop = CancellationToken::new();
    let _stopping = stop.clone().drop_guard();
    let ([listen, proxy, bare], database) = (free_addresses()?, plane.database_url());
    let server = Server::builder(plane.config(listen, proxy));
    on_one_thread("ours", {
        let stop = stop.clone();
        async move { server.build().await?.run(stop).await }
    })?;
    on_one_thread("bare", bare_server(bare, database, stop))?;
    let (id, client) = (plane.sandbox, reqwest::Client::builder().tcp_nodelay(true).build()?);
    let of_ours = client.get(format!("http://{listen}/v1/sandboxes/{id}")).header("x-api-key", &plane.key);
    let of_bare = client.get(format!("http://{bare}/{}", id.uuid()));
    for request in [&of_ours, &of_bare] {
        started(request).await?;
    }
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (of_floor, of_us) = (rate(&of_bare).await?, rate(&of_ours).await?);
        // The first round opens connections and warms caches.
        if round > 0 {
            floor.push(of_floor);
            ours.push(of_us);
        }
    }
    let median = |mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (ours, floor) = (median(ours), median(floor));
    let what =
        "requests for a sandbox per second on one core: a bare handler with one indexed query ÷ the API";
    Ok(Row { what, unit: "/s", ours, floor: Some(floor), figure: floor / ours, goal: 2.0, runs: ROUNDS })
}

fn free_addresses() -> Result<[SocketAddr; 3]> {
    let free = || TcpListener::bind("127.0.0.1:0");
    let all = [free()?, free()?, free()?];
    Ok([all[0].local_addr()?, all[1].local_addr()?, all[2].local_addr()?])
}

/// Runs a server on a thread of its own.
fn on_one_thread(
    name: &'static str,
    server: impl Future<Output = Result<()>> + Send + 'static,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        if let Err(error) = runtime.block_on(server) {
            eprintln!("bench: the server {name} failed: {error:?}");
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(run)?;
    Ok(())
}

async fn bare_server(listen: SocketAddr, database_url: String, stop: CancellationToken) -> Result<()> {
    let db = PgPoolOptions::new().max_connections(16).connect(&database_url).await?;
    let router = Router::new().route("/{id}", get(bare)).with_state(db);
    let listener = tokio::net::TcpListener::bind(listen).await?;
    Ok(axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await?)
}

async fn bare(State(db): State<PgPool>, Path(id): Path<Uuid>) -> Result<Json<Value>, StatusCode> {
    let query = "SELECT id, template, status, vcpus FROM sandboxes WHERE id = $1";
    let row = sqlx::query_as::<_, (Uuid, String, String, i32)>(query).bind(id).fetch_optional(&db).await;
    let (id, template, status, vcpus) =
        row.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?.ok_or(StatusCode::NOT_FOUND)?;
    Ok(Json(json!({"id": id, "template": template, "status": status, "vcpus": vcpus})))
}

/// Waits until a server answers.
async fn started(request: &reqwest::RequestBuilder) -> Result<()> {
    let begin = Instant::now();
    loop {
        match send(request).await {
            Ok(()) => return Ok(()),
            Err(error) if begin.elapsed() > START => return Err(error.context("a server has not started")),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Sends requests for a round, and returns how many were answered in a second.
async fn rate(request: &reqwest::RequestBuilder) -> Result<f64> {
    let (answered, begin) = (AtomicUsize::new(0), Instant::now());
    let one = async || {
        while begin.elapsed() < ROUND {
            send(request).await?;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    };
    try_join_all((0..CONNECTIONS).map(|_| one())).await?;
    Ok(answered.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64())
}

async fn send(request: &reqwest::RequestBuilder) -> Result<()> {
    let answer = request.try_clone().context("a body that cannot be repeated")?.send().await?;
    let status = answer.status();
    answer.bytes().await?;
    ensure!(status == 200, "status {status}");
    Ok(())
}
