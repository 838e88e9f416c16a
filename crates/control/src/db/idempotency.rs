// SPDX-License-Identifier: Apache-2.0
//! Idempotency keys, with the hash of their request and the sandbox or named snapshot that it made.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// What a request makes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Made {
    Sandbox(Uuid),
    Snapshot(Uuid),
}

/// The first request with a key, with the id of either a sandbox or a snapshot.
#[derive(Debug)]
pub(crate) struct First {
    pub(crate) request_sha256: Vec<u8>,
    pub(crate) sandbox_id: Option<Uuid>,
    pub(crate) snapshot_id: Option<Uuid>,
    /// Whether the snapshot was made; it may have been deleted since.
    pub(crate) snapshot_made: bool,
}

/// Claims a key for what is made; false if it is taken. Waits for a concurrent claim.
pub(crate) async fn claim(
    tx: &mut PgConnection,
    team: Uuid,
    key: &str,
    request_sha256: &[u8],
    made: Made,
) -> sqlx::Result<bool> {
    let (sandbox, snapshot) = match made {
        Made::Sandbox(id) => (Some(id), None),
        Made::Snapshot(id) => (None, Some(id)),
    };
    let claimed = sqlx::query!(
        "INSERT INTO idempotency_keys (team_id, key, request_sha256, sandbox_id, snapshot_id) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT DO NOTHING",
        team,
        key,
        request_sha256,
        sandbox,
        snapshot
    )
    .execute(tx)
    .await?;
    Ok(claimed.rows_affected() == 1)
}

/// Returns the first request with this key.
pub(crate) async fn first(db: &PgPool, team: Uuid, key: &str) -> sqlx::Result<Option<First>> {
    sqlx::query_as!(
        First,
        "SELECT request_sha256, sandbox_id, snapshot_id, snapshot_made FROM idempotency_keys
         WHERE team_id = $1 AND key = $2",
        team,
        key
    )
    .fetch_optional(db)
    .await
}

/// Releases a key whose sandbox or snapshot was not made.
pub(crate) async fn release(db: &PgPool, team: Uuid, key: &str, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM idempotency_keys WHERE team_id = $1 AND key = $2 AND $3 IN (sandbox_id, snapshot_id)",
        team,
        key,
        id
    )
    .execute(db)
    .await
    .map(drop)
}

/// Records that the snapshot of a key, if it has one, was made.
pub(crate) async fn snapshot_made(tx: &mut PgConnection, snapshot: Uuid) -> sqlx::Result<()> {
    sqlx::query!("UPDATE idempotency_keys SET snapshot_made = true WHERE snapshot_id = $1", snapshot)
        .execute(tx)
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
