// SPDX-License-Identifier: Apache-2.0
//! Copies of snapshots and images on hosts that did not make them. A host that made one has it by the rows that name it.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

/// What a claim of a copy found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The caller is to fetch it, for the time of a lease.
    Mine(Held),
    /// It is there.
    Ready,
    /// Somebody else fetches or removes it.
    Busy,
    /// Somebody else has failed to fetch it a moment ago: with this code and message.
    Failed(String, String),
}

/// A copy that somebody fetches, as long as nobody else takes it over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    artifact: Uuid,
    host: Uuid,
    lease: Uuid,
}

/// A copy that is to be removed from a host.
#[derive(Debug, Clone)]
pub(crate) struct Doomed {
    pub(crate) artifact_id: Uuid,
    pub(crate) host_id: Uuid,
    pub(crate) kind: String,
    /// Whether the host has it also for other reasons than as a copy.
    pub(crate) is_own: bool,
    lease: Uuid,
}

/// Returns the hosts with a copy that is ready, the last used one first.
pub(crate) async fn ready(db: &PgPool, artifact: Uuid) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "SELECT host_id FROM copies WHERE artifact_id = $1 AND state = 'ready' ORDER BY last_used_at DESC",
        artifact
    )
    .fetch_all(db)
    .await
}

/// Returns the hosts to which somebody fetches it now.
pub(crate) async fn fetching(db: &PgPool, artifact: Uuid) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "SELECT host_id FROM copies WHERE artifact_id = $1 AND state = 'fetching' AND lease_until > now()
             AND failure_code IS NULL",
        artifact
    )
    .fetch_all(db)
    .await
}

/// Takes the right to fetch a copy to a host for the time of a lease, unless it is there or somebody else works on it. One that
/// is to be removed, on which nobody works, is kept: the host answers at once if it still has it.
pub(crate) async fn claim(
    db: &PgPool,
    artifact: Uuid,
    host: Uuid,
    kind: &str,
    lease: Duration,
) -> sqlx::Result<Claim> {
    let taken = sqlx::query_scalar!(
        "INSERT INTO copies (artifact_id, host_id, kind, state, lease_until)
         VALUES ($1, $2, $3, 'fetching', now() + make_interval(secs => $4))
         ON CONFLICT (artifact_id, host_id) DO UPDATE SET state = 'fetching', lease = excluded.lease,
             lease_until = excluded.lease_until, failure_code = NULL, failure_message = NULL
         WHERE copies.state <> 'ready' AND copies.lease_until < now()
         RETURNING lease",
        artifact,
        host,
        kind,
        lease.as_secs_f64()
    )
    .fetch_optional(db)
    .await?;
    if let Some(lease) = taken {
        return Ok(Claim::Mine(Held { artifact, host, lease }));
    }
    let found = sqlx::query!(
        "SELECT state, failure_code, failure_message FROM copies WHERE artifact_id = $1 AND host_id = $2",
        artifact,
        host
    )
    .fetch_optional(db)
    .await?;
    Ok(match found {
        Some(row) if row.state == "ready" => Claim::Ready,
        Some(row) if row.state == "fetching" => match row.failure_code {
            Some(code) => Claim::Failed(code, row.failure_message.unwrap_or_default()),
            None => Claim::Busy,
        },
        // It is being removed, or was forgotten meanwhile.
        Some(_) | None => Claim::Busy,
    })
}

/// Renews the lease of a copy that is being fetched; false if it is not wanted any more, or somebody else fetches it.
pub(crate) async fn renew(db: &PgPool, held: Held, lease: Duration) -> sqlx::Result<bool> {
    let renewed = sqlx::query!(
        "UPDATE copies SET lease_until = now() + make_interval(secs => $4)
         WHERE artifact_id = $1 AND host_id = $2 AND lease = $3 AND state = 'fetching' AND failure_code IS NULL",
        held.artifact,
        held.host,
        held.lease,
        lease.as_secs_f64()
    )
    .execute(db)
    .await?;
    Ok(renewed.rows_affected() == 1)
}

/// Records that a copy was fetched; false if it is to be removed already, or somebody else fetches it.
pub(crate) async fn made(db: &PgPool, held: Held, size_bytes: i64) -> sqlx::Result<bool> {
    let made = sqlx::query!(
        "UPDATE copies SET state = 'ready', size_bytes = $4, last_used_at = now(), failure_code = NULL, failure_message = NULL
         WHERE artifact_id = $1 AND host_id = $2 AND lease = $3 AND state = 'fetching'",
        held.artifact,
        held.host,
        held.lease,
        size_bytes
    )
    .execute(db)
    .await?;
    Ok(made.rows_affected() == 1)
}

/// Records why a copy was not fetched, for those who wait, and for those who ask within this time. Does nothing if somebody else
/// fetches it.
pub(crate) async fn failed(
    db: &PgPool,
    held: Held,
    (code, message): (&str, &str),
    told_for: Duration,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE copies SET failure_code = $4, failure_message = $5, lease_until = now() + make_interval(secs => $6)
         WHERE artifact_id = $1 AND host_id = $2 AND lease = $3 AND state = 'fetching'",
        held.artifact,
        held.host,
        held.lease,
        code,
        message,
        told_for.as_secs_f64()
    )
    .execute(db)
    .await
    .map(drop)
}

/// Notes that a sandbox is about to be created from a copy.
pub(crate) async fn used(db: &PgPool, artifact: Uuid, host: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE copies SET last_used_at = now() WHERE artifact_id = $1 AND host_id = $2 AND state = 'ready'",
        artifact,
        host
    )
    .execute(db)
    .await
    .map(drop)
}

/// Notes that a host does not have a copy that is recorded, so that it is fetched anew.
pub(crate) async fn lost(db: &PgPool, artifact: Uuid, host: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE copies SET state = 'doomed', lease_until = now()
         WHERE artifact_id = $1 AND host_id = $2 AND state = 'ready'",
        artifact,
        host
    )
    .execute(db)
    .await
    .map(drop)
}

/// Marks all copies to be removed that nothing needs: no snapshot that is ready, no version, no use of an image and no open build
/// has that id. Whoever fetches one of them loses it with its lease. Returns their number.
pub(crate) async fn doom_unneeded(db: &PgPool) -> sqlx::Result<u64> {
    // By two indexes, of those that are ready and of the others.
    let doomed = sqlx::query!(
        "UPDATE copies SET state = 'doomed' WHERE (state = 'ready' OR state = 'fetching') AND CASE kind
            WHEN 'snapshot' THEN NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.id = artifact_id AND s.status = 'ready')
            ELSE NOT EXISTS (SELECT 1 FROM template_versions v WHERE v.image_id = artifact_id)
                AND NOT EXISTS (SELECT 1 FROM images i WHERE i.image_id = artifact_id)
                AND NOT EXISTS (SELECT 1 FROM builds b
                    WHERE b.status IN ('pending', 'running') AND b.base ->> 'image_id' = artifact_id::text)
            END"
    )
    .execute(db)
    .await?;
    Ok(doomed.rows_affected())
}

/// Marks copies to be removed whose fetch was given up longer ago than `age`: the host may have one all the same.
pub(crate) async fn doom_abandoned(db: &PgPool, age: Duration) -> sqlx::Result<u64> {
    let doomed = sqlx::query!(
        "UPDATE copies SET state = 'doomed' WHERE state = 'fetching' AND lease_until < now() - make_interval(secs => $1)",
        age.as_secs_f64()
    )
    .execute(db)
    .await?;
    Ok(doomed.rows_affected())
}

/// Marks copies to be removed that were not used for longer than `age`, and of each host those beyond `cache_mb` that were not used
/// for the longest time, and not for `idle`. One that neither the store nor another online host has stays: `of_store` says whether
/// there is a store. Returns their number.
pub(crate) async fn evict(
    db: &PgPool,
    cache_mb: i64,
    age: Duration,
    idle: Duration,
    of_store: bool,
) -> sqlx::Result<u64> {
    let doomed = sqlx::query!(
        "WITH ranked AS (
            SELECT artifact_id, host_id, last_used_at,
                sum(size_bytes) OVER (PARTITION BY host_id ORDER BY last_used_at DESC, artifact_id) AS bytes
            FROM copies WHERE state = 'ready'),
         online AS (SELECT id FROM hosts WHERE status = 'online')
         UPDATE copies SET state = 'doomed', lease_until = now() FROM ranked r
         WHERE copies.artifact_id = r.artifact_id AND copies.host_id = r.host_id AND copies.state = 'ready'
             AND (r.last_used_at < now() - make_interval(secs => $2)
                 OR (r.bytes > $1::bigint::numeric * 1048576 AND r.last_used_at < now() - make_interval(secs => $3)))
             AND (($4 AND EXISTS (SELECT 1 FROM stored t WHERE t.artifact_id = r.artifact_id AND t.state = 'ready'))
                 OR EXISTS (SELECT 1 FROM snapshots s JOIN online ON online.id = s.host_id
                     WHERE s.id = r.artifact_id AND s.host_id <> r.host_id)
                 OR EXISTS (SELECT 1 FROM template_versions v JOIN online ON online.id = v.host_id
                     WHERE v.image_id = r.artifact_id AND v.host_id <> r.host_id)
                 OR EXISTS (SELECT 1 FROM images i JOIN online ON online.id = i.host_id
                     WHERE i.image_id = r.artifact_id AND i.host_id <> r.host_id))",
        cache_mb,
        age.as_secs_f64(),
        idle.as_secs_f64(),
        of_store
    )
    .execute(db)
    .await?;
    Ok(doomed.rows_affected())
}

/// Takes up to `limit` copies on online hosts that are to be removed and on which nobody works, for the time of a lease.
pub(crate) async fn take_doomed(db: &PgPool, lease: Duration, limit: i64) -> sqlx::Result<Vec<Doomed>> {
    sqlx::query_as!(
        Doomed,
        r#"UPDATE copies SET lease = gen_random_uuid(), lease_until = now() + make_interval(secs => $1)
         WHERE (artifact_id, host_id) IN (
             SELECT c.artifact_id, c.host_id FROM copies c JOIN hosts h ON h.id = c.host_id
             WHERE c.state = 'doomed' AND c.lease_until < now() AND h.status = 'online'
             ORDER BY c.lease_until LIMIT $2 FOR UPDATE OF c SKIP LOCKED)
         RETURNING artifact_id, host_id, kind, lease,
             (EXISTS (SELECT 1 FROM images i WHERE i.image_id = artifact_id AND i.host_id = copies.host_id)
                 OR EXISTS (SELECT 1 FROM template_versions v
                     WHERE v.image_id = artifact_id AND v.host_id = copies.host_id)) AS "is_own!""#,
        lease.as_secs_f64(),
        limit
    )
    .fetch_all(db)
    .await
}

/// Forgets a copy that was removed from its host, unless somebody else has taken it meanwhile.
pub(crate) async fn forget(db: &PgPool, copy: &Doomed) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM copies WHERE artifact_id = $1 AND host_id = $2 AND lease = $3 AND state = 'doomed'",
        copy.artifact_id,
        copy.host_id,
        copy.lease
    )
    .execute(db)
    .await
    .map(drop)
}
