// SPDX-License-Identifier: Apache-2.0
//! State shared by all services and workers of a server.

use std::sync::Arc;

use anyhow::Context;
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Admission,
    agents::Agents,
    config::{Config, Limits, Settings},
    db,
    event_store::EventStore,
    keys::Keys,
    signatures::Signatures,
    telemetry::Telemetry,
};

/// Shared state; cheap to clone.
pub(crate) type App = Arc<State>;

/// Parts of a server.
pub(crate) struct State {
    pub(crate) db: PgPool,
    /// A few connections for API keys and health checks only: both work while all other connections are in
    /// use.
    pub(crate) access: PgPool,
    pub(crate) events: EventStore,
    pub(crate) agents: Agents,
    pub(crate) keys: Keys,
    /// Signatures of URLs of files.
    pub(crate) signatures: Signatures,
    pub(crate) limits: Limits,
    /// URL of a port of a sandbox, with `{port}` and `{id}`.
    pub(crate) port_url: String,
    /// Limits on requests and their memory.
    pub(crate) admission: Admission,
    /// Notifies the relay of a new entry in the outbox.
    pub(crate) outbox: Notify,
    pub(crate) telemetry: Telemetry,
    /// Cancelled when the server stops; streams end then.
    pub(crate) shutdown: CancellationToken,
}

impl State {
    /// Creates the state. Connections are opened on first use.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let pools = (
            db::pool(&config.database_url, config.settings.limits.database)?,
            db::access_pool(&config.database_url, config.settings.limits.database)?,
        );
        let events = EventStore::new(&config.redis_url).context("REDIS_URL is not a Redis URL")?;
        Self::of(pools, events, Agents::new(&config.agent_tls)?, &config.settings)
    }

    /// Creates the state from its pools (for everything, and for keys and health checks) and clients.
    pub(crate) fn of(
        (db, access): (PgPool, PgPool),
        events: EventStore,
        agents: Agents,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let limits = settings.limits.clone();
        Ok(Self {
            port_url: settings.proxy.url(),
            keys: Keys::new(access.clone(), limits.key_check),
            signatures: Signatures::new(access.clone()),
            db,
            access,
            events,
            agents,
            admission: Admission::new(&limits),
            limits,
            outbox: Notify::new(),
            telemetry: Telemetry::start()?,
            shutdown: CancellationToken::new(),
        })
    }
}
