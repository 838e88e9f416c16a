// SPDX-License-Identifier: Apache-2.0
//! Layers: results of steps of builds, found by a hash of all that they depend on. Each is a snapshot without a name.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

/// A layer whose snapshot was made.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) key: String,
    pub(crate) snapshot_id: Uuid,
    pub(crate) host_id: Uuid,
    /// Whether its host responds.
    pub(crate) is_online: bool,
    /// Whether it responded within the last minute.
    pub(crate) was_online: bool,
    /// What its disk occupies on the host, and how much of that its step has added; `None` if that is not known.
    pub(crate) disk_bytes: Option<i64>,
    pub(crate) bytes_added: Option<i64>,
}

/// A layer to record.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub(crate) team_id: Uuid,
    pub(crate) key: &'a str,
    pub(crate) snapshot_id: Uuid,
    /// Key of what the step was done on.
    pub(crate) parent: &'a str,
    /// What the key is a hash of, apart from the parent.
    pub(crate) inputs: Value,
    pub(crate) bytes_added: Option<i64>,
}

/// Layers that were forgotten.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pruned {
    pub(crate) results: i64,
    /// Bytes that their steps had added, as far as that is known.
    pub(crate) bytes: i64,
}

/// Returns the layers that there are of these keys, and notes that they are in use.
pub(crate) async fn of_keys(db: &PgPool, team: Uuid, keys: &[String]) -> sqlx::Result<Vec<Layer>> {
    sqlx::query_as!(
        Layer,
        r#"WITH held AS (
             SELECT team_id, key FROM layers WHERE team_id = $1 AND key = ANY($2) ORDER BY key FOR NO KEY UPDATE)
         UPDATE layers SET last_used_at = now() FROM held, snapshots s, hosts h
         WHERE layers.team_id = held.team_id AND layers.key = held.key AND s.id = layers.snapshot_id
             AND s.status = 'ready' AND h.id = s.host_id
         RETURNING layers.key, layers.snapshot_id, s.host_id, (h.status = 'online') AS "is_online!",
             coalesce(h.last_seen_at > now() - interval '1 minute', false) AS "was_online!", s.disk_bytes, layers.bytes_added"#,
        team,
        keys
    )
    .fetch_all(db)
    .await
}

/// Returns the inputs of the latest layer of this kind on the same parent.
pub(crate) async fn latest_inputs(
    db: &PgPool,
    team: Uuid,
    parent: &str,
    kind: &str,
) -> sqlx::Result<Option<Value>> {
    sqlx::query_scalar!(
        "SELECT inputs FROM layers WHERE team_id = $1 AND parent = $2 AND inputs ->> 'kind' = $3
         ORDER BY created_at DESC LIMIT 1",
        team,
        parent,
        kind
    )
    .fetch_optional(db)
    .await
}

/// Records a layer, instead of an older one with its key; false if its snapshot is not there any more. While this refers to the
/// snapshot, nobody begins to remove it.
pub(crate) async fn put(db: &PgPool, new: New<'_>) -> sqlx::Result<bool> {
    let put = sqlx::query!(
        "WITH kept AS (SELECT id FROM snapshots WHERE id = $3 AND status = 'ready' FOR SHARE)
         INSERT INTO layers (team_id, key, snapshot_id, parent, inputs, bytes_added)
         SELECT $1::uuid, $2::text, kept.id, $4::text, $5::jsonb, $6::bigint FROM kept
         ON CONFLICT (team_id, key) DO UPDATE SET snapshot_id = excluded.snapshot_id, parent = excluded.parent,
             inputs = excluded.inputs, bytes_added = excluded.bytes_added, created_at = now(), last_used_at = now()",
        new.team_id,
        new.key,
        new.snapshot_id,
        new.parent,
        new.inputs,
        new.bytes_added
    )
    .execute(db)
    .await?;
    Ok(put.rows_affected() == 1)
}

/// Forgets a layer that cannot be used, unless it was made anew meanwhile.
pub(crate) async fn forget(db: &PgPool, team: Uuid, key: &str, snapshot: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM layers WHERE team_id = $1 AND key = $2 AND snapshot_id = $3",
        team,
        key,
        snapshot
    )
    .execute(db)
    .await
    .map(drop)
}

/// Forgets up to `limit` layers that were not used for longer than `age`; returns their number.
pub(crate) async fn forget_unused(db: &PgPool, age: Duration, limit: i64) -> sqlx::Result<u64> {
    let forgotten = sqlx::query!(
        "DELETE FROM layers WHERE (team_id, key) IN (
            SELECT team_id, key FROM layers WHERE last_used_at < now() - make_interval(secs => $1)
            LIMIT $2 FOR UPDATE SKIP LOCKED)",
        age.as_secs_f64(),
        limit
    )
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected())
}

/// Forgets up to `limit` layers of a team that were not used for longer than `age`. Those that a build which runs now may have
/// found stay.
pub(crate) async fn prune(db: &PgPool, team: Uuid, age: Duration, limit: i64) -> sqlx::Result<Pruned> {
    sqlx::query_as!(
        Pruned,
        r#"WITH gone AS (
             DELETE FROM layers WHERE team_id = $1 AND key IN (
                 SELECT key FROM layers WHERE team_id = $1
                     AND last_used_at < least(now() - make_interval(secs => $2),
                         (SELECT min(started_at) FROM builds WHERE team_id = $1 AND status = 'running'))
                 LIMIT $3 FOR UPDATE SKIP LOCKED)
             RETURNING bytes_added)
         SELECT count(*) AS "results!", coalesce(sum(bytes_added), 0)::bigint AS "bytes!" FROM gone"#,
        team,
        age.as_secs_f64(),
        limit
    )
    .fetch_one(db)
    .await
}

/// Returns whether a host responds.
pub(crate) async fn is_online(db: &PgPool, host: Uuid) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM hosts WHERE id = $1 AND status = 'online') AS "is!""#,
        host
    )
    .fetch_one(db)
    .await
}
