// SPDX-License-Identifier: Apache-2.0
//! Control plane as a library: the REST API, with PostgreSQL, Redis and the host agents.
//!
//! Servers are stateless: any number of them may run side by side. PostgreSQL stores the state, Redis the
//! events; the agents run the sandboxes.

mod admission;
pub mod agents;
mod auth;
mod config;
mod db;
mod error;
mod events;
mod extract;
mod fault;
mod figures;
mod relay;
mod routes;
mod sandboxes;
mod serving;
mod state;
#[cfg(test)]
mod testing;
mod trail;
mod workers;

pub use config::{AgentTls, Config, Limits};

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use rand::Rng as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;
use wrenn_api::{ApiKeyId, HostId, TeamId};

use crate::{
    admission::Admission, agents::Agents, auth::KeyCache, events::Events, figures::Figures, state::State,
};

/// Time limit for receiving the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Idle time after which a connection without requests is closed.
const IDLE: Duration = Duration::from_secs(60);

/// Raises the limit of open files to the maximum: each connection of a client needs one, each stream another.
fn allow_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Runs migrations, then serves the API until `shutdown` is cancelled.
pub async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    allow_open_files();
    db::migrate(&config.database_url).await?;
    let db = db::pool(&config.database_url, config.limits.database)?;
    db::fleet::raise(&db, Duration::ZERO).await.context("the database does not answer")?;
    let bounds = serving::Bounds {
        connections: config.limits.connections,
        per_address: config.limits.connections_per_address,
        head: HEAD,
        idle: IDLE,
        stall: routes::STILL,
        linger: serving::LINGER,
    };
    let app = Arc::new(State {
        db,
        access: db::access_pool(&config.database_url, config.limits.database)?,
        events: Events::new(&config.redis_url).context("REDIS_URL is not a Redis URL")?,
        agents: Agents::new(&config.agent_tls)?,
        keys: KeyCache::default(),
        admission: Admission::new(&config.limits),
        limits: config.limits,
        outbox: Notify::new(),
        figures: Figures::start()?,
        shutdown: shutdown.clone(),
    });
    let address = config.listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: choose another address with server.listen"))?;
    let workers = workers::start(&app);
    tracing::info!(%address, "the control plane listens");
    serving::serve(listener, routes::service(&app), bounds, shutdown).await;
    drop(workers);
    Ok(())
}

/// Migrates the database to this version's schema; safe when run concurrently.
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

/// Describes the database of a URL: host, database and user, without the password.
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
