//! Control plane as a library: the REST API, with PostgreSQL, Redis and the host agents.
//!
//! Servers are stateless: any number of them may run side by side. PostgreSQL stores the state, Redis the
//! events; the agents run the sandboxes.

pub mod agents;
mod auth;
mod config;
mod db;
mod error;
mod events;
mod extract;
mod fault;
mod relay;
mod routes;
mod sandboxes;
mod state;

pub use config::{AgentTls, Config, Limits};

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{ServiceExt, extract::Request, serve::ListenerExt as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use rand::Rng as _;
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
};
use tokio_util::sync::CancellationToken;
use wrenn_api::{ApiKeyId, HostId, TeamId};

use crate::{agents::Agents, auth::KeyCache, events::Events, state::State};

/// After a stop requests in work have this long.
const GRACE: Duration = Duration::from_secs(5);
/// Upper bounds of the buckets of request durations, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];

fn figures() -> anyhow::Result<PrometheusHandle> {
    let recorder = PrometheusBuilder::new().set_buckets(&BUCKETS)?.build_recorder();
    let handle = recorder.handle();
    // A second server in one process writes to the first one's figures.
    let _ = metrics::set_global_recorder(recorder);
    Ok(handle)
}

/// Runs migrations, then serves the API until `shutdown` is cancelled.
pub async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    db::migrate(&config.database_url).await?;
    let db = db::pool(&config.database_url, config.limits.database)?;
    db::fleet::raise(&db, Duration::ZERO).await.context("the database does not answer")?;
    let app = Arc::new(State {
        db,
        access: db::access_pool(&config.database_url, config.limits.database)?,
        events: Events::new(&config.redis_url).context("REDIS_URL is not a Redis URL")?,
        agents: Agents::new(&config.agent_tls)?,
        keys: KeyCache::default(),
        requests: Arc::new(Semaphore::new(config.limits.concurrent_requests)),
        streams: Arc::new(Semaphore::new(config.limits.event_streams)),
        limits: config.limits,
        outbox: Notify::new(),
        metrics: figures()?,
        shutdown: shutdown.clone(),
    });
    let address = config.listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| {
            format!("{address} cannot be listened on: choose another address with server.listen")
        })?
        .tap_io(|stream| {
            // Small frames are sent at once; without it the kernel just waits for more.
            let _ = stream.set_nodelay(true);
        });
    let workers = [
        tokio::spawn(relay::run(app.clone())),
        tokio::spawn(sandboxes::reconcile::run(app.clone())),
        tokio::spawn(upkeep(app.metrics.clone())),
    ];
    tracing::info!(%address, "the control plane serves");
    let service = ServiceExt::<Request>::into_make_service(routes::service(&app));
    let stop = shutdown.clone();
    let serving =
        axum::serve(listener, service).with_graceful_shutdown(async move { stop.cancelled().await });
    tokio::select! {
        result = serving.into_future() => result.context("the listener failed")?,
        () = async { shutdown.cancelled().await; tokio::time::sleep(GRACE).await } => {}
    }
    for worker in workers {
        worker.abort();
    }
    Ok(())
}

/// Keeps the figures small.
async fn upkeep(figures: PrometheusHandle) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        figures.run_upkeep();
    }
}

/// Brings the database to this version's schema; safe when several do so at once.
pub async fn migrate(database_url: &str) -> anyhow::Result<()> {
    db::migrate(database_url).await
}

/// Returns the random letters and digits of an API key, 165 bits.
fn secret() -> String {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rng = rand::rng();
    let digits = (0..32).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    format!("wrn_{}", digits.collect::<String>())
}

/// Creates a team if the database has none, and returns a new API key for it, unless `present_key` is valid.
pub async fn ensure_api_key(database_url: &str, present_key: Option<&str>) -> anyhow::Result<String> {
    let db = db::pool(database_url, Limits::default().database)?;
    if let Some(present) = present_key
        && db::keys::find(&db, &auth::hash(present)).await?.is_some()
    {
        return Ok(present.to_owned());
    }
    let team = db::keys::first_team(&db, TeamId::new().uuid(), "default").await?;
    let key = secret();
    db::keys::insert(&db, ApiKeyId::new().uuid(), team, "wrenn up", &key[..8], &auth::hash(&key)).await?;
    Ok(key)
}

/// Registers the host with this address.
pub async fn ensure_host(database_url: &str, host: HostId, address: SocketAddr) -> anyhow::Result<()> {
    let db = db::pool(database_url, Limits::default().database)?;
    db::hosts::register(&db, host.uuid(), &address.to_string()).await.context("the host cannot be registered")
}

/// Records that a host was emptied on purpose, as by `wrenn down`: its sandboxes are stopped, not missing.
pub async fn host_emptied(database_url: &str, host: HostId) -> anyhow::Result<()> {
    let db = db::pool(database_url, Limits::default().database)?;
    for row in db::sandboxes::not_stopped(&db, host.uuid()).await? {
        db::sandboxes::change(&db, &row, db::sandboxes::Change::to(wrenn_api::SandboxStatus::Stopped))
            .await?;
    }
    Ok(())
}

/// Says which database a URL names: host, database and user, without the password.
pub fn describe_database(database_url: &str) -> String {
    db::describe(database_url)
}

/// The OpenAPI 3.1 document in YAML.
pub fn openapi_yaml() -> String {
    routes::document().to_yaml().unwrap_or_default()
}

/// The OpenAPI 3.1 document in JSON.
pub fn openapi_json() -> String {
    routes::document().to_pretty_json().unwrap_or_default()
}
