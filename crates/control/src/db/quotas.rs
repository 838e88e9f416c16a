// SPDX-License-Identifier: Apache-2.0
//! What teams use of their quotas. Whoever adds to it has locked the team first ([`lock`]), so that no two exceed a quota together.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// Limits of a team of its own.
#[derive(Debug)]
pub(crate) struct Own {
    /// A number of each quota that is not that of the server, by its name.
    pub(crate) quotas: Option<serde_json::Value>,
}

/// What a team's sandboxes use. Those that are being deleted do not count, nor those that failed before they ran.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OfSandboxes {
    pub(crate) sandboxes: i64,
    pub(crate) running: i64,
    pub(crate) paused: i64,
    pub(crate) vcpus: i64,
    pub(crate) memory_mb: i64,
    pub(crate) disk_mb: i64,
}

/// Locks a team and returns its quotas; `None` if it is deleted.
pub(crate) async fn lock(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<Option<Own>> {
    sqlx::query_as!(
        Own,
        "SELECT quotas FROM teams WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE",
        team
    )
    .fetch_optional(tx)
    .await
}

/// Returns the quotas of a team without locking it; `None` if it is deleted.
pub(crate) async fn own(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<Option<Own>> {
    sqlx::query_as!(Own, "SELECT quotas FROM teams WHERE id = $1 AND deleted_at IS NULL", team)
        .fetch_optional(tx)
        .await
}

/// Gives a team quotas of its own; false if it is deleted.
pub(crate) async fn set(db: &PgPool, team: Uuid, quotas: Option<&serde_json::Value>) -> sqlx::Result<bool> {
    let set = sqlx::query!("UPDATE teams SET quotas = $2 WHERE id = $1 AND deleted_at IS NULL", team, quotas)
        .execute(db)
        .await?;
    Ok(set.rows_affected() == 1)
}

/// Returns what a team's sandboxes use.
pub(crate) async fn of_sandboxes(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<OfSandboxes> {
    sqlx::query_as!(
        OfSandboxes,
        r#"SELECT count(*) AS "sandboxes!", count(*) FILTER (WHERE reserved) AS "running!",
            count(*) FILTER (WHERE NOT reserved) AS "paused!",
            coalesce(sum(vcpus) FILTER (WHERE reserved), 0) AS "vcpus!",
            coalesce(sum(memory_mb) FILTER (WHERE reserved), 0) AS "memory_mb!",
            coalesce(sum(disk_size_mb), 0) AS "disk_mb!"
         FROM sandboxes
         WHERE team_id = $1 AND status <> 'stopped' AND status <> 'stopping'
             AND NOT (status = 'error' AND started_at IS NULL)"#,
        team
    )
    .fetch_one(tx)
    .await
}

/// Number of a team's sandboxes that were created with an id from `first` on, deleted ones included.
pub(crate) async fn created_from(tx: &mut PgConnection, team: Uuid, first: Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM sandboxes WHERE team_id = $1 AND id >= $2"#,
        team,
        first
    )
    .fetch_one(tx)
    .await
}

/// Number of names of templates that a team has built or builds, but the name `except`.
pub(crate) async fn templates(tx: &mut PgConnection, team: Uuid, except: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM (
             SELECT name FROM template_versions WHERE team_id = $1
             UNION SELECT name FROM builds WHERE team_id = $1 AND status IN ('pending', 'running')) AS names
         WHERE name <> $2"#,
        team,
        except
    )
    .fetch_one(tx)
    .await
}
