// SPDX-License-Identifier: Apache-2.0
//! Administration of a database by who runs Wrenn, without a server: `wrenn up` and `wrenn down` use it. Its
//! errors have their whole cause, because they are not for clients.

mod team_keys;
mod users;

pub use users::SignInLink;

use std::net::SocketAddr;

use anyhow::Context;
use rand::RngCore as _;
use sqlx::PgPool;
use wrenn_api::{ApiKeyId, HostId, SandboxStatus, TeamId};

use crate::{
    by::By,
    config::Limits,
    db::{
        self, hosts, keys,
        sandboxes::{self, Change},
        signing_keys,
    },
    secrets::{hash, hash_of_key, new_key, shown},
    signatures::LONGEST,
};

/// Database of a control plane.
pub struct Admin {
    database_url: String,
    db: PgPool,
}

impl Admin {
    /// Prepares the use of a database, which is connected to on first use.
    pub fn new(database_url: &str) -> anyhow::Result<Self> {
        let db = db::pool(database_url, Limits::default().database)?;
        Ok(Self { database_url: database_url.to_owned(), db })
    }

    /// Migrates the database to this version's schema; safe when run concurrently.
    pub async fn migrate(&self) -> anyhow::Result<()> {
        db::migrate(&self.database_url).await
    }

    /// Creates a team if the database has none, and returns a new API key for the oldest team, unless
    /// `present_key` is valid. With the new key one administers the platform, too.
    pub async fn ensure_api_key(&self, present_key: Option<&str>) -> anyhow::Result<String> {
        if let Some(present) = present_key
            && keys::find(&self.db, &hash_of_key(present)).await?.is_some()
        {
            return Ok(present.to_owned());
        }
        let team = keys::first_team(&self.db, TeamId::new().uuid(), "default").await?;
        let key = new_key();
        keys::insert_admin(&self.db, ApiKeyId::new().uuid(), team, "wrenn up", shown(&key), &hash(&key))
            .await?;
        Ok(key)
    }

    /// Replaces the key with which URLs of files are signed. Those that were signed before stay valid, or with `revoke` are not
    /// any more.
    pub async fn rotate_signing_key(&self, revoke: bool) -> anyhow::Result<()> {
        let mut secret = [0_u8; 32];
        rand::rng().fill_bytes(&mut secret);
        let kept = if revoke { 0.0 } else { LONGEST.as_secs_f64() };
        signing_keys::rotate(&self.db, &secret, kept).await.context("the key cannot be replaced")
    }

    /// Registers the host with this address.
    pub async fn ensure_host(&self, host: HostId, address: SocketAddr) -> anyhow::Result<()> {
        let registered = hosts::register(&self.db, host.uuid(), &address.to_string()).await;
        registered.context("the host cannot be registered")
    }

    /// Records that a host was emptied on purpose, as by `wrenn down`: its sandboxes are stopped, not missing.
    pub async fn host_emptied(&self, host: HostId) -> anyhow::Result<()> {
        for row in sandboxes::not_stopped(&self.db, host.uuid()).await? {
            let stopped = Change::to(SandboxStatus::Stopped).by(By::OPERATOR);
            sandboxes::change(&self.db, &row, stopped, Limits::default().lease).await?;
        }
        Ok(())
    }
}

/// Describes the database of a URL: host, database and user, without the password.
pub fn describe_database(database_url: &str) -> String {
    db::describe(database_url)
}
