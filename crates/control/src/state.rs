//! State shared by all requests and workers of a server.

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::PgPool;
use tokio::sync::{Notify, Semaphore};

use crate::{agents::Agents, auth::KeyCache, config::Limits, events::Events};

/// Shared state; cheap to clone.
pub(crate) type App = Arc<State>;

/// Parts of a server.
pub(crate) struct State {
    pub(crate) db: PgPool,
    /// A few connections for API keys and health checks only: both work while all other connections are in
    /// use.
    pub(crate) access: PgPool,
    pub(crate) events: Events,
    pub(crate) agents: Agents,
    pub(crate) keys: KeyCache,
    pub(crate) limits: Limits,
    /// One permit per request in work.
    pub(crate) requests: Arc<Semaphore>,
    /// One permit per event stream.
    pub(crate) streams: Arc<Semaphore>,
    /// Something was written to the outbox.
    pub(crate) outbox: Notify,
    pub(crate) metrics: PrometheusHandle,
    /// Cancelled when the server stops: streams end then.
    pub(crate) shutdown: tokio_util::sync::CancellationToken,
}
