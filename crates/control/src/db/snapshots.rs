// SPDX-License-Identifier: Apache-2.0
//! Snapshots of sandboxes: named ones of users, and those of builds, which have no name and are listed and counted nowhere.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::{Event, Snapshot};

use super::{actors, idempotency, outbox, templates::lock_names};
use crate::by::By;

/// One row of the table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    /// Its name, or the one that it takes when it was made. Empty for one of a build, and for one that another one has replaced.
    pub(crate) name: String,
    pub(crate) host_id: Uuid,
    status: String,
    pub(crate) template: String,
    pub(crate) vcpus: i32,
    pub(crate) memory_mb: i32,
    pub(crate) disk_size_mb: i32,
    /// What its disk occupies on the host; `None` if that is not known.
    pub(crate) disk_bytes: Option<i64>,
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
            $before
                + r#" id, coalesce(name, replaces, '') AS "name!", host_id, status, template, vcpus, memory_mb, disk_size_mb,
                disk_bytes, created_at "#
                + $after,
            $($argument),*
        )
    };
}

/// Inserts a snapshot that is about to be made of this sandbox: with a name, to replace the one that has the name `replaces`, or
/// for a build without either. `None` if the team has one of its name.
pub(crate) async fn insert(
    tx: &mut PgConnection,
    new: Uuid,
    name: Option<&str>,
    replaces: Option<&str>,
    sandbox: &super::sandboxes::Row,
    host: Uuid,
    lease: Duration,
) -> sqlx::Result<Option<Row>> {
    row!(
        "INSERT INTO snapshots (id, team_id, name, replaces, host_id, status, template, vcpus, memory_mb, disk_size_mb,
             lease_until)
         VALUES ($1, $2, $3, $4, $5, 'creating', $6, $7, $8, $9, now() + make_interval(secs => $10))
         ON CONFLICT DO NOTHING RETURNING",
        "",
        new,
        sandbox.team_id,
        name,
        replaces,
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

/// Number of a team's snapshots that have a name or take one, without the one that has the name `replaced`.
pub(crate) async fn count(tx: &mut PgConnection, team: Uuid, replaced: Option<&str>) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM snapshots
         WHERE team_id = $1 AND coalesce(name, replaces) IS NOT NULL AND name IS DISTINCT FROM $2"#,
        team,
        // No snapshot has the empty name.
        replaced.unwrap_or_default()
    )
    .fetch_one(tx)
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

/// Records that a snapshot was made, also with its idempotency key, and tells it if it has a name; `None` if it was given up
/// meanwhile. The one that it replaces loses its name at the same time, and the upkeep removes it.
pub(crate) async fn made(
    db: &PgPool,
    team: Uuid,
    id: Uuid,
    disk_bytes: Option<i64>,
    by: By,
) -> sqlx::Result<Option<Row>> {
    let mut tx = db.begin().await?;
    lock_names(&mut tx, team).await?;
    let replaced = row!(
        "SELECT",
        "FROM snapshots WHERE team_id = $1 AND status = 'ready'
             AND name = (SELECT s.replaces FROM snapshots s WHERE s.id = $2 AND s.status = 'creating')",
        team,
        id
    )
    .fetch_optional(&mut *tx)
    .await?;
    // Also one that is being made, or removed: its name is taken all the same.
    sqlx::query!(
        "UPDATE snapshots SET name = NULL, status = 'deleting', lease_until = now()
         WHERE team_id = $1 AND name = (SELECT replaces FROM snapshots WHERE id = $2 AND status = 'creating')",
        team,
        id
    )
    .execute(&mut *tx)
    .await?;
    let made = row!(
        "UPDATE snapshots SET status = 'ready', name = coalesce(name, replaces), replaces = NULL, disk_bytes = $2
         WHERE id = $1 AND status = 'creating' RETURNING",
        "",
        id,
        disk_bytes
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(made) = made else {
        // The other one stays.
        tx.rollback().await?;
        return Ok(None);
    };
    idempotency::snapshot_made(&mut tx, id).await?;
    tell_made(&mut tx, team, &made, replaced.as_ref(), by).await?;
    tx.commit().await?;
    Ok(Some(made))
}

/// Tells that a snapshot with a name was made, and before that the end of the one that it replaces.
async fn tell_made(
    tx: &mut PgConnection,
    team: Uuid,
    made: &Row,
    replaced: Option<&Row>,
    by: By,
) -> sqlx::Result<()> {
    if made.name.is_empty() {
        return Ok(());
    }
    let caused = actors::caused(tx, by).await?;
    if let Some(replaced) = replaced {
        outbox::put(tx, team, &Event::snapshot_deleted(replaced.public(), caused.clone())).await?;
    }
    outbox::put(tx, team, &Event::snapshot_created(made.public(), caused)).await
}

/// Marks a team's named snapshot to be removed, gives it to the caller for the time of a lease, and tells it. Nothing happens if it
/// is marked already.
pub(crate) async fn delete(db: &PgPool, team: Uuid, row: &Row, lease: Duration, by: By) -> sqlx::Result<()> {
    let mut tx = db.begin().await?;
    let deleted = sqlx::query!(
        "UPDATE snapshots SET status = 'deleting', lease_until = now() + make_interval(secs => $2)
         WHERE id = $1 AND status = 'ready'",
        row.id,
        lease.as_secs_f64()
    )
    .execute(&mut *tx)
    .await?;
    if deleted.rows_affected() == 1 {
        let caused = actors::caused(&mut tx, by).await?;
        outbox::put(&mut tx, team, &Event::snapshot_deleted(row.public(), caused)).await?;
    }
    tx.commit().await
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

/// Lists a team's named snapshots that were made, the newest first.
pub(crate) async fn of_team(db: &PgPool, team: Uuid) -> sqlx::Result<Vec<Row>> {
    row!(
        "SELECT",
        "FROM snapshots WHERE team_id = $1 AND name IS NOT NULL AND status = 'ready' ORDER BY id DESC",
        team
    )
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

/// Takes up to `limit` snapshots of builds that nothing refers to and that were made longer ago than `age`: they are to be
/// removed. First they are locked, so that what begins to refer to one of them meanwhile is seen, or waits and then sees that it
/// goes.
pub(crate) async fn take_unreferenced(
    db: &PgPool,
    age: Duration,
    lease: Duration,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    let mut tx = db.begin().await?;
    let locked = sqlx::query_scalar!(
        "SELECT s.id FROM snapshots s
         WHERE s.name IS NULL AND s.status = 'ready' AND s.lease_until < now() - make_interval(secs => $1)
             AND NOT EXISTS (SELECT 1 FROM layers l WHERE l.snapshot_id = s.id)
             AND NOT EXISTS (SELECT 1 FROM template_versions v WHERE v.snapshot_id = s.id)
             AND NOT EXISTS (SELECT 1 FROM builds b
                 WHERE b.status IN ('pending', 'running') AND b.base ->> 'snapshot_id' = s.id::text)
         ORDER BY s.id LIMIT $2 FOR UPDATE OF s SKIP LOCKED",
        age.as_secs_f64(),
        limit
    )
    .fetch_all(&mut *tx)
    .await?;
    let rows = row!(
        "UPDATE snapshots SET status = 'deleting', lease_until = now() + make_interval(secs => $2)
         WHERE id = ANY($1)
             AND NOT EXISTS (SELECT 1 FROM layers l WHERE l.snapshot_id = snapshots.id)
             AND NOT EXISTS (SELECT 1 FROM template_versions v WHERE v.snapshot_id = snapshots.id)
         RETURNING",
        "",
        &locked[..],
        lease.as_secs_f64()
    )
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(rows)
}

/// Keeps a snapshot until the transaction ends: nobody begins to remove it. False if somebody has.
pub(crate) async fn hold(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<bool> {
    let held =
        sqlx::query_scalar!("SELECT id FROM snapshots WHERE id = $1 AND status = 'ready' FOR SHARE", id)
            .fetch_optional(tx)
            .await?;
    Ok(held.is_some())
}

/// Forgets a snapshot that was removed from its host.
pub(crate) async fn forget(db: &PgPool, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM snapshots WHERE id = $1 AND status = 'deleting'", id)
        .execute(db)
        .await
        .map(drop)
}
