// SPDX-License-Identifier: Apache-2.0
//! Users and sign-ups. Addresses are stored in small letters.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor, PgPool};
use uuid::Uuid;
use wrenn_api::TeamId;

/// A user. The row of a deleted one stays for some days.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) id: Uuid,
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) password_hash: Option<String>,
    pub(crate) status: String,
    pub(crate) is_admin: bool,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) last_login_at: Option<DateTime<Utc>>,
}

impl User {
    /// Whether the user may sign in.
    pub(crate) fn is_active(&self) -> bool {
        self.status == "active"
    }

    /// Whether the user was deleted, and only the row is left.
    pub(crate) fn is_deleted(&self) -> bool {
        self.status == "deleted"
    }
}

/// A sign-up that waits for its link to be used.
pub(crate) struct SignUp {
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) password_hash: String,
}

/// Returns the user with an address.
pub(crate) async fn by_email(db: impl PgExecutor<'_>, email: &str) -> sqlx::Result<Option<User>> {
    sqlx::query_as!(
        User,
        "SELECT id, email, name, password_hash, status, is_admin, created_at, last_login_at FROM users
         WHERE lower(email) = lower($1)",
        email
    )
    .fetch_optional(db)
    .await
}

/// Returns a user.
pub(crate) async fn find(db: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<User>> {
    sqlx::query_as!(
        User,
        "SELECT id, email, name, password_hash, status, is_admin, created_at, last_login_at FROM users WHERE id = $1",
        id
    )
    .fetch_optional(db)
    .await
}

/// Locks a user, so that what the account has changes one after the other, and returns it.
pub(crate) async fn lock(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<User>> {
    sqlx::query_as!(
        User,
        "SELECT id, email, name, password_hash, status, is_admin, created_at, last_login_at FROM users WHERE id = $1
         FOR UPDATE",
        id
    )
    .fetch_optional(tx)
    .await
}

/// Returns the administrator of the platform who was made first, if there is one who was not deleted.
pub(crate) async fn first_admin(db: impl PgExecutor<'_>) -> sqlx::Result<Option<User>> {
    sqlx::query_as!(
        User,
        "SELECT id, email, name, password_hash, status, is_admin, created_at, last_login_at FROM users
         WHERE is_admin AND status <> 'deleted' ORDER BY id LIMIT 1"
    )
    .fetch_optional(db)
    .await
}

/// Returns whether a user is the only administrator of the platform who may sign in. Whoever asks after it waits until the transaction
/// ends, so the answer holds that long.
pub(crate) async fn is_last_admin(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<bool> {
    /// Key of the advisory lock, not used elsewhere.
    const ADMINS: i64 = 0x5772_656e_6e06;
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", ADMINS).execute(&mut *tx).await?;
    // A statement of its own, which sees what was changed while the lock was waited for. In the order of an index: to look whether
    // there is another one, the planner would read the table.
    sqlx::query_scalar!(
        r#"SELECT (SELECT id FROM users WHERE id = $1 AND is_admin AND status = 'active') IS NOT NULL
             AND (SELECT id FROM users WHERE is_admin AND status = 'active' AND id <> $1 ORDER BY id LIMIT 1) IS NULL
             AS "last!""#,
        id
    )
    .fetch_one(tx)
    .await
}

/// Adds a user who may sign in; `false` if there is one with the address.
pub(crate) async fn insert(
    tx: &mut PgConnection,
    id: Uuid,
    email: &str,
    name: &str,
    password_hash: Option<&str>,
    is_admin: bool,
) -> sqlx::Result<bool> {
    let added = sqlx::query!(
        "INSERT INTO users (id, email, name, password_hash, is_admin, status, activated_at)
         VALUES ($1, $2, $3, $4, $5, 'active', now()) ON CONFLICT (lower(email)) DO NOTHING",
        id,
        email,
        name,
        password_hash,
        is_admin
    )
    .execute(tx)
    .await?;
    Ok(added.rows_affected() == 1)
}

/// Lets a user administer the platform, and sign in again if that was taken away.
pub(crate) async fn make_admin(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("UPDATE users SET is_admin = true, status = 'active', deleted_at = NULL WHERE id = $1", id)
        .execute(tx)
        .await
        .map(drop)
}

/// Renames a user.
pub(crate) async fn rename(db: &PgPool, id: Uuid, name: &str) -> sqlx::Result<()> {
    sqlx::query!("UPDATE users SET name = $2 WHERE id = $1", id, name).execute(db).await.map(drop)
}

/// Sets the password of a user.
pub(crate) async fn set_password(tx: &mut PgConnection, id: Uuid, hash: &str) -> sqlx::Result<()> {
    sqlx::query!("UPDATE users SET password_hash = $2 WHERE id = $1", id, hash).execute(tx).await.map(drop)
}

/// Marks a user as deleted, and removes what lets somebody act as them: memberships, sessions, API keys, links and accounts at
/// providers.
pub(crate) async fn delete(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("UPDATE users SET status = 'deleted', deleted_at = now() WHERE id = $1", id)
        .execute(&mut *tx)
        .await?;
    sqlx::query!("UPDATE sessions SET revoked_at = now() WHERE user_id = $1 AND revoked_at IS NULL", id)
        .execute(&mut *tx)
        .await?;
    sqlx::query!("UPDATE api_keys SET revoked_at = now() WHERE created_by = $1 AND revoked_at IS NULL", id)
        .execute(&mut *tx)
        .await?;
    sqlx::query!(
        "DELETE FROM one_time_links WHERE kind IN ('sign_in', 'password_reset') AND subject = $1",
        id
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("DELETE FROM identities WHERE user_id = $1", id).execute(&mut *tx).await?;
    sqlx::query!("DELETE FROM team_members WHERE user_id = $1", id).execute(tx).await.map(drop)
}

/// Removes the row of a deleted user for good.
pub(crate) async fn remove(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM users WHERE id = $1 AND status = 'deleted'", id).execute(tx).await.map(drop)
}

/// Returns up to `limit` users who were deleted this long ago.
pub(crate) async fn to_remove(db: &PgPool, kept: Duration, limit: i64) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "SELECT id FROM users WHERE status = 'deleted' AND deleted_at <= now() - make_interval(secs => $1)
         ORDER BY deleted_at LIMIT $2",
        kept.as_secs_f64(),
        limit
    )
    .fetch_all(db)
    .await
}

/// Returns the providers with which a user can sign in.
pub(crate) async fn providers(db: &PgPool, id: Uuid) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!("SELECT provider FROM identities WHERE user_id = $1 ORDER BY provider", id)
        .fetch_all(db)
        .await
}

/// Returns the teams that a user owns, by id, which is the order in which they are locked.
pub(crate) async fn owned_teams(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "SELECT m.team_id FROM team_members m JOIN teams t ON t.id = m.team_id
         WHERE m.user_id = $1 AND m.role = 'owner' AND t.deleted_at IS NULL ORDER BY m.team_id",
        id
    )
    .fetch_all(tx)
    .await
}

/// Locks the oldest team, which is not that of the platform, and returns it.
pub(crate) async fn lock_first_team(tx: &mut PgConnection) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "SELECT id FROM teams WHERE deleted_at IS NULL AND id <> $1 ORDER BY id LIMIT 1 FOR NO KEY UPDATE",
        TeamId::PLATFORM.uuid()
    )
    .fetch_optional(tx)
    .await
}

/// Returns whether a team has no member.
pub(crate) async fn has_no_member(tx: &mut PgConnection, team: Uuid) -> sqlx::Result<bool> {
    // In the order of an index: to look whether there is a row, the planner would read the table.
    sqlx::query_scalar!(
        r#"SELECT (SELECT user_id FROM team_members WHERE team_id = $1 ORDER BY user_id LIMIT 1) IS NULL AS "none!""#,
        team
    )
    .fetch_one(tx)
    .await
}

/// Returns whether a user is in a team.
pub(crate) async fn is_in_a_team(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM team_members m JOIN teams t ON t.id = m.team_id
         WHERE m.user_id = $1 AND t.deleted_at IS NULL) AS "any!""#,
        id
    )
    .fetch_one(tx)
    .await
}

/// Adds a sign-up.
pub(crate) async fn add_sign_up(
    tx: &mut PgConnection,
    id: Uuid,
    new: &SignUp,
    lifetime: Duration,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO sign_ups (id, email, name, password_hash, expires_at)
         VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))",
        id,
        new.email,
        new.name,
        new.password_hash,
        lifetime.as_secs_f64()
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Returns whether a sign-up still waits for its link.
pub(crate) async fn sign_up_waits(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM sign_ups WHERE id = $1 AND expires_at > now()) AS "waits!""#,
        id
    )
    .fetch_one(tx)
    .await
}

/// Takes a sign-up whose link is used, and removes all others of its address.
pub(crate) async fn take_sign_up(tx: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<SignUp>> {
    let taken = sqlx::query_as!(
        SignUp,
        "DELETE FROM sign_ups WHERE id = $1 RETURNING email, name, password_hash",
        id
    )
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(sign_up) = &taken {
        sqlx::query!("DELETE FROM sign_ups WHERE lower(email) = lower($1)", sign_up.email)
            .execute(tx)
            .await?;
    }
    Ok(taken)
}

/// Removes sign-ups whose time is over, at most this many.
pub(crate) async fn remove_sign_ups(db: &PgPool, limit: i64) -> sqlx::Result<u64> {
    sqlx::query!(
        "DELETE FROM sign_ups WHERE id = ANY (ARRAY(
             SELECT id FROM sign_ups WHERE expires_at <= now() ORDER BY expires_at LIMIT $1))",
        limit
    )
    .execute(db)
    .await
    .map(|done| done.rows_affected())
}
