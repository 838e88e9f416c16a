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

/// Returns the oldest events but those of these teams for the relay that gets the lock; empty for others.
pub(crate) async fn take(tx: &mut PgConnection, held: &[Uuid], limit: i64) -> sqlx::Result<Vec<Pending>> {
    /// Key of the advisory lock, not used elsewhere.
    const RELAY: i64 = 0x5772_656e_6e01;
    let ours = sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock($1) AS "ours!""#, RELAY)
        .fetch_one(&mut *tx)
        .await?;
    if !ours {
        return Ok(Vec::new());
    }
    sqlx::query_as!(
        Pending,
        "SELECT id, team_id, event FROM outbox WHERE team_id <> ALL($1) ORDER BY id LIMIT $2",
        held,
        limit
    )
    .fetch_all(tx)
    .await
}

/// Removes delivered events.
pub(crate) async fn delivered(tx: &mut PgConnection, ids: &[i64]) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM outbox WHERE id = ANY($1)", ids).execute(tx).await.map(drop)
}

/// Returns the number of undelivered events, and the age of the oldest one in seconds.
pub(crate) async fn waiting(db: &PgPool) -> sqlx::Result<(i64, f64)> {
    let waiting = sqlx::query!(
        r#"SELECT count(*) AS "count!",
            coalesce(extract(epoch FROM now() - min(created_at)), 0)::double precision AS "oldest!"
         FROM outbox"#
    )
    .fetch_one(db)
    .await?;
    Ok((waiting.count, waiting.oldest.max(0.0)))
}
