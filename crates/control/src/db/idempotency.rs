// SPDX-License-Identifier: Apache-2.0
//! Idempotency keys, with the hash of their request and the sandbox that it created.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// The first request with a key.
#[derive(Debug)]
pub(crate) struct First {
    pub(crate) request_sha256: Vec<u8>,
    pub(crate) sandbox_id: Uuid,
}

/// Claims a key for a sandbox; false if it is taken. Waits for a concurrent claim.
pub(crate) async fn claim(
    tx: &mut PgConnection,
    team: Uuid,
    key: &str,
    request_sha256: &[u8],
    sandbox: Uuid,
) -> sqlx::Result<bool> {
    let claimed = sqlx::query!(
        "INSERT INTO idempotency_keys (team_id, key, request_sha256, sandbox_id) VALUES ($1, $2, $3, $4)
         ON CONFLICT DO NOTHING",
        team,
        key,
        request_sha256,
        sandbox
    )
    .execute(tx)
    .await?;
    Ok(claimed.rows_affected() == 1)
}

/// Returns the first request with this key.
pub(crate) async fn first(db: &PgPool, team: Uuid, key: &str) -> sqlx::Result<Option<First>> {
    sqlx::query_as!(
        First,
        "SELECT request_sha256, sandbox_id FROM idempotency_keys WHERE team_id = $1 AND key = $2",
        team,
        key
    )
    .fetch_optional(db)
    .await
}

/// Releases a key whose sandbox was not created.
pub(crate) async fn release(db: &PgPool, team: Uuid, key: &str, sandbox: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM idempotency_keys WHERE team_id = $1 AND key = $2 AND sandbox_id = $3",
        team,
        key,
        sandbox
    )
    .execute(db)
    .await
    .map(drop)
}

/// Deletes keys older than a day.
pub(crate) async fn prune(db: &PgPool) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM idempotency_keys WHERE created_at < now() - interval '24 hours'")
        .execute(db)
        .await
        .map(drop)
}
