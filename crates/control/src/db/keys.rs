// SPDX-License-Identifier: Apache-2.0
//! API keys, looked up by the SHA-256 of their secret.

use sqlx::PgPool;
use uuid::Uuid;

/// Valid key.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) id: Uuid,
    pub(crate) team_id: Uuid,
    pub(crate) secret_sha256: Vec<u8>,
}

/// Returns the key with this hash if it and its team are valid.
pub(crate) async fn find(db: &PgPool, secret_sha256: &[u8]) -> sqlx::Result<Option<Key>> {
    sqlx::query_as!(
        Key,
        "SELECT k.id, k.team_id, k.secret_sha256 FROM api_keys k JOIN teams t ON t.id = k.team_id
         WHERE k.secret_sha256 = $1 AND k.revoked_at IS NULL AND t.deleted_at IS NULL",
        secret_sha256
    )
    .fetch_optional(db)
    .await
}

/// Returns whether a key and its team are still valid.
pub(crate) async fn is_valid(db: &PgPool, id: Uuid) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM api_keys k JOIN teams t ON t.id = k.team_id
         WHERE k.id = $1 AND k.revoked_at IS NULL AND t.deleted_at IS NULL) AS "valid!""#,
        id
    )
    .fetch_one(db)
    .await
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

/// Returns the oldest team; creates one if there is none.
pub(crate) async fn first_team(db: &PgPool, new: Uuid, name: &str) -> sqlx::Result<Uuid> {
    let mut tx = db.begin().await?;
    sqlx::query!("LOCK TABLE teams IN SHARE ROW EXCLUSIVE MODE").execute(&mut *tx).await?;
    let present = sqlx::query_scalar!("SELECT id FROM teams WHERE deleted_at IS NULL ORDER BY id LIMIT 1")
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

/// Adds a key.
pub(crate) async fn insert(
    db: &PgPool,
    id: Uuid,
    team: Uuid,
    name: &str,
    prefix: &str,
    secret_sha256: &[u8],
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO api_keys (id, team_id, name, prefix, secret_sha256) VALUES ($1, $2, $3, $4, $5)",
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
