//! PostgreSQL, the source of truth. Every statement is checked against the schema at compile time.

pub(crate) mod hosts;
pub(crate) mod idempotency;
pub(crate) mod keys;
pub(crate) mod outbox;
pub(crate) mod sandboxes;

use std::{str::FromStr, time::Duration};

use anyhow::Context;
use sqlx::{
    ConnectOptions, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// Connections of one server.
const CONNECTIONS: u32 = 20;
/// Number of these that are reserved for API keys and health checks.
const ACCESS_CONNECTIONS: u32 = 4;
/// Time limit for getting a connection, after which the request fails.
const ACQUIRE: Duration = Duration::from_secs(3);

/// A pool; connects when it is used first.
pub(crate) fn pool(database_url: &str) -> anyhow::Result<PgPool> {
    sized(database_url, CONNECTIONS - ACCESS_CONNECTIONS)
}

/// The pool for API keys and probes.
pub(crate) fn access_pool(database_url: &str) -> anyhow::Result<PgPool> {
    sized(database_url, ACCESS_CONNECTIONS)
}

fn sized(database_url: &str, connections: u32) -> anyhow::Result<PgPool> {
    let options = PgConnectOptions::from_str(database_url)
        .context("DATABASE_URL is not a PostgreSQL URL")?
        .application_name("wrenn")
        .log_slow_statements(log::LevelFilter::Warn, Duration::from_secs(1));
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE)
        .idle_timeout(Duration::from_secs(300))
        .connect_lazy_with(options))
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

/// Brings the schema up to date, one server at a time.
pub(crate) async fn migrate(pool: &PgPool) -> anyhow::Result<()> {
    MIGRATIONS.run(pool).await.context("the database cannot be migrated: is it reachable, and ours?")
}

#[cfg(test)]
mod tests {
    use super::describe;

    #[test]
    fn a_database_is_described_without_its_password() {
        let text = describe("postgres://shop:hunter2@db.example:6543/orders");
        assert_eq!(text, "orders at db.example:6543 as user shop");
        assert_eq!(describe("postgres://wrenn@%2Frun%2Fpg/x"), "x at /run/pg as user wrenn");
        assert!(!describe("postgres://a:hunter2@[").contains("hunter2"));
    }
}
