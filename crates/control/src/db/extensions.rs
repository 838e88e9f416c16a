// SPDX-License-Identifier: Apache-2.0
//! Migrations of extensions, each in a schema of its own, with its own table of applied migrations.

use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::{migrate::Migrator, postgres::PgPoolOptions};

use super::{describe, options};

/// Time limit for connecting to the database.
const CONNECT: Duration = Duration::from_secs(10);

/// Migrations of an extension.
#[derive(Debug, Clone, Copy)]
pub struct Migrations {
    schema: &'static str,
    migrator: &'static Migrator,
}

impl Migrations {
    /// Creates the migrations of a schema, which they need not name; it is made if it is missing. What is applied is recorded in a
    /// table in it.
    pub const fn new(schema: &'static str, migrator: &'static Migrator) -> Self {
        Self { schema, migrator }
    }
}

/// Migrates the schema of an extension, which is made if it is missing; safe when run concurrently.
pub(crate) async fn migrate(
    database_url: &str,
    extension: &str,
    migrations: &Migrations,
) -> anyhow::Result<()> {
    let Migrations { schema, migrator } = *migrations;
    ensure!(
        is_schema(schema),
        "the extension {extension} cannot have the schema {schema:?}: name one of its own by small letters, digits and _"
    );
    let mut own = Migrator::with_migrations(migrator.iter().cloned().collect());
    own.dangerous_set_table_name(format!("{schema}._sqlx_migrations"));
    own.create_schema(schema);
    // So that its statements need not name the schema, and do not reach ours by mistake.
    let options = options(database_url)?.options([("search_path", schema)]);
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT).connect_lazy_with(options);
    let migrated = own.run(&pool).await;
    pool.close().await;
    migrated.with_context(|| {
        format!(
            "cannot migrate the schema {schema} of the extension {extension} in the database {}",
            describe(database_url)
        )
    })
}

/// Returns whether an extension may have a schema of this name: an identifier that needs no quotes, and none of PostgreSQL's or ours.
fn is_schema(name: &str) -> bool {
    let small = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let begins = name.bytes().next().is_some_and(small) && !name.starts_with("pg_");
    begins
        && name.len() < 64
        && name.bytes().all(|byte| small(byte) || byte.is_ascii_digit())
        && !["public", "information_schema"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::is_schema;

    #[test]
    fn an_extension_has_a_schema_of_its_own() {
        for name in ["enterprise", "billing_2", "_x"] {
            assert!(is_schema(name), "{name}");
        }
        for name in
            ["", "public", "pg_catalog", "information_schema", "2x", "A", "a; DROP TABLE teams", "a.b", "a-b"]
        {
            assert!(!is_schema(name), "{name}");
        }
    }
}
