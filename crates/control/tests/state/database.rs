// SPDX-License-Identifier: Apache-2.0
//! Cases of the database itself: foreign tables, and time limits.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use wrenn_control::{Admin, Limits};

use crate::{fixture::Fixture, stores::Stores};

/// Query for the tables of a database.
const TABLES: &str =
    "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'";

/// The database of another program is rejected before anything is created in it, even if that program uses
/// the same library.
pub(crate) async fn a_foreign_database_is_refused(stores: &Arc<Stores>, name: &str) -> Result<()> {
    stores.create(name).await?;
    let url = stores.database_url(name);
    let foreign = [
        ("CREATE TABLE orders (id integer)", "orders"),
        (
            "CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, description text NOT NULL, installed_on timestamptz
                 NOT NULL DEFAULT now(), success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL);
             INSERT INTO _sqlx_migrations VALUES (1, 'orders', now(), true, 'x', 1)",
            "_sqlx_migrations orders",
        ),
    ];
    for (statement, tables) in foreign {
        stores.execute(name, statement).await?;
        let error = Admin::new(&url)?.migrate().await.err().context("it was taken")?;
        let text = format!("{error:#}");
        for part in [name, "as user wrenn", "orders", "an empty database", "/tmp/"] {
            ensure!(text.contains(part), "{part:?} is missing: {text}");
        }
        ensure!(!text.contains("secret"), "the password is told: {text}");
        ensure!(stores.column(name, TABLES).await? == [tables], "something was made");
    }
    stores.execute(name, "DROP TABLE orders, _sqlx_migrations; CREATE EXTENSION pg_trgm").await.or_else(
        |_| {
            // The extension is in a package of its own on some systems.
            Ok::<(), anyhow::Error>(())
        },
    )?;
    stores.execute(name, "DROP TABLE IF EXISTS orders, _sqlx_migrations").await?;
    for _ in 0..2 {
        Admin::new(&url)?.migrate().await?;
    }
    let away = Admin::new(&stores.database_url("nowhere"))?.migrate().await.err().context("it was made")?;
    ensure!(format!("{away:#}").contains("\"nowhere\" does not exist"), "{away:#}");
    Ok(())
}

/// While a lock is held, requests that need it fail in time, and health checks still work.
pub(crate) async fn a_statement_that_waits_is_ended_and_probes_are_answered_meanwhile(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut limits = Limits::default();
    limits.database = Duration::from_secs(4);
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    let mut connection = stores.connect(name).await?;
    let mut lock = sqlx::Connection::begin(&mut connection).await?;
    sqlx::query("LOCK TABLE sandboxes IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await?;
    let waiting = join_all((0..40).map(|_| fixture.api.get("/v1/sandboxes")));
    let probe = async {
        fixture
            .wait_value(
                "SELECT (count(*) > 10)::text FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
                "true",
            )
            .await?;
        fixture.api.get("/health").await?.expect(200)?;
        // A key that is not cached.
        fixture.api.with_key("wrn_wrong").get("/v1/sandboxes").await?.expect(401)
    };
    let (replies, probe) = tokio::join!(waiting, probe);
    lock.rollback().await?;
    probe.context("while all connections wait")?;
    for reply in replies {
        reply?.expect_error(503, "service_unavailable")?;
    }
    fixture.stop().await
}
