// SPDX-License-Identifier: Apache-2.0
//! PostgreSQL, the source of truth. Every statement is checked against the schema at compile time.

pub(crate) mod accounts;
pub(crate) mod actors;
pub(crate) mod audit;
pub(crate) mod build_logs;
pub(crate) mod builds;
pub(crate) mod channels;
pub(crate) mod copies;
pub(crate) mod deliveries;
pub(crate) mod delivery_log;
pub(crate) mod extensions;
pub(crate) mod fleet;
pub(crate) mod hosts;
pub(crate) mod idempotency;
pub(crate) mod images;
pub(crate) mod invitations;
pub(crate) mod keys;
pub(crate) mod layers;
pub(crate) mod links;
pub(crate) mod mails;
pub(crate) mod members;
pub(crate) mod metrics;
mod migrations;
pub(crate) mod oauth;
pub(crate) mod outbox;
pub(crate) mod platform;
pub(crate) mod quotas;
pub(crate) mod sandboxes;
pub(crate) mod sessions;
pub(crate) mod signing_keys;
pub(crate) mod snapshots;
pub(crate) mod stored;
pub(crate) mod teams;
pub(crate) mod templates;
pub(crate) mod tickets;
pub(crate) mod uploaded_images;
pub(crate) mod usage;

pub(crate) use migrations::migrate;

use std::{str::FromStr, time::Duration};

use anyhow::Context;
use sqlx::{
    ConnectOptions, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// Maximum number of connections of one server.
const CONNECTIONS: u32 = 20;
/// Number of these that are reserved for API keys and health checks.
const ACCESS_CONNECTIONS: u32 = 4;
/// Time limit for getting a connection, after which the request fails.
const ACQUIRE: Duration = Duration::from_secs(3);

/// Creates a pool, which connects on first use. PostgreSQL cancels a statement after `limit`, and one that
/// waits for a lock after half of it.
pub(crate) fn pool(database_url: &str, limit: Duration) -> anyhow::Result<PgPool> {
    sized(database_url, CONNECTIONS - ACCESS_CONNECTIONS, limit)
}

/// Creates the pool for API keys and health checks.
pub(crate) fn access_pool(database_url: &str, limit: Duration) -> anyhow::Result<PgPool> {
    sized(database_url, ACCESS_CONNECTIONS, limit)
}

/// Parses a database URL.
fn options(database_url: &str) -> anyhow::Result<PgConnectOptions> {
    // The URL contains a password, so no message quotes it.
    let options =
        PgConnectOptions::from_str(database_url).context("the database URL is not a PostgreSQL URL")?;
    Ok(options.application_name("wrenn").log_slow_statements(log::LevelFilter::Warn, Duration::from_secs(1)))
}

fn sized(database_url: &str, connections: u32, limit: Duration) -> anyhow::Result<PgPool> {
    let millis = |limit: Duration| limit.as_millis().max(1).to_string();
    let (statement, lock) = (millis(limit), millis(limit / 2));
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE)
        .idle_timeout(Duration::from_secs(300))
        .after_connect(move |connection, _| {
            let (statement, lock) = (statement.clone(), lock.clone());
            Box::pin(async move {
                sqlx::query!(
                    "SELECT set_config('statement_timeout', $1, false) AS statement,
                        set_config('lock_timeout', $2, false) AS lock,
                        set_config('idle_in_transaction_session_timeout', $1, false) AS idle",
                    statement,
                    lock
                )
                .fetch_one(connection)
                .await
                .map(drop)
            })
        })
        .connect_lazy_with(options(database_url)?))
}

/// Host, database and user of a database URL, without the password.
pub(crate) fn describe(database_url: &str) -> String {
    let Ok(options) = PgConnectOptions::from_str(database_url) else {
        return "a URL that cannot be read".to_owned();
    };
    let host = options.get_socket().map_or_else(
        || format!("{}:{}", options.get_host(), options.get_port()),
        |socket| socket.display().to_string(),
    );
    let (user, database) = (options.get_username(), options.get_database());
    format!("{} at {host} as user {user}", database.unwrap_or(user))
}

#[cfg(test)]
mod tests {
    use super::describe;
    use crate::testing::sources;

    /// A column that a migration adds would change the result of statements that older servers have prepared.
    #[test]
    fn statements_name_their_columns() {
        for (file, text) in sources() {
            for before in ["SELECT", "RETURNING"] {
                let all = text.split(before).skip(1).any(|rest| rest.trim_start().starts_with('*'));
                assert!(!all, "{file}: a statement takes all columns: name them");
            }
        }
    }

    #[test]
    fn a_database_is_described_without_its_password() {
        let text = describe("postgres://shop:hunter2@db.example:6543/orders");
        assert_eq!(text, "orders at db.example:6543 as user shop");
        assert_eq!(describe("postgres://wrenn@%2Frun%2Fpg/x"), "x at /run/pg as user wrenn");
        assert!(!describe("postgres://a:hunter2@[").contains("hunter2"));
    }
}
