// SPDX-License-Identifier: Apache-2.0
//! Migrations of the schema, in a database that is empty or belongs to Wrenn.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, ensure};
use sqlx::{Connection as _, PgConnection, Row as _, postgres::PgPoolOptions};
use tokio::time::timeout;

use super::{describe, options};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// Time limit for connecting to the database.
const CONNECT: Duration = Duration::from_secs(10);
/// Table in which sqlx records the applied migrations. Other programs have a table of this name, too.
const HISTORY: &str = "_sqlx_migrations";
/// Maximum number of foreign tables in an error message.
const NAMED: usize = 5;

/// Migrates the schema, under a lock against other servers. Rejects a database with tables of another program
/// before changing it.
pub(crate) async fn migrate(database_url: &str) -> anyhow::Result<()> {
    let options = options(database_url)?;
    let place = describe(database_url);
    let work = async {
        // Not from the pool, whose errors do not have the cause of a failed connection.
        let mut connection = timeout(CONNECT, PgConnection::connect_with(&options))
            .await
            .with_context(|| format!("no answer within {} s", CONNECT.as_secs()))??;
        refuse_foreign(&mut connection).await?;
        connection.close().await?;
        // A migration may take longer than any other statement.
        let pool =
            PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT).connect_lazy_with(options);
        MIGRATIONS.run(&pool).await?;
        pool.close().await;
        anyhow::Ok(())
    };
    work.await.with_context(|| {
        format!(
            "cannot migrate the database {place}. Check that it is reachable and belongs to Wrenn (database_url)"
        )
    })
}

/// Fails if the database has tables, but not the migration history of Wrenn.
async fn refuse_foreign(connection: &mut PgConnection) -> anyhow::Result<()> {
    let tables = tables(connection).await?;
    let names: BTreeSet<&str> = tables.iter().map(String::as_str).collect();
    if names.is_empty() || (names.contains(HISTORY) && is_ours(connection, names.len() == 1).await?) {
        return Ok(());
    }
    let named: Vec<&str> = names.iter().copied().take(NAMED).collect();
    let more = if names.len() > NAMED { ", …" } else { "" };
    ensure!(
        false,
        "it has tables of another program ({}{more}), so nothing was changed in it: give Wrenn an empty database of its own",
        named.join(", ")
    );
    Ok(())
}

/// Returns all tables but those of PostgreSQL itself and of its extensions.
async fn tables(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"SELECT c.relname::text AS "name!" FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\_%'
             AND NOT EXISTS (SELECT 1 FROM pg_depend d
                 WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')"#
    )
    .fetch_all(connection)
    .await
}

/// Returns whether the history starts with Wrenn's first migration, or is empty and `alone` in the database,
/// as while the first migration runs.
async fn is_ours(connection: &mut PgConnection, alone: bool) -> anyhow::Result<bool> {
    let first = MIGRATIONS.iter().next().context("there are no migrations")?;
    // Not checked at compile time: the table is not part of our schema.
    let history = sqlx::query("SELECT version, description FROM _sqlx_migrations ORDER BY version LIMIT 1")
        .fetch_optional(connection)
        .await?;
    let Some(history) = history else { return Ok(alone) };
    let (version, description): (i64, String) = (history.try_get(0)?, history.try_get(1)?);
    Ok(version == first.version && description == first.description)
}
