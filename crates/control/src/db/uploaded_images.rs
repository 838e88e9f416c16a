// SPDX-License-Identifier: Apache-2.0
//! Images that teams have uploaded, and lists of all images that a team uses. An uploaded image is a use that does not grow old.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{
    images::{self, Use},
    templates::lock_names,
};

/// Maximum number of a team's images in a list.
const LISTED: i64 = 1000;
/// Maximum number of each kind of users that an error names.
const NAMED: i64 = 5;

/// An image that was uploaded.
#[derive(Debug, Clone)]
pub(crate) struct Uploaded {
    pub(crate) host_id: Uuid,
    pub(crate) image_id: Uuid,
    pub(crate) digest: String,
    pub(crate) size_mb: i64,
    /// What the image says of its program.
    pub(crate) config: Value,
}

/// An image that a team uses.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) reference: String,
    pub(crate) uploaded: bool,
    pub(crate) digest: String,
    pub(crate) size_mb: i64,
    pub(crate) hosts: Vec<Uuid>,
    pub(crate) last_used_at: DateTime<Utc>,
}

/// What uses an image of a team: names or ids of the first ones of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Users {
    pub(crate) sandboxes: Vec<Uuid>,
    pub(crate) builds: Vec<Uuid>,
    /// As `NAME version N`.
    pub(crate) versions: Vec<String>,
}

impl Users {
    pub(crate) const fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.builds.is_empty() && self.versions.is_empty()
    }
}

/// Finds the image that the team has uploaded under this reference, and records that it is used now.
pub(crate) async fn find(db: &PgPool, team: Uuid, reference: &str) -> sqlx::Result<Option<Uploaded>> {
    sqlx::query_as!(
        Uploaded,
        "UPDATE images SET last_used_at = now() WHERE team_id = $1 AND reference = $2 AND uploaded
         RETURNING host_id, image_id, digest, size_mb, config",
        team,
        reference
    )
    .fetch_optional(db)
    .await
}

/// Returns the number of images that the team has uploaded, without the one of this reference.
pub(crate) async fn count_others(
    executor: impl sqlx::PgExecutor<'_>,
    team: Uuid,
    reference: &str,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM images WHERE team_id = $1 AND uploaded AND reference <> $2"#,
        team,
        reference
    )
    .fetch_one(executor)
    .await
}

/// What became of an image that was to be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is recorded, at this time.
    Done(DateTime<Utc>),
    /// The team has too many others: it is to be removed.
    TooMany,
    /// It may have been removed since its host was asked for it: nothing is recorded.
    Removed,
}

/// Records an image that was uploaded, unless the team has `most` others. It takes the place of the one that had this reference, which
/// is to be removed.
pub(crate) async fn put(db: &PgPool, new: Use<'_>, most: i64) -> sqlx::Result<Put> {
    let mut tx = db.begin().await?;
    // So that several at once do not exceed the limit together.
    lock_names(&mut tx, new.team_id).await?;
    if count_others(&mut *tx, new.team_id, new.reference).await? >= most {
        doom(&mut tx, new.image_id, new.host_id).await?;
        tx.commit().await?;
        return Ok(Put::TooMany);
    }
    forget(&mut tx, new.team_id, new.reference).await?;
    let at = sqlx::query_scalar!(
        "INSERT INTO images (team_id, reference, host_id, image_id, digest, size_mb, config, uploaded)
         VALUES ($1, $2, $3, $4, $5, $6, $7, true) RETURNING last_used_at",
        new.team_id,
        new.reference,
        new.host_id,
        new.image_id,
        new.digest,
        new.size_mb,
        new.config
    )
    .fetch_one(&mut *tx)
    .await?;
    if !images::keep(&mut tx, new.image_id, new.host_id, new.asked_at).await? {
        return Ok(Put::Removed);
    }
    tx.commit().await?;
    Ok(Put::Done(at))
}

/// Notes that an image is to be removed from a host, unless something refers to it there.
pub(crate) async fn doom(executor: &mut PgConnection, image: Uuid, host: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO doomed_images (image_id, host_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        image,
        host
    )
    .execute(executor)
    .await
    .map(drop)
}

/// Returns the image that the team has uploaded under this reference. Others wait until the transaction ends.
pub(crate) async fn locked(tx: &mut PgConnection, team: Uuid, reference: &str) -> sqlx::Result<Option<Uuid>> {
    lock_names(tx, team).await?;
    sqlx::query_scalar!(
        "SELECT image_id FROM images WHERE team_id = $1 AND reference = $2 AND uploaded FOR UPDATE",
        team,
        reference
    )
    .fetch_optional(tx)
    .await
}

/// Forgets the image that the team has uploaded under this reference. It is to be removed from its host.
pub(crate) async fn forget(tx: &mut PgConnection, team: Uuid, reference: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH gone AS (DELETE FROM images WHERE team_id = $1 AND reference = $2 AND uploaded RETURNING image_id, host_id)
         INSERT INTO doomed_images (image_id, host_id) SELECT image_id, host_id FROM gone ON CONFLICT DO NOTHING",
        team,
        reference
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Finds what of the team uses an image: sandboxes that are not stopped, builds that have not ended, and versions of templates
/// that are this image.
pub(crate) async fn users(tx: &mut PgConnection, team: Uuid, image: Uuid) -> sqlx::Result<Users> {
    let id = image.to_string();
    let sandboxes = sqlx::query_scalar!(
        "SELECT id FROM sandboxes WHERE team_id = $1 AND image ->> 'id' = $2 AND image IS NOT NULL AND status <> 'stopped'
         ORDER BY id LIMIT $3",
        team,
        id,
        NAMED
    )
    .fetch_all(&mut *tx)
    .await?;
    let builds = sqlx::query_scalar!(
        "SELECT id FROM builds WHERE team_id = $1 AND status IN ('pending', 'running') AND base ->> 'image_id' = $2
         ORDER BY id LIMIT $3",
        team,
        id,
        NAMED
    )
    .fetch_all(&mut *tx)
    .await?;
    let versions = sqlx::query_scalar!(
        r#"SELECT name || ' version ' || version AS "version!" FROM template_versions WHERE team_id = $1 AND image_id = $2
           ORDER BY name, version LIMIT $3"#,
        team,
        image,
        NAMED
    )
    .fetch_all(tx)
    .await?;
    Ok(Users { sandboxes, builds, versions })
}

/// Lists the images that the team has uploaded, and those of registries that hosts have for it, by reference.
pub(crate) async fn of_team(db: &PgPool, team: Uuid) -> sqlx::Result<Vec<Listed>> {
    sqlx::query_as!(
        Listed,
        r#"SELECT i.reference, bool_or(i.uploaded) AS "uploaded!", i.digest, max(i.size_mb) AS "size_mb!",
                array_agg(DISTINCT h.host_id) AS "hosts!", max(i.last_used_at) AS "last_used_at!"
           FROM images i
           JOIN LATERAL (SELECT i.host_id UNION SELECT c.host_id FROM copies c
                WHERE c.artifact_id = i.image_id AND c.kind = 'image' AND c.state = 'ready') h ON true
           WHERE i.team_id = $1
           GROUP BY i.reference, i.digest ORDER BY i.reference, max(i.last_used_at) DESC LIMIT $2"#,
        team,
        LISTED
    )
    .fetch_all(db)
    .await
}
