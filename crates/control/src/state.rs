// SPDX-License-Identifier: Apache-2.0
//! State shared by all requests and workers of a server.

use std::sync::Arc;

use sqlx::PgPool;
use tokio::sync::Notify;

use crate::{
    admission::Admission, agents::Agents, auth::KeyCache, config::Limits, events::Events, figures::Figures,
};

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
    /// Limits on requests and their memory.
    pub(crate) admission: Admission,
    /// Notifies the relay of a new entry in the outbox.
    pub(crate) outbox: Notify,
    pub(crate) figures: Figures,
    /// Cancelled when the server stops; streams end then.
    pub(crate) shutdown: tokio_util::sync::CancellationToken,
}
