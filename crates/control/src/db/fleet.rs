//! The fleet that the database speaks for, and its epoch: by both, hosts notice a database that was restored or exchanged.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

/// What hosts are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fleet {
    pub(crate) id: Uuid,
    pub(crate) epoch: i64,
}

/// The fleet, as it is in the database now.
pub(crate) async fn current(db: &PgPool) -> sqlx::Result<Fleet> {
    sqlx::query_as!(Fleet, "SELECT id, epoch FROM fleet").fetch_one(db).await
}

/// Raises the epoch if that was done last before `age`. Not while a host of the fleet has quarantined this database: a
/// database that is behind must not catch up by being used.
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
