// SPDX-License-Identifier: Apache-2.0
//! Named snapshots of sandboxes.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::Snapshot;

use super::idempotency;

/// One row of the table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) host_id: Uuid,
    status: String,
    pub(crate) template: String,
    pub(crate) vcpus: i32,
    pub(crate) memory_mb: i32,
    pub(crate) disk_size_mb: i32,
    pub(crate) created_at: DateTime<Utc>,
}

/// State of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It is being made.
    Creating,
    Ready,
    /// It was deleted, or could not be made, and something of it may be left.
    Deleting,
}

impl Row {
    /// Returns the state.
    pub(crate) fn state(&self) -> State {
        match self.status.as_str() {
            "creating" => State::Creating,
            "ready" => State::Ready,
            _ => State::Deleting,
        }
    }

    /// Converts it for the API.
    pub(crate) fn public(&self) -> Snapshot {
        Snapshot {
            name: self.name.clone(),
            template: self.template.clone(),
            vcpus: self.vcpus as u32,
            memory_mb: self.memory_mb as u32,
            disk_size_mb: self.disk_size_mb as u32,
            created_at: self.created_at,
        }
    }
}

/// Selects or returns whole rows: `row!(before, after, arguments)`, with the columns between both texts.
macro_rules! row {
    ($before:literal, $after:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            Row,
            $before + " id, name, host_id, status, template, vcpus, memory_mb, disk_size_mb, created_at " + $after,
            $($argument),*
        )
    };
}

/// Inserts a snapshot that is about to be made of this sandbox; `None` if the team has one of this name.
pub(crate) async fn insert(
    tx: &mut PgConnection,
    new: Uuid,
    name: &str,
    sandbox: &super::sandboxes::Row,
    host: Uuid,
    lease: Duration,
) -> sqlx::Result<Option<Row>> {
    row!(
        "INSERT INTO snapshots (id, team_id, name, host_id, status, template, vcpus, memory_mb, disk_size_mb, lease_until)
         VALUES ($1, $2, $3, $4, 'creating', $5, $6, $7, $8, now() + make_interval(secs => $9))
         ON CONFLICT DO NOTHING RETURNING",
        "",
        new,
        sandbox.team_id,
        name,
        host,
        sandbox.template,
        sandbox.vcpus,
        sandbox.memory_mb,
        sandbox.disk_size_mb,
        lease.as_secs_f64()
    )
    .fetch_optional(tx)
    .await
}

/// Number of a team's snapshots.
pub(crate) async fn count(db: &PgPool, team: Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM snapshots WHERE team_id = $1"#, team)
        .fetch_one(db)
        .await
}

/// Renews the lease of a snapshot that is being made; false if it is not any more.
pub(crate) async fn renew(db: &PgPool, id: Uuid, lease: Duration) -> sqlx::Result<bool> {
    let renewed = sqlx::query!(
        "UPDATE snapshots SET lease_until = now() + make_interval(secs => $2) WHERE id = $1 AND status = 'creating'",
        id,
        lease.as_secs_f64()
    )
    .execute(db)
    .await?;
    Ok(renewed.rows_affected() == 1)
}

/// Records that a snapshot was made, also with its idempotency key; `None` if it was given up meanwhile.
pub(crate) async fn made(db: &PgPool, id: Uuid) -> sqlx::Result<Option<Row>> {
    let mut tx = db.begin().await?;
    let made =
        row!("UPDATE snapshots SET status = 'ready' WHERE id = $1 AND status = 'creating' RETURNING", "", id)
            .fetch_optional(&mut *tx)
            .await?;
    if made.is_some() {
        idempotency::snapshot_made(&mut tx, id).await?;
    }
    tx.commit().await?;
    Ok(made)
}

/// Finds a snapshot in any state.
pub(crate) async fn of_id(db: &PgPool, id: Uuid) -> sqlx::Result<Option<Row>> {
    row!("SELECT", "FROM snapshots WHERE id = $1", id).fetch_optional(db).await
}

/// Finds a team's snapshot that was made.
pub(crate) async fn find(db: &PgPool, team: Uuid, name: &str) -> sqlx::Result<Option<Row>> {
    row!("SELECT", "FROM snapshots WHERE team_id = $1 AND name = $2 AND status = 'ready'", team, name)
        .fetch_optional(db)
        .await
}

/// Lists a team's snapshots that were made, the newest first.
pub(crate) async fn of_team(db: &PgPool, team: Uuid) -> sqlx::Result<Vec<Row>> {
    row!("SELECT", "FROM snapshots WHERE team_id = $1 AND status = 'ready' ORDER BY id DESC", team)
        .fetch_all(db)
        .await
}

/// Marks a snapshot to be removed, and gives it to the caller for the time of a lease.
pub(crate) async fn doom(db: &PgPool, id: Uuid, lease: Duration) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE snapshots SET status = 'deleting', lease_until = now() + make_interval(secs => $2) WHERE id = $1",
        id,
        lease.as_secs_f64()
    )
    .execute(db)
    .await
    .map(drop)
}

/// Takes up to `limit` snapshots that nobody works on any more and that are not ready: they are to be removed.
pub(crate) async fn take_unfinished(db: &PgPool, lease: Duration, limit: i64) -> sqlx::Result<Vec<Row>> {
    row!(
        "UPDATE snapshots SET status = 'deleting', lease_until = now() + make_interval(secs => $1)
         WHERE id IN (SELECT id FROM snapshots WHERE status <> 'ready' AND lease_until < now()
             ORDER BY lease_until LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING",
        "",
        lease.as_secs_f64(),
        limit
    )
    .fetch_all(db)
    .await
}

/// Forgets a snapshot that was removed from its host.
pub(crate) async fn forget(db: &PgPool, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM snapshots WHERE id = $1 AND status = 'deleting'", id)
        .execute(db)
        .await
        .map(drop)
}
