// SPDX-License-Identifier: Apache-2.0
//! Uses of images of registries: which team uses which image on which host. An image has the same id for all teams and on all
//! hosts, and is removed from a host when no use of any team refers to it there. Those that were uploaded are uses, too:
//! [`super::uploaded_images`]. A host may tell of an image just before it removes it; so a use is only recorded if no removal was in
//! work since the host was asked.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor, PgPool};
use uuid::Uuid;

use super::templates::lock_names;

/// A use to record.
#[derive(Debug)]
pub(crate) struct Use<'a> {
    pub(crate) team_id: Uuid,
    /// Whole name of the image, by which the team asks for it.
    pub(crate) reference: &'a str,
    pub(crate) host_id: Uuid,
    pub(crate) image_id: Uuid,
    pub(crate) digest: &'a str,
    pub(crate) size_mb: i64,
    /// What the image says of its program.
    pub(crate) config: Value,
    /// When the host was asked for the image.
    pub(crate) asked_at: DateTime<Utc>,
}

/// Returns the time of the database.
pub(crate) async fn now(db: &PgPool) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(db).await
}

/// Returns the hosts on which a team has used the image of this name, the last used one first.
pub(crate) async fn hosts_of(db: &PgPool, team: Uuid, reference: &str) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "SELECT host_id FROM images WHERE team_id = $1 AND reference = $2 ORDER BY last_used_at DESC",
        team,
        reference
    )
    .fetch_all(db)
    .await
}

/// Records a use, now. The image stays on its host, also if it was to be removed from there; the one that the name led to before
/// is to be removed, if nothing refers to it. False, and nothing is recorded, if the image may have been removed since its host was
/// asked for it.
pub(crate) async fn put(db: &PgPool, new: Use<'_>) -> sqlx::Result<bool> {
    let mut tx = db.begin().await?;
    // Of several that record another image under one name, each sees the one before.
    lock_names(&mut tx, new.team_id).await?;
    let before = sqlx::query_scalar!(
        "SELECT image_id FROM images WHERE team_id = $1 AND reference = $2 AND host_id = $3 FOR UPDATE",
        new.team_id,
        new.reference,
        new.host_id
    )
    .fetch_optional(&mut *tx)
    .await?;
    sqlx::query!(
        "INSERT INTO images (team_id, reference, host_id, image_id, digest, size_mb, config)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (team_id, reference, host_id) DO UPDATE SET image_id = $4, digest = $5, size_mb = $6, config = $7,
             last_used_at = now()",
        new.team_id,
        new.reference,
        new.host_id,
        new.image_id,
        new.digest,
        new.size_mb,
        new.config
    )
    .execute(&mut *tx)
    .await?;
    if let Some(before) = before.filter(|before| *before != new.image_id) {
        sqlx::query!(
            "INSERT INTO doomed_images (image_id, host_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            before,
            new.host_id
        )
        .execute(&mut *tx)
        .await?;
    }
    if !keep(&mut tx, new.image_id, new.host_id, new.asked_at).await? {
        return Ok(false);
    }
    tx.commit().await?;
    Ok(true)
}

/// Takes back that an image is to be removed from a host, for a use that the transaction records. False if it may have been removed
/// since `asked_at`.
pub(super) async fn keep(
    tx: &mut PgConnection,
    image: Uuid,
    host: Uuid,
    asked_at: DateTime<Utc>,
) -> sqlx::Result<bool> {
    // The row is there until the end of the transaction for all others: who takes it for a removal has done so before, or sees the
    // use afterwards.
    sqlx::query!(
        "INSERT INTO doomed_images (image_id, host_id) VALUES ($1, $2)
         ON CONFLICT (image_id, host_id) DO UPDATE SET image_id = excluded.image_id",
        image,
        host
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("DELETE FROM doomed_images WHERE image_id = $1 AND host_id = $2", image, host)
        .execute(&mut *tx)
        .await?;
    Ok(!is_removed_since(tx, image, host, asked_at).await?)
}

/// Returns whether a removal of an image from a host was in work at this time or later.
pub(crate) async fn is_removed_since(
    executor: impl PgExecutor<'_>,
    image: Uuid,
    host: Uuid,
    since: DateTime<Utc>,
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM image_removals
            WHERE image_id = $1 AND host_id = $2 AND ends_at >= $3) AS "is!""#,
        image,
        host,
        since
    )
    .fetch_one(executor)
    .await
}

/// Notes that images of a host are to be removed after a time to which nothing refers. They were imported for somebody who did not
/// wait, and who may ask again until then. Returns their number.
pub(crate) async fn doom_unknown(
    db: &PgPool,
    host: Uuid,
    there: &[Uuid],
    after: Duration,
) -> sqlx::Result<u64> {
    let doomed = sqlx::query!(
        "INSERT INTO doomed_images (image_id, host_id, lease_until)
         SELECT t.id, $1::uuid, now() + make_interval(secs => $3) FROM unnest($2::uuid[]) AS t (id)
         WHERE NOT EXISTS (SELECT 1 FROM images i WHERE i.image_id = t.id AND i.host_id = $1)
             AND NOT EXISTS (SELECT 1 FROM copies c WHERE c.artifact_id = t.id AND c.host_id = $1)
             AND NOT EXISTS (SELECT 1 FROM template_versions v WHERE v.image_id = t.id AND v.host_id = $1)
         ON CONFLICT DO NOTHING",
        host,
        there,
        after.as_secs_f64()
    )
    .execute(db)
    .await?;
    Ok(doomed.rows_affected())
}

/// Forgets removals that ended longer ago than `age`, which is longer than any import takes.
pub(crate) async fn forget_removals(db: &PgPool, age: Duration) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM image_removals WHERE ends_at < now() - make_interval(secs => $1)",
        age.as_secs_f64()
    )
    .execute(db)
    .await
    .map(drop)
}

/// Forgets up to `limit` uses of images of registries that are older than `age`, and of whose image there is no sandbox on that
/// host, no version of a template and no open build, of any team. The images are to be removed, which waits as long as another use refers to one.
/// Returns the number of images.
pub(crate) async fn forget_unused(db: &PgPool, age: Duration, limit: i64) -> sqlx::Result<u64> {
    let doomed = sqlx::query!(
        "WITH gone AS (
            DELETE FROM images WHERE (team_id, reference, host_id) IN (
                SELECT i.team_id, i.reference, i.host_id FROM images i
                WHERE i.last_used_at < now() - make_interval(secs => $1) AND NOT i.uploaded
                    AND NOT EXISTS (SELECT 1 FROM sandboxes s
                        WHERE s.image ->> 'id' = i.image_id::text AND s.host_id = i.host_id AND s.image IS NOT NULL
                            AND s.status <> 'stopped')
                    AND NOT EXISTS (SELECT 1 FROM template_versions v
                        WHERE v.image_id = i.image_id AND v.host_id = i.host_id)
                    AND NOT EXISTS (SELECT 1 FROM builds b
                        WHERE b.status IN ('pending', 'running') AND b.base ->> 'image_id' = i.image_id::text)
                ORDER BY i.last_used_at LIMIT $2 FOR UPDATE OF i SKIP LOCKED)
            RETURNING image_id, host_id)
         INSERT INTO doomed_images (image_id, host_id) SELECT DISTINCT image_id, host_id FROM gone ON CONFLICT DO NOTHING",
        age.as_secs_f64(),
        limit
    )
    .execute(db)
    .await?;
    Ok(doomed.rows_affected())
}
