// SPDX-License-Identifier: Apache-2.0
//! API keys, looked up by the SHA-256 of their secret.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::{ApiKey, KeyMaker, TeamId};

/// Valid key.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) id: Uuid,
    pub(crate) team_id: Uuid,
    pub(crate) secret_sha256: Vec<u8>,
    /// Whether who has it administers the platform.
    pub(crate) is_admin: bool,
    /// Names of permissions; none if the key may do all that an administrator of the team may.
    pub(crate) scopes: Option<Vec<String>>,
    /// When it ends; none if never.
    pub(crate) expires_at: Option<DateTime<Utc>>,
    /// User who made it; none if the operator did.
    pub(crate) created_by: Option<Uuid>,
    /// Role of that user in the team; none if the user is not in it.
    pub(crate) maker_role: Option<String>,
    /// Whether that user administers the platform; none if the user is gone.
    pub(crate) maker_is_admin: Option<bool>,
    /// Whether the last use that was recorded is long ago.
    pub(crate) unnoted: bool,
}

/// Selects a key if it and its team are valid: `valid!(condition, argument)`. A key of a member who was shut out is not.
macro_rules! valid {
    ($condition:literal, $argument:expr) => {
        sqlx::query_as!(
            Key,
            r#"SELECT k.id, k.team_id, k.secret_sha256, k.is_admin, k.scopes, k.expires_at, k.created_by, m.role AS "maker_role?",
             (u.is_admin AND u.status = 'active') AS "maker_is_admin?",
             (k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 minute') AS "unnoted!"
         FROM api_keys k JOIN teams t ON t.id = k.team_id
         LEFT JOIN users u ON u.id = k.created_by
         LEFT JOIN team_members m ON m.team_id = k.team_id AND m.user_id = k.created_by
         WHERE "#
                + $condition
                + r#" AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
             AND t.deleted_at IS NULL AND (m.role IS NULL OR u.status = 'active')"#,
            $argument
        )
    };
}

/// Returns the key with this hash if it and its team are valid. A key of a member who was shut out is not.
pub(crate) async fn find(db: &PgPool, secret_sha256: &[u8]) -> sqlx::Result<Option<Key>> {
    valid!("k.secret_sha256 = $1", secret_sha256).fetch_optional(db).await
}

/// Returns the key with this id if it and its team are valid. A key of a member who was shut out is not.
pub(crate) async fn find_id(db: &PgPool, id: Uuid) -> sqlx::Result<Option<Key>> {
    valid!("k.id = $1", id).fetch_optional(db).await
}

/// Records the use of a key, at most once a minute.
pub(crate) async fn used(db: &PgPool, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE api_keys SET last_used_at = now()
         WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')",
        id
    )
    .execute(db)
    .await
    .map(drop)
}

/// A key to be added.
pub(crate) struct NewRow<'a> {
    pub(crate) id: Uuid,
    pub(crate) team: Uuid,
    pub(crate) name: &'a str,
    pub(crate) prefix: &'a str,
    pub(crate) secret_sha256: &'a [u8],
    pub(crate) is_admin: bool,
    pub(crate) created_by: Option<Uuid>,
    pub(crate) scopes: Option<&'a [String]>,
    pub(crate) expires_at: Option<DateTime<Utc>>,
}

/// Adds a key; `false` if the team has `most` valid ones.
pub(crate) async fn insert(tx: &mut PgConnection, new: &NewRow<'_>, most: i64) -> sqlx::Result<bool> {
    let added = sqlx::query!(
        "INSERT INTO api_keys (id, team_id, name, prefix, secret_sha256, is_admin, created_by, scopes, expires_at)
         SELECT $1::uuid, $2::uuid, $3::text, $4::text, $5::bytea, $6::boolean, $7::uuid, $8::text[], $9::timestamptz
         WHERE (SELECT count(*) FROM api_keys WHERE team_id = $2 AND revoked_at IS NULL) < $10",
        new.id,
        new.team,
        new.name,
        new.prefix,
        new.secret_sha256,
        new.is_admin,
        new.created_by,
        new.scopes,
        new.expires_at,
        most
    )
    .execute(tx)
    .await?;
    Ok(added.rows_affected() == 1)
}

/// A key of a list, with who made it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) prefix: String,
    pub(crate) scopes: Option<Vec<String>>,
    pub(crate) created_by: Option<Uuid>,
    pub(crate) maker_name: Option<String>,
    pub(crate) maker_email: Option<String>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) last_used_at: Option<DateTime<Utc>>,
    pub(crate) expires_at: Option<DateTime<Utc>>,
}

impl Row {
    /// Converts it for the API.
    pub(crate) fn public(self) -> ApiKey {
        let (name, email) = (self.maker_name, self.maker_email);
        ApiKey {
            id: self.id.into(),
            name: self.name,
            prefix: self.prefix,
            scopes: self.scopes,
            created_by: self.created_by.map(|id| KeyMaker { id: id.into(), name, email }),
            created_at: self.created_at,
            last_used_at: self.last_used_at,
            expires_at: self.expires_at,
        }
    }
}

/// Returns a page of a team's keys that were not revoked, the newest first, before the key `before`.
pub(crate) async fn page(
    db: &PgPool,
    team: Uuid,
    before: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        r#"SELECT k.id, k.name, k.prefix, k.scopes, k.created_by, u.name AS "maker_name?", u.email AS "maker_email?",
             k.created_at, k.last_used_at, k.expires_at
         FROM api_keys k LEFT JOIN users u ON u.id = k.created_by
         WHERE k.team_id = $1 AND k.revoked_at IS NULL AND ($2::uuid IS NULL OR k.id < $2)
         ORDER BY k.id DESC LIMIT $3"#,
        team,
        before,
        limit
    )
    .fetch_all(db)
    .await
}

/// Returns a key of a team that was not revoked, locked.
pub(crate) async fn lock(tx: &mut PgConnection, team: Uuid, id: Uuid) -> sqlx::Result<Option<Row>> {
    sqlx::query_as!(
        Row,
        r#"SELECT k.id, k.name, k.prefix, k.scopes, k.created_by, u.name AS "maker_name?", u.email AS "maker_email?",
             k.created_at, k.last_used_at, k.expires_at
         FROM api_keys k LEFT JOIN users u ON u.id = k.created_by
         WHERE k.team_id = $1 AND k.id = $2 AND k.revoked_at IS NULL
         FOR UPDATE OF k"#,
        team,
        id
    )
    .fetch_optional(tx)
    .await
}

/// Changes a key; without `is_admin`, it stays as it is whether who has it administers the platform.
pub(crate) async fn update(
    tx: &mut PgConnection,
    id: Uuid,
    name: &str,
    scopes: Option<&[String]>,
    is_admin: Option<bool>,
    expires_at: Option<DateTime<Utc>>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE api_keys SET name = $2, scopes = $3, is_admin = coalesce($4, is_admin), expires_at = $5 WHERE id = $1",
        id,
        name,
        scopes,
        is_admin,
        expires_at
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Revokes a key of a team and returns its name; `None` if the team has no such key.
pub(crate) async fn revoke(db: &PgPool, team: Uuid, id: Uuid) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        "UPDATE api_keys SET revoked_at = now() WHERE team_id = $1 AND id = $2 AND revoked_at IS NULL RETURNING name",
        team,
        id
    )
    .fetch_optional(db)
    .await
}

/// Returns the oldest team, which is not that of the platform; creates one if there is none.
pub(crate) async fn first_team(db: &PgPool, new: Uuid, name: &str) -> sqlx::Result<Uuid> {
    let mut tx = db.begin().await?;
    sqlx::query!("LOCK TABLE teams IN SHARE ROW EXCLUSIVE MODE").execute(&mut *tx).await?;
    let present = sqlx::query_scalar!(
        "SELECT id FROM teams WHERE deleted_at IS NULL AND id <> $1 ORDER BY id LIMIT 1",
        TeamId::PLATFORM.uuid()
    )
    .fetch_optional(&mut *tx)
    .await?;
    let id = match present {
        Some(id) => id,
        None => {
            sqlx::query!("INSERT INTO teams (id, name) VALUES ($1, $2)", new, name).execute(&mut *tx).await?;
            new
        }
    };
    tx.commit().await?;
    Ok(id)
}

/// Adds a key of who administers the platform.
pub(crate) async fn insert_admin(
    db: &PgPool,
    id: Uuid,
    team: Uuid,
    name: &str,
    prefix: &str,
    secret_sha256: &[u8],
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO api_keys (id, team_id, name, prefix, secret_sha256, is_admin) VALUES ($1, $2, $3, $4, $5, true)",
        id,
        team,
        name,
        prefix,
        secret_sha256
    )
    .execute(db)
    .await
    .map(drop)
}
