// SPDX-License-Identifier: Apache-2.0
//! Fleet of the database, and its epoch, by which hosts detect a database that was restored or exchanged.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

/// Fleet and epoch, as sent to hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fleet {
    pub(crate) id: Uuid,
    pub(crate) epoch: i64,
}

/// Returns the current fleet of the database.
pub(crate) async fn current(db: &PgPool) -> sqlx::Result<Fleet> {
    sqlx::query_as!(Fleet, "SELECT id, epoch FROM fleet").fetch_one(db).await
}

/// Raises the epoch if the last raise is older than `age`. Not while a host of the fleet has quarantined this
/// database: an outdated database must not catch up by being used.
pub(crate) async fn raise(db: &PgPool, age: Duration) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE fleet SET epoch = epoch + 1, raised_at = now()
         WHERE raised_at <= now() - make_interval(secs => $1)
             AND NOT EXISTS (SELECT 1 FROM hosts WHERE quarantine <> '' AND kind = 'regular')",
        age.as_secs_f64()
    )
    .execute(db)
    .await
    .map(drop)
}
