// SPDX-License-Identifier: Apache-2.0
//! Teams: created, renamed, given to another owner, and deleted. A deleted team keeps its row; servers remove what is
//! left of it ([`to_empty`]).

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::Team;

/// One row of the table, with the role of a user.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    slug: Option<String>,
    is_byoc: bool,
    created_at: DateTime<Utc>,
    /// Role of the user whose teams are asked for.
    role: Option<String>,
}

impl Row {
    /// Converts it for the API.
    pub(crate) fn public(self) -> Team {
        Team {
            id: self.id.into(),
            name: self.name,
            slug: self.slug,
            is_byoc: self.is_byoc,
            created_at: self.created_at,
            role: self.role.and_then(|role| role.parse().ok()),
        }
    }
}

/// Inserts a team.
pub(crate) async fn insert(tx: &mut PgConnection, id: Uuid, name: &str, slug: &str) -> sqlx::Result<()> {
    sqlx::query!("INSERT INTO teams (id, name, slug) VALUES ($1, $2, $3)", id, name, slug)
        .execute(tx)
        .await
        .map(drop)
}

/// Finds a team that is not deleted, with the role of this user.
pub(crate) async fn find(db: &PgPool, id: Uuid, user: Option<Uuid>) -> sqlx::Result<Option<Row>> {
    sqlx::query_as!(
        Row,
        r#"SELECT t.id, t.name, t.slug, t.is_byoc, t.created_at, m.role AS "role?"
         FROM teams t LEFT JOIN team_members m ON m.team_id = t.id AND m.user_id = $2
         WHERE t.id = $1 AND t.deleted_at IS NULL"#,
        id,
        user
    )
    .fetch_optional(db)
    .await
}

/// Lists the teams of a user after the team `after`, by id.
pub(crate) async fn of_user(
    db: &PgPool,
    user: Uuid,
    after: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        r#"SELECT t.id, t.name, t.slug, t.is_byoc, t.created_at, m.role AS "role?"
         FROM team_members m JOIN teams t ON t.id = m.team_id
         WHERE m.user_id = $1 AND ($2::uuid IS NULL OR m.team_id > $2) AND t.deleted_at IS NULL
         ORDER BY m.team_id LIMIT $3"#,
        user,
        after,
        limit
    )
    .fetch_all(db)
    .await
}

/// Number of teams that a user owns.
pub(crate) async fn owned_by(tx: &mut PgConnection, user: Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM team_members m JOIN teams t ON t.id = m.team_id
         WHERE m.user_id = $1 AND m.role = 'owner' AND t.deleted_at IS NULL"#,
        user
    )
    .fetch_one(tx)
    .await
}

/// Locks a team, so that its members, its invitations and what it has under quotas change one after the other, and returns its
/// name; `None` if it is deleted.
pub(crate) async fn lock(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("SELECT name FROM teams WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE", id)
        .fetch_optional(tx)
        .await
}

/// Renames a team; false if it is deleted.
pub(crate) async fn rename(db: &PgPool, id: Uuid, name: &str) -> sqlx::Result<bool> {
    let renamed = sqlx::query!("UPDATE teams SET name = $2 WHERE id = $1 AND deleted_at IS NULL", id, name)
        .execute(db)
        .await?;
    Ok(renamed.rows_affected() == 1)
}

/// Marks a locked team as deleted, and removes what lets somebody act for it: its API keys, its invitations with their links, and
/// its members, whose sessions act for another team of theirs from then on.
pub(crate) async fn delete(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("UPDATE teams SET deleted_at = now(), emptied_at = NULL WHERE id = $1", id)
        .execute(&mut *tx)
        .await?;
    sqlx::query!("UPDATE api_keys SET revoked_at = now() WHERE team_id = $1 AND revoked_at IS NULL", id)
        .execute(&mut *tx)
        .await?;
    sqlx::query!(
        "DELETE FROM one_time_links
         WHERE kind = 'invitation' AND subject = ANY (ARRAY(SELECT id FROM invitations WHERE team_id = $1))",
        id
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("DELETE FROM invitations WHERE team_id = $1", id).execute(&mut *tx).await?;
    sqlx::query!("DELETE FROM team_members WHERE team_id = $1", id).execute(&mut *tx).await?;
    sqlx::query!(
        "UPDATE sessions s SET team_id = (SELECT m.team_id FROM team_members m JOIN teams t ON t.id = m.team_id
             WHERE m.user_id = s.user_id AND t.deleted_at IS NULL ORDER BY m.created_at, m.team_id LIMIT 1)
         WHERE s.team_id = $1",
        id
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Lists up to `limit` deleted teams of which something may be left, after the team `after`, by id.
pub(crate) async fn to_empty(db: &PgPool, after: Uuid, limit: i64) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "SELECT id FROM teams WHERE deleted_at IS NOT NULL AND emptied_at IS NULL AND id > $1 ORDER BY id LIMIT $2",
        after,
        limit
    )
    .fetch_all(db)
    .await
}

/// Lists up to `limit` sandboxes of a team that nobody has begun to delete.
pub(crate) async fn sandboxes_left(db: &PgPool, team: Uuid, limit: i64) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "SELECT id FROM sandboxes WHERE team_id = $1 AND status NOT IN ('stopping', 'stopped') ORDER BY id LIMIT $2",
        team,
        limit
    )
    .fetch_all(db)
    .await
}

/// Records that nothing is left of a deleted team, and removes its channels; false if there is something.
pub(crate) async fn emptied(db: &PgPool, team: Uuid) -> sqlx::Result<bool> {
    // The orders are those of indexes: to look whether there is a row, the planner would read the tables.
    let emptied = sqlx::query!(
        "UPDATE teams SET emptied_at = now() WHERE id = $1 AND deleted_at IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM sandboxes WHERE team_id = $1 AND status <> 'stopped')
             AND (SELECT id FROM snapshots WHERE team_id = $1 ORDER BY name LIMIT 1) IS NULL
             AND (SELECT name FROM template_versions WHERE team_id = $1 ORDER BY name LIMIT 1) IS NULL
             AND (SELECT reference FROM images WHERE team_id = $1 ORDER BY reference LIMIT 1) IS NULL
             AND NOT EXISTS (SELECT 1 FROM builds WHERE team_id = $1 AND status IN ('pending', 'running'))",
        team
    )
    .execute(db)
    .await?;
    if emptied.rows_affected() == 0 {
        return Ok(false);
    }
    // Last, so that the ends of its sandboxes were told.
    sqlx::query!("DELETE FROM channels WHERE team_id = $1", team).execute(db).await?;
    Ok(true)
}
