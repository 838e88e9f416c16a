// SPDX-License-Identifier: Apache-2.0
//! Keys with which URLs of files are signed, and the sandboxes that these lead to.

use sqlx::PgPool;
use uuid::Uuid;

/// A key that is accepted.
pub(crate) struct SigningKey {
    pub(crate) number: i32,
    pub(crate) secret: Vec<u8>,
}

/// Returns all keys, the latest first.
pub(crate) async fn all(db: &PgPool) -> sqlx::Result<Vec<SigningKey>> {
    sqlx::query_as!(SigningKey, "SELECT number, secret FROM signing_keys ORDER BY number DESC")
        .fetch_all(db)
        .await
}

/// Adds a key, which signs from now on, and removes those that were replaced more than this number of seconds ago.
pub(crate) async fn rotate(db: &PgPool, secret: &[u8], kept_sec: f64) -> sqlx::Result<()> {
    let mut tx = db.begin().await?;
    sqlx::query!("LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE").execute(&mut *tx).await?;
    sqlx::query!("UPDATE signing_keys SET replaced_at = now() WHERE replaced_at IS NULL")
        .execute(&mut *tx)
        .await?;
    sqlx::query!("DELETE FROM signing_keys WHERE replaced_at <= now() - make_interval(secs => $1)", kept_sec)
        .execute(&mut *tx)
        .await?;
    sqlx::query!("INSERT INTO signing_keys (secret) VALUES ($1)", secret).execute(&mut *tx).await?;
    tx.commit().await
}

/// Returns the team of a sandbox that is not stopped.
pub(crate) async fn team_of(db: &PgPool, sandbox: Uuid) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "SELECT s.team_id FROM sandboxes s JOIN teams t ON t.id = s.team_id
         WHERE s.id = $1 AND s.status NOT IN ('stopping', 'stopped') AND t.deleted_at IS NULL",
        sandbox
    )
    .fetch_optional(db)
    .await
}
