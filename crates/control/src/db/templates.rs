// SPDX-License-Identifier: Apache-2.0
//! Versions of the templates that teams have built, their tags, and the images that are to be removed. Whoever gives or frees a
//! name of a team does it behind [`lock_names`], so that no two things get one name, and no version refers to what is removed.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor, PgPool};
use uuid::Uuid;

use crate::names::LATEST;

/// Maximum number of a team's templates in a list, and of their tags.
const LISTED: i64 = 1000;
const TAGS_LISTED: i64 = 10_000;
/// Number of tags that an error names.
const TAGS_NAMED: i64 = 10;

/// A version of a template: one row of the table.
#[derive(Debug, Clone)]
#[allow(clippy::struct_field_names, reason = "the names of the columns")]
pub(crate) struct Version {
    pub(crate) name: String,
    pub(crate) version: i32,
    pub(crate) build_id: Uuid,
    pub(crate) key: String,
    pub(crate) host_id: Uuid,
    /// Snapshot with memory that sandboxes go on from, or the image that they boot from: one of both.
    pub(crate) snapshot_id: Option<Uuid>,
    pub(crate) image_id: Option<Uuid>,
    /// Size of the smallest disk.
    pub(crate) size_mb: i64,
    /// Sizes of the build, which sandboxes from a snapshot have.
    pub(crate) vcpus: i32,
    pub(crate) memory_mb: i32,
    pub(crate) disk_size_mb: i32,
    pub(crate) envs: serde_json::Value,
    pub(crate) default_user: String,
    pub(crate) workdir: String,
    pub(crate) created_at: DateTime<Utc>,
}

impl Version {
    /// Returns the environment.
    pub(crate) fn envs(&self) -> BTreeMap<String, String> {
        serde_json::from_value(self.envs.clone()).unwrap_or_default()
    }
}

/// A version to insert.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewVersion<'a> {
    pub(crate) team_id: Uuid,
    pub(crate) name: &'a str,
    pub(crate) build_id: Uuid,
    pub(crate) key: &'a str,
    pub(crate) host_id: Uuid,
    /// One of both.
    pub(crate) snapshot_id: Option<Uuid>,
    pub(crate) image_id: Option<Uuid>,
    pub(crate) size_mb: i64,
    pub(crate) vcpus: i32,
    pub(crate) memory_mb: i32,
    pub(crate) disk_size_mb: i32,
    pub(crate) envs: &'a BTreeMap<String, String>,
    pub(crate) default_user: &'a str,
    pub(crate) workdir: &'a str,
}

/// A tag of a template.
#[derive(Debug, Clone)]
#[allow(clippy::struct_field_names, reason = "the names of the columns")]
pub(crate) struct Tag {
    pub(crate) name: String,
    pub(crate) tag: String,
    pub(crate) version: i32,
}

/// An image that is to be removed from a host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DoomedImage {
    pub(crate) image_id: Uuid,
    pub(crate) host_id: Uuid,
}

/// Selects whole rows: `row!(before, after, arguments)`, with the columns between both texts.
macro_rules! row {
    ($before:literal, $after:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            Version,
            $before
                + " name, version, build_id, key, host_id, snapshot_id, image_id, size_mb, vcpus, memory_mb,
                disk_size_mb, envs, default_user, workdir, created_at "
                + $after,
            $($argument),*
        )
    };
}

/// Makes others who give or free names of the team's templates and snapshots wait until the transaction ends: of several that take a name, the last
/// has it.
pub(crate) async fn lock_names(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<()> {
    sqlx::query_scalar!("SELECT id FROM teams WHERE id = $1 FOR NO KEY UPDATE", team)
        .fetch_optional(tx)
        .await
        .map(drop)
}

/// Returns whether the team has built a template of this name, or builds one.
pub(crate) async fn has_name(tx: &mut PgConnection, team: Uuid, name: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM template_versions WHERE team_id = $1 AND name = $2)
            OR EXISTS (SELECT 1 FROM builds WHERE team_id = $1 AND name = $2 AND status IN ('pending', 'running')) AS "has!""#,
        team,
        name
    )
    .fetch_one(tx)
    .await
}

/// Returns whether the team has built a template of this name.
pub(crate) async fn is_built(db: &PgPool, team: Uuid, name: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM template_versions WHERE team_id = $1 AND name = $2) AS "is!""#,
        team,
        name
    )
    .fetch_one(db)
    .await
}

/// Returns whether a snapshot of the team has this name or takes it, also one that is being made.
pub(crate) async fn is_snapshot(tx: &mut PgConnection, team: Uuid, name: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM snapshots
            WHERE team_id = $1 AND coalesce(name, replaces) = $2 AND status <> 'deleting') AS "is!""#,
        team,
        name
    )
    .fetch_one(tx)
    .await
}

/// Inserts the next version of the name, moves the tag to it, and returns its number. [`sqlx::Error::RowNotFound`] if what it
/// refers to is being removed. What another version refers to already is found by [`with_key`] behind [`lock_names`] of the same
/// transaction.
pub(crate) async fn insert(tx: &mut PgConnection, new: &NewVersion<'_>, tag: &str) -> sqlx::Result<i32> {
    lock_names(tx, new.team_id).await?;
    let envs = serde_json::to_value(new.envs).unwrap_or_default();
    let version = sqlx::query_scalar!(
        "INSERT INTO template_versions (team_id, name, version, build_id, key, host_id, snapshot_id, image_id, size_mb, vcpus,
            memory_mb, disk_size_mb, envs, default_user, workdir)
         SELECT $1::uuid, $2::text, coalesce(max(version), 0) + 1, $3::uuid, $4::text, $5::uuid, $6::uuid, $7::uuid, $8::bigint,
             $9::integer, $10::integer, $11::integer, $12::jsonb, $13::text, $14::text
         FROM template_versions WHERE team_id = $1 AND name = $2
         HAVING NOT EXISTS (SELECT 1 FROM doomed_images WHERE image_id = $7)
             AND NOT EXISTS (SELECT 1 FROM snapshots WHERE id = $6 AND status <> 'ready')
         RETURNING version",
        new.team_id,
        new.name,
        new.build_id,
        new.key,
        new.host_id,
        new.snapshot_id,
        new.image_id,
        new.size_mb,
        new.vcpus,
        new.memory_mb,
        new.disk_size_mb,
        envs,
        new.default_user,
        new.workdir
    )
    .fetch_one(&mut *tx)
    .await?;
    put_tag(tx, new.team_id, new.name, tag, version).await?;
    Ok(version)
}

/// Makes a tag lead to a version that is there.
pub(crate) async fn put_tag(
    tx: &mut PgConnection,
    team: Uuid,
    name: &str,
    tag: &str,
    version: i32,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO template_tags (team_id, name, tag, version) VALUES ($1, $2, $3, $4)
         ON CONFLICT (team_id, name, tag) DO UPDATE SET version = $4",
        team,
        name,
        tag,
        version
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Finds the version that a tag leads to.
pub(crate) async fn find(db: &PgPool, team: Uuid, name: &str, tag: &str) -> sqlx::Result<Option<Version>> {
    row!(
        "SELECT",
        "FROM template_versions WHERE team_id = $1 AND name = $2
             AND version = (SELECT t.version FROM template_tags t WHERE t.team_id = $1 AND t.name = $2 AND t.tag = $3)",
        team,
        name,
        tag
    )
    .fetch_optional(db)
    .await
}

/// Finds a version by its number.
pub(crate) async fn numbered(
    tx: &mut PgConnection,
    team: Uuid,
    name: &str,
    version: i32,
) -> sqlx::Result<Option<Version>> {
    row!(
        "SELECT",
        "FROM template_versions WHERE team_id = $1 AND name = $2 AND version = $3",
        team,
        name,
        version
    )
    .fetch_optional(tx)
    .await
}

/// Finds the newest version with this key, of any of the team's templates.
pub(crate) async fn with_key<'e>(
    db: impl PgExecutor<'e>,
    team: Uuid,
    key: &str,
) -> sqlx::Result<Option<Version>> {
    row!(
        "SELECT",
        "FROM template_versions WHERE team_id = $1 AND key = $2 ORDER BY created_at DESC LIMIT 1",
        team,
        key
    )
    .fetch_optional(db)
    .await
}

/// Lists a team's templates by name, at most [`LISTED`]: of each the version that [`LATEST`] leads to, or else the newest one.
pub(crate) async fn of_team(db: &PgPool, team: Uuid) -> sqlx::Result<Vec<Version>> {
    row!(
        "SELECT DISTINCT ON (name)",
        "FROM template_versions v WHERE team_id = $1
         ORDER BY name, version = (SELECT t.version FROM template_tags t
             WHERE t.team_id = v.team_id AND t.name = v.name AND t.tag = $2) DESC NULLS LAST, version DESC LIMIT $3",
        team,
        LATEST,
        LISTED
    )
    .fetch_all(db)
    .await
}

/// Lists the versions of a template that are older than `before`, the newest first.
pub(crate) async fn versions(
    db: &PgPool,
    team: Uuid,
    name: &str,
    before: Option<i32>,
    limit: i64,
) -> sqlx::Result<Vec<Version>> {
    row!(
        "SELECT",
        "FROM template_versions WHERE team_id = $1 AND name = $2 AND ($3::integer IS NULL OR version < $3)
         ORDER BY version DESC LIMIT $4",
        team,
        name,
        before,
        limit
    )
    .fetch_all(db)
    .await
}

/// Lists the tags of some of a team's templates by name and tag, at most [`TAGS_LISTED`].
pub(crate) async fn tags<'e>(
    db: impl PgExecutor<'e>,
    team: Uuid,
    names: &[String],
) -> sqlx::Result<Vec<Tag>> {
    sqlx::query_as!(
        Tag,
        "SELECT name, tag, version FROM template_tags WHERE team_id = $1 AND name = ANY($2) ORDER BY name, tag LIMIT $3",
        team,
        names,
        TAGS_LISTED
    )
    .fetch_all(db)
    .await
}

/// Returns the first tags of a template by name, at most [`TAGS_NAMED`]; none if the team has built no such template.
pub(crate) async fn some_tags(db: &PgPool, team: Uuid, name: &str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        "SELECT tag FROM template_tags WHERE team_id = $1 AND name = $2 ORDER BY tag LIMIT $3",
        team,
        name,
        TAGS_NAMED
    )
    .fetch_all(db)
    .await
}

/// Deletes all versions and tags of a template, and returns the number of versions. Images that belong to no other version of
/// the team are to be removed; snapshots that nothing refers to any more are found by the upkeep of builds.
pub(crate) async fn delete(tx: &mut PgConnection, team: Uuid, name: &str) -> sqlx::Result<u64> {
    sqlx::query!(
        "INSERT INTO doomed_images (image_id, host_id)
         SELECT DISTINCT v.image_id, v.host_id FROM template_versions v
         WHERE v.team_id = $1 AND v.name = $2 AND v.image_id IS NOT NULL AND NOT EXISTS (
             SELECT 1 FROM template_versions o WHERE o.team_id = $1 AND o.name <> $2 AND o.image_id = v.image_id)
         ON CONFLICT DO NOTHING",
        team,
        name
    )
    .execute(&mut *tx)
    .await?;
    let deleted = sqlx::query!("DELETE FROM template_versions WHERE team_id = $1 AND name = $2", team, name)
        .execute(tx)
        .await?;
    Ok(deleted.rows_affected())
}

/// Deletes all that a team has of templates, images and snapshots: versions, results in the cache, uses of images, and snapshots,
/// which are to be removed from their hosts; and cancels its builds. Returns the number of versions and snapshots.
pub(crate) async fn delete_all(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<u64> {
    sqlx::query!(
        "INSERT INTO doomed_images (image_id, host_id)
         SELECT DISTINCT image_id, host_id FROM template_versions WHERE team_id = $1 AND image_id IS NOT NULL
         UNION SELECT image_id, host_id FROM images WHERE team_id = $1
         ON CONFLICT DO NOTHING",
        team
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("DELETE FROM images WHERE team_id = $1", team).execute(&mut *tx).await?;
    sqlx::query!("DELETE FROM layers WHERE team_id = $1", team).execute(&mut *tx).await?;
    let versions =
        sqlx::query!("DELETE FROM template_versions WHERE team_id = $1", team).execute(&mut *tx).await?;
    sqlx::query!(
        "UPDATE builds SET cancel_requested = true WHERE team_id = $1 AND status IN ('pending', 'running')",
        team
    )
    .execute(&mut *tx)
    .await?;
    // One that is being made is given up.
    let snapshots = sqlx::query!(
        "UPDATE snapshots SET status = 'deleting', lease_until = now() WHERE team_id = $1 AND status <> 'deleting'",
        team
    )
    .execute(tx)
    .await?;
    Ok(versions.rows_affected() + snapshots.rows_affected())
}

/// Takes up to `limit` images that are to be removed and that nobody works on, for the time of a lease. One that an open build
/// begins with is left until that has ended, and one that a version or a use of any team refers to until that is gone, or of which
/// the host has a copy. That each is being removed is noted, until [`forget_image`] or [`removal_ended`], or the end of the lease.
pub(crate) async fn take_doomed_images(
    db: &PgPool,
    lease: Duration,
    limit: i64,
) -> sqlx::Result<Vec<DoomedImage>> {
    sqlx::query_as!(
        DoomedImage,
        "WITH taken AS (UPDATE doomed_images SET lease_until = now() + make_interval(secs => $1)
         WHERE (image_id, host_id) IN (SELECT d.image_id, d.host_id FROM doomed_images d WHERE d.lease_until < now()
                 AND NOT EXISTS (SELECT 1 FROM builds b
                     WHERE b.status IN ('pending', 'running') AND b.base ->> 'image_id' = d.image_id::text)
                 AND NOT EXISTS (SELECT 1 FROM images i WHERE i.image_id = d.image_id AND i.host_id = d.host_id)
                 AND NOT EXISTS (SELECT 1 FROM copies c WHERE c.artifact_id = d.image_id AND c.host_id = d.host_id)
                 AND NOT EXISTS (SELECT 1 FROM template_versions v
                     WHERE v.image_id = d.image_id AND v.host_id = d.host_id)
             ORDER BY d.lease_until LIMIT $2 FOR UPDATE SKIP LOCKED)
         RETURNING image_id, host_id, lease_until)
         INSERT INTO image_removals (image_id, host_id, ends_at) SELECT image_id, host_id, lease_until FROM taken
         ON CONFLICT (image_id, host_id) DO UPDATE SET ends_at = excluded.ends_at
         RETURNING image_id, host_id",
        lease.as_secs_f64(),
        limit
    )
    .fetch_all(db)
    .await
}

/// Forgets an image that was removed from its host.
pub(crate) async fn forget_image(db: &PgPool, image: Uuid, host: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH ended AS (UPDATE image_removals SET ends_at = now() WHERE image_id = $1 AND host_id = $2)
         DELETE FROM doomed_images WHERE image_id = $1 AND host_id = $2",
        image,
        host
    )
    .execute(db)
    .await
    .map(drop)
}

/// Notes that an image is not being removed from its host any more, which has refused that.
pub(crate) async fn removal_ended(db: &PgPool, image: Uuid, host: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE image_removals SET ends_at = now() WHERE image_id = $1 AND host_id = $2",
        image,
        host
    )
    .execute(db)
    .await
    .map(drop)
}
