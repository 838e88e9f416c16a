// SPDX-License-Identifier: Apache-2.0
//! Administration of a database by who runs Wrenn, without a server: `wrenn up` and `wrenn down` use it. Its
//! errors have their whole cause, because they are not for clients.

use std::net::SocketAddr;

use anyhow::Context;
use rand::{Rng as _, RngCore as _};
use sqlx::PgPool;
use wrenn_api::{ApiKeyId, HostId, SandboxStatus, TeamId};

use crate::{
    config::Limits,
    db::{
        self, hosts, keys,
        sandboxes::{self, Change},
        signing_keys,
    },
    keys::hash,
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
    /// `present_key` is valid.
    pub async fn ensure_api_key(&self, present_key: Option<&str>) -> anyhow::Result<String> {
        if let Some(present) = present_key
            && keys::find(&self.db, &hash(present)).await?.is_some()
        {
            return Ok(present.to_owned());
        }
        let team = keys::first_team(&self.db, TeamId::new().uuid(), "default").await?;
        let key = secret();
        keys::insert(&self.db, ApiKeyId::new().uuid(), team, "wrenn up", &key[..8], &hash(&key)).await?;
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
            let stopped = Change::to(SandboxStatus::Stopped);
            sandboxes::change(&self.db, &row, stopped, Limits::default().lease).await?;
        }
        Ok(())
    }
}

/// Describes the database of a URL: host, database and user, without the password.
pub fn describe_database(database_url: &str) -> String {
    db::describe(database_url)
}

/// Returns the random letters and digits of an API key, 165 bits.
fn secret() -> String {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rng = rand::rng();
    let digits = (0..32).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    format!("wrn_{}", digits.collect::<String>())
}
