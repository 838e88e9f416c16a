// SPDX-License-Identifier: Apache-2.0
//! What the store of templates has, or is to get: the snapshots and images of versions.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

/// An artifact that is to be written to the store or removed from it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) artifact_id: Uuid,
    pub(crate) team_id: Uuid,
    /// Name of the template that had it first, which is in its paths.
    pub(crate) template: String,
    pub(crate) kind: String,
    /// Whether what the store has of it is to be written anew.
    pub(crate) is_damaged: bool,
    /// Number of attempts that have failed.
    pub(crate) tries: i32,
    /// Lease of the one who took it last.
    lease: Uuid,
}

/// Notes up to `limit` artifacts of versions that the store is to get. Returns their number.
pub(crate) async fn note_new(db: &PgPool, limit: i64) -> sqlx::Result<u64> {
    let noted = sqlx::query!(
        "INSERT INTO stored (artifact_id, team_id, template, kind, state)
         SELECT DISTINCT ON (coalesce(v.snapshot_id, v.image_id)) coalesce(v.snapshot_id, v.image_id), v.team_id, v.name,
             CASE WHEN v.snapshot_id IS NULL THEN 'image' ELSE 'snapshot' END, 'pushing'
         FROM template_versions v
         WHERE NOT EXISTS (SELECT 1 FROM stored s WHERE s.artifact_id = coalesce(v.snapshot_id, v.image_id))
         ORDER BY coalesce(v.snapshot_id, v.image_id), v.created_at LIMIT $1
         ON CONFLICT DO NOTHING",
        limit
    )
    .execute(db)
    .await?;
    Ok(noted.rows_affected())
}

/// Takes an artifact that is to be written and on which nobody works, for the time of a lease: one whose host is online, or of
/// which an online host has a copy.
pub(crate) async fn take(db: &PgPool, lease: Duration) -> sqlx::Result<Option<Stored>> {
    sqlx::query_as!(
        Stored,
        "UPDATE stored SET lease = gen_random_uuid(), lease_until = now() + make_interval(secs => $1)
         WHERE artifact_id = (
             SELECT s.artifact_id FROM stored s WHERE s.state = 'pushing' AND s.lease_until < now()
                 AND EXISTS (SELECT 1 FROM hosts h JOIN (
                         SELECT v.host_id FROM template_versions v
                             WHERE v.snapshot_id = s.artifact_id OR v.image_id = s.artifact_id
                         UNION ALL SELECT c.host_id FROM copies c WHERE c.artifact_id = s.artifact_id AND c.state = 'ready'
                     ) holders ON holders.host_id = h.id WHERE h.status = 'online')
             ORDER BY s.lease_until LIMIT 1 FOR UPDATE OF s SKIP LOCKED)
         RETURNING artifact_id, team_id, template, kind, is_damaged, tries, lease",
        lease.as_secs_f64()
    )
    .fetch_optional(db)
    .await
}

/// Returns an online host that has an artifact of a version.
pub(crate) async fn holder(db: &PgPool, artifact: Uuid) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "SELECT h.id FROM hosts h WHERE h.status = 'online' AND (
             EXISTS (SELECT 1 FROM template_versions v WHERE v.host_id = h.id AND (v.snapshot_id = $1 OR v.image_id = $1))
             OR EXISTS (SELECT 1 FROM copies c WHERE c.artifact_id = $1 AND c.host_id = h.id AND c.state = 'ready'))
         ORDER BY h.id LIMIT 1",
        artifact
    )
    .fetch_optional(db)
    .await
}

/// Renews the lease of an artifact that is being written; false if it is not wanted any more, or somebody else writes it.
pub(crate) async fn renew(db: &PgPool, of: &Stored, lease: Duration) -> sqlx::Result<bool> {
    let renewed = sqlx::query!(
        "UPDATE stored SET lease_until = now() + make_interval(secs => $3)
         WHERE artifact_id = $1 AND lease = $2 AND state = 'pushing'",
        of.artifact_id,
        of.lease,
        lease.as_secs_f64()
    )
    .execute(db)
    .await?;
    Ok(renewed.rows_affected() == 1)
}

/// Records that the store has all of it; false if it is to be removed already, or somebody else writes it.
pub(crate) async fn pushed(db: &PgPool, of: &Stored, size_bytes: i64) -> sqlx::Result<bool> {
    let pushed = sqlx::query!(
        "UPDATE stored SET state = 'ready', is_damaged = false, tries = 0, size_bytes = $3
         WHERE artifact_id = $1 AND lease = $2 AND state = 'pushing'",
        of.artifact_id,
        of.lease,
        size_bytes
    )
    .execute(db)
    .await?;
    Ok(pushed.rows_affected() == 1)
}

/// Counts an attempt that failed; the next one is after `pause`. Does nothing if somebody else has begun one.
pub(crate) async fn put_off(db: &PgPool, of: &Stored, pause: Duration) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE stored SET tries = tries + 1, lease_until = now() + make_interval(secs => $3)
         WHERE artifact_id = $1 AND lease = $2",
        of.artifact_id,
        of.lease,
        pause.as_secs_f64()
    )
    .execute(db)
    .await
    .map(drop)
}

/// Finds an artifact that the store has.
pub(crate) async fn find(db: &PgPool, artifact: Uuid) -> sqlx::Result<Option<Stored>> {
    sqlx::query_as!(
        Stored,
        "SELECT artifact_id, team_id, template, kind, is_damaged, tries, lease FROM stored
         WHERE artifact_id = $1 AND state = 'ready'",
        artifact
    )
    .fetch_optional(db)
    .await
}

/// Notes that what the store has of an artifact cannot be used: it is written anew, if a host has it.
pub(crate) async fn damaged(db: &PgPool, artifact: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE stored SET state = 'pushing', is_damaged = true, tries = 0, lease_until = now()
         WHERE artifact_id = $1 AND state = 'ready'",
        artifact
    )
    .execute(db)
    .await
    .map(drop)
}

/// Marks all artifacts to be removed that no version and no open build needs. Whoever writes one of them loses it with its lease.
/// Returns their number.
pub(crate) async fn doom_unneeded(db: &PgPool) -> sqlx::Result<u64> {
    let doomed = sqlx::query!(
        "UPDATE stored SET state = 'doomed', tries = 0 WHERE state <> 'doomed'
             AND NOT EXISTS (SELECT 1 FROM template_versions v WHERE v.snapshot_id = artifact_id)
             AND NOT EXISTS (SELECT 1 FROM template_versions v WHERE v.image_id = artifact_id)
             AND NOT EXISTS (SELECT 1 FROM builds b WHERE b.status IN ('pending', 'running')
                 AND artifact_id::text IN (b.base ->> 'snapshot_id', b.base ->> 'image_id'))"
    )
    .execute(db)
    .await?;
    Ok(doomed.rows_affected())
}

/// Takes up to `limit` artifacts that are to be removed and on which nobody works, for the time of a lease.
pub(crate) async fn take_doomed(db: &PgPool, lease: Duration, limit: i64) -> sqlx::Result<Vec<Stored>> {
    sqlx::query_as!(
        Stored,
        "UPDATE stored SET lease = gen_random_uuid(), lease_until = now() + make_interval(secs => $1)
         WHERE artifact_id = ANY (ARRAY(SELECT artifact_id FROM stored WHERE state = 'doomed' AND lease_until < now()
             ORDER BY lease_until LIMIT $2 FOR UPDATE SKIP LOCKED))
         RETURNING artifact_id, team_id, template, kind, is_damaged, tries, lease",
        lease.as_secs_f64(),
        limit
    )
    .fetch_all(db)
    .await
}

/// Forgets an artifact that was removed, unless somebody else has taken it meanwhile.
pub(crate) async fn forget(db: &PgPool, of: &Stored) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM stored WHERE artifact_id = $1 AND lease = $2 AND state = 'doomed'",
        of.artifact_id,
        of.lease
    )
    .execute(db)
    .await
    .map(drop)
}
