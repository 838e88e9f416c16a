// SPDX-License-Identifier: Apache-2.0
//! Sessions of users, and what their users may do in a team.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// Valid session of an active user.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) id: Uuid,
    pub(crate) user_id: Uuid,
    /// Team that the user acts for.
    pub(crate) team_id: Option<Uuid>,
    /// Whether the user administers the platform.
    pub(crate) is_admin: bool,
    /// Role of the user in that team; none if the user or the team is gone from it.
    pub(crate) role: Option<String>,
    /// Whether the last use that was recorded is long ago.
    pub(crate) unnoted: bool,
}

/// A session to be added.
pub(crate) struct NewRow<'a> {
    pub(crate) id: Uuid,
    pub(crate) user: Uuid,
    pub(crate) kind: &'a str,
    pub(crate) secret_sha256: Option<&'a [u8]>,
    pub(crate) method: &'a str,
    pub(crate) address: Option<&'a str>,
    pub(crate) user_agent: Option<&'a str>,
    pub(crate) lifetime_sec: f64,
}

/// Selects a valid session of an active user: `valid!(team, condition, arguments)`, with the role of the user in that team.
macro_rules! valid {
    ($team:literal, $condition:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            Session,
            r#"SELECT s.id, s.user_id, s.team_id, u.is_admin, m.role AS "role?",
             s.last_used_at < now() - interval '1 minute' AS "unnoted!"
         FROM sessions s JOIN users u ON u.id = s.user_id
         LEFT JOIN (team_members m JOIN teams t ON t.id = m.team_id AND t.deleted_at IS NULL)
             ON m.team_id = "# + $team + r#" AND m.user_id = s.user_id
         WHERE "# + $condition
                + r#" AND s.revoked_at IS NULL AND s.expires_at > now() AND u.status = 'active'"#,
            $($argument),*
        )
    };
}

/// Returns the session that a token names.
pub(crate) async fn find(db: &PgPool, id: Uuid) -> sqlx::Result<Option<Session>> {
    valid!("s.team_id", "s.id = $1 AND s.kind = 'token'", id).fetch_optional(db).await
}

/// Returns the session whose cookie has this hash.
pub(crate) async fn find_cookie(db: &PgPool, secret_sha256: &[u8]) -> sqlx::Result<Option<Session>> {
    valid!("s.team_id", "s.secret_sha256 = $1", secret_sha256).fetch_optional(db).await
}

/// Returns a session of either kind, with the role of its user in a team, which need not be the session's.
pub(crate) async fn in_team(db: &PgPool, id: Uuid, team: Uuid) -> sqlx::Result<Option<Session>> {
    valid!("$2", "s.id = $1", id, team).fetch_optional(db).await
}

/// Records the use of a session, at most once a minute.
pub(crate) async fn used(db: &PgPool, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE sessions SET last_used_at = now() WHERE id = $1 AND last_used_at < now() - interval '1 minute'",
        id
    )
    .execute(db)
    .await
    .map(drop)
}

/// Adds a session, which acts for the team of the user's last one if the user is still in it, or else for the oldest of the user's
/// teams. Returns that team, and when the session ends.
pub(crate) async fn insert(
    tx: &mut PgConnection,
    new: &NewRow<'_>,
) -> sqlx::Result<(Option<Uuid>, chrono::DateTime<chrono::Utc>)> {
    let row = sqlx::query!(
        "INSERT INTO sessions (id, user_id, team_id, kind, secret_sha256, method, address, user_agent, expires_at)
         VALUES ($1, $2, (
             SELECT m.team_id FROM team_members m JOIN teams t ON t.id = m.team_id AND t.deleted_at IS NULL
             WHERE m.user_id = $2
             ORDER BY m.team_id = (SELECT l.team_id FROM sessions l WHERE l.user_id = $2 ORDER BY l.id DESC LIMIT 1)
                 DESC NULLS LAST, m.created_at, m.team_id
             LIMIT 1
         ), $3, $4, $5, $6, $7, now() + make_interval(secs => $8))
         RETURNING team_id, expires_at",
        new.id,
        new.user,
        new.kind,
        new.secret_sha256,
        new.method,
        new.address,
        new.user_agent,
        new.lifetime_sec
    )
    .fetch_one(&mut *tx)
    .await?;
    Ok((row.team_id, row.expires_at))
}

/// Ends the oldest sessions of a user beyond a number.
pub(crate) async fn revoke_beyond(tx: &mut PgConnection, user: Uuid, most: i64) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE sessions SET revoked_at = now() WHERE revoked_at IS NULL AND id IN (
             SELECT id FROM sessions WHERE user_id = $1 AND revoked_at IS NULL AND expires_at > now()
             ORDER BY id DESC OFFSET $2)",
        user,
        most
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Records a sign-in of a user.
pub(crate) async fn signed_in(tx: &mut PgConnection, user: Uuid, method: &str) -> sqlx::Result<()> {
    sqlx::query!("UPDATE users SET last_login_at = now(), last_login_method = $2 WHERE id = $1", user, method)
        .execute(tx)
        .await
        .map(drop)
}

/// Ends a session of a user; `false` if the user has no such session.
pub(crate) async fn revoke(db: &PgPool, user: Uuid, id: Uuid) -> sqlx::Result<bool> {
    let ended = sqlx::query!(
        "UPDATE sessions SET revoked_at = now()
         WHERE id = $1 AND user_id = $2 AND revoked_at IS NULL AND expires_at > now()",
        id,
        user
    )
    .execute(db)
    .await?;
    Ok(ended.rows_affected() > 0)
}

/// Ends all sessions of a user, but possibly one.
pub(crate) async fn revoke_all(tx: &mut PgConnection, user: Uuid, but: Option<Uuid>) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE sessions SET revoked_at = now()
         WHERE user_id = $1 AND revoked_at IS NULL AND ($2::uuid IS NULL OR id <> $2)",
        user,
        but
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Lets a session act for another team.
pub(crate) async fn switch_team(db: &PgPool, id: Uuid, team: Uuid) -> sqlx::Result<()> {
    sqlx::query!("UPDATE sessions SET team_id = $2 WHERE id = $1", id, team).execute(db).await.map(drop)
}

/// A session, for its user.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) id: Uuid,
    pub(crate) kind: String,
    pub(crate) method: String,
    pub(crate) address: Option<String>,
    pub(crate) user_agent: Option<String>,
    pub(crate) created_at: chrono::DateTime<chrono::Utc>,
    pub(crate) last_used_at: chrono::DateTime<chrono::Utc>,
    pub(crate) expires_at: chrono::DateTime<chrono::Utc>,
}

/// Returns the sessions of a user that have not ended, the newest first. There are no more than a user may have.
pub(crate) async fn list(db: &PgPool, user: Uuid) -> sqlx::Result<Vec<Listed>> {
    sqlx::query_as!(
        Listed,
        "SELECT id, kind, method, address, user_agent, created_at, last_used_at, expires_at FROM sessions
         WHERE user_id = $1 AND revoked_at IS NULL AND expires_at > now() ORDER BY id DESC",
        user
    )
    .fetch_all(db)
    .await
}

/// Removes a number of sessions that ended long ago.
pub(crate) async fn remove_old(db: &PgPool) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM sessions WHERE id IN (
             SELECT id FROM sessions WHERE expires_at < now() - interval '7 days' ORDER BY expires_at LIMIT 1000)"
    )
    .execute(db)
    .await
    .map(drop)
}
