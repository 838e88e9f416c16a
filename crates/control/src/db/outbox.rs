// SPDX-License-Identifier: Apache-2.0
//! Outbox of events for Redis: written in the transaction of the change, delivered by the relay.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;
use wrenn_api::Event;

/// Event not yet delivered to Redis. It stays JSON: another server may have written it, whose events this
/// version does not know.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) id: i64,
    pub(crate) team_id: Uuid,
    pub(crate) event: serde_json::Value,
}

/// Adds an event of a team.
pub(crate) async fn put(tx: &mut PgConnection, team: Uuid, event: &Event) -> sqlx::Result<()> {
    let json = serde_json::to_value(event).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query!("INSERT INTO outbox (team_id, event) VALUES ($1, $2)", team, json)
        .execute(tx)
        .await
        .map(drop)
}

/// Returns the oldest events for the relay that gets the lock; empty for others.
pub(crate) async fn take(tx: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Pending>> {
    /// Key of the advisory lock, not used elsewhere.
    const RELAY: i64 = 0x5772_656e_6e01;
    let ours = sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock($1) AS "ours!""#, RELAY)
        .fetch_one(&mut *tx)
        .await?;
    if !ours {
        return Ok(Vec::new());
    }
    sqlx::query_as!(Pending, "SELECT id, team_id, event FROM outbox ORDER BY id LIMIT $1", limit)
        .fetch_all(tx)
        .await
}

/// Removes delivered events.
pub(crate) async fn delivered(tx: &mut PgConnection, ids: &[i64]) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM outbox WHERE id = ANY($1)", ids).execute(tx).await.map(drop)
}

/// Returns the number of undelivered events.
pub(crate) async fn waiting(db: &PgPool) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM outbox"#).fetch_one(db).await
}
