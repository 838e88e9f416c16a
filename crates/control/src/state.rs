// SPDX-License-Identifier: Apache-2.0
//! State shared by all services and workers of a server.

use std::sync::Arc;

use anyhow::Context;
use sqlx::PgPool;
use tokio::sync::{Notify, RwLock};
use tokio_util::sync::CancellationToken;
use wrenn_context::Contexts;

use crate::{
    access::Access,
    admission::Admission,
    agents::Agents,
    attempts::Attempts,
    config::{BuildSettings, Config, Limits, Settings},
    db,
    deeds::Unwritten,
    event_store::EventStore,
    hooks::AllHooks,
    mail::Mailer,
    networks::Networks,
    passwords::Passwords,
    providers::Providers,
    public_url,
    receivers::Receivers,
    signatures::Signatures,
    telemetry::Telemetry,
    template_store::Transfers,
};

/// Shared state; cheap to clone.
pub(crate) type App = Arc<State>;

/// Parts of a server.
pub(crate) struct State {
    pub(crate) db: PgPool,
    /// A few connections for API keys and health checks only: both work while all other connections are in
    /// use.
    pub(crate) access_db: PgPool,
    pub(crate) events: Arc<EventStore>,
    pub(crate) agents: Agents,
    /// Who may do what.
    pub(crate) access: Access,
    /// Signatures of URLs of files.
    pub(crate) signatures: Signatures,
    /// Mail to users.
    pub(crate) mailer: Mailer,
    /// Hashes of passwords.
    pub(crate) passwords: Passwords,
    /// Limits on what can be guessed.
    pub(crate) attempts: Attempts,
    /// Providers of accounts with which users sign in.
    pub(crate) oauth: Providers,
    /// Reverse proxies that say the truth about where a request came from.
    pub(crate) trusted: Networks,
    /// Keys and connections of channels.
    pub(crate) channels: Receivers,
    pub(crate) limits: Limits,
    /// Settings of builds.
    pub(crate) builds: BuildSettings,
    /// The store of templates, and transfers of them between hosts.
    pub(crate) transfers: Transfers,
    /// Files that were uploaded for builds.
    pub(crate) contexts: Arc<Contexts>,
    /// Held to read while a build is asked for, so that its files are not removed before it is recorded.
    pub(crate) uploads: RwLock<()>,
    /// URL of a port of a sandbox, with `{port}` and `{id}`.
    pub(crate) port_url: String,
    /// Path of the server as browsers reach it, without a slash at its end.
    pub(crate) public_path: String,
    /// Limits on requests and their memory.
    pub(crate) admission: Admission,
    /// Records of the audit log that wait for the database.
    pub(crate) unwritten: Unwritten,
    /// Hooks of extensions.
    pub(crate) hooks: AllHooks,
    /// Notifies the relay of a new entry in the outbox.
    pub(crate) outbox: Notify,
    /// Notifies the cleanup of teams of one that was deleted.
    pub(crate) cleanups: Notify,
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
        (db, access_db): (PgPool, PgPool),
        events: EventStore,
        agents: Agents,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let events = Arc::new(events);
        let (limits, builds) = (settings.limits.clone(), settings.builds.clone());
        let dir = builds.contexts();
        let contexts = Contexts::open(&dir, wrenn_context::Limits::default()).with_context(|| {
            format!(
                "the directory {} for the files of builds cannot be used: make it and give it to the user of the server, or \
                 choose another one with server.build_context_dir",
                dir.display()
            )
        })?;
        Ok(Self {
            port_url: settings.proxy.url(),
            public_path: public_url::path(settings.mail.public_url.as_deref())?,
            access: Access::new(access_db.clone(), events.clone(), limits.key_check),
            signatures: Signatures::new(access_db.clone()),
            mailer: Mailer::new(&settings.mail)?,
            passwords: Passwords::default(),
            channels: Receivers::new(&settings.channels)?,
            attempts: Attempts::new(settings.mail.mails_per_hour),
            oauth: Providers::new(&settings.oauth, settings.mail.public_url.as_deref())?,
            trusted: settings.proxy.trusted()?,
            db,
            access_db,
            events,
            agents,
            admission: Admission::new(&limits),
            limits,
            builds,
            transfers: Transfers::new(&settings.templates)?,
            contexts: Arc::new(contexts),
            uploads: RwLock::new(()),
            unwritten: Unwritten::default(),
            hooks: AllHooks::default(),
            outbox: Notify::new(),
            cleanups: Notify::new(),
            telemetry: Telemetry::start()?,
            shutdown: CancellationToken::new(),
        })
    }
}
