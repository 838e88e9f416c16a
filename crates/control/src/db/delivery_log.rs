// SPDX-License-Identifier: Apache-2.0
//! The log of deliveries to channels, and its upkeep: what waits for too long is given up, and what has ended is kept for a
//! while.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

/// One delivery.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) channel_id: Uuid,
    pub(crate) event: String,
    pub(crate) occurrence: Uuid,
    pub(crate) subject: String,
    pub(crate) status: String,
    pub(crate) attempts: i32,
    pub(crate) response_status: Option<i32>,
    pub(crate) error: Option<String>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) attempted_at: Option<DateTime<Utc>>,
    pub(crate) next_attempt_at: Option<DateTime<Utc>>,
    pub(crate) ended_at: Option<DateTime<Utc>>,
}

/// Selects whole rows of a channel: `row!(condition and order, arguments)`.
macro_rules! row {
    ($after:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            Row,
            r#"SELECT d.id, d.channel_id, d.event, d.occurrence, d.subject, d.status, d.attempts, d.response_status, d.error,
                d.created_at, d.attempted_at,
                CASE WHEN d.status = 'pending' AND d.error IS NOT NULL THEN (
                    SELECT greatest(l.at, c.retry_at) FROM channel_lanes l JOIN channels c ON c.id = l.channel_id
                    WHERE l.channel_id = d.channel_id AND l.subject = d.subject) END AS "next_attempt_at?",
                d.ended_at
             FROM deliveries d "#
                + $after,
            $($argument),*
        )
    };
}

/// Lists deliveries of a channel, the newest first, from the one before `before`.
pub(crate) async fn list(
    db: &PgPool,
    channel: Uuid,
    before: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    row!(
        "WHERE d.channel_id = $1 AND ($2::uuid IS NULL
             OR d.sequence < (SELECT b.sequence FROM deliveries b WHERE b.id = $2 AND b.channel_id = $1))
         ORDER BY d.sequence DESC LIMIT $3",
        channel,
        before,
        limit
    )
    .fetch_all(db)
    .await
}

/// Finds a delivery of a channel.
pub(crate) async fn find(db: &PgPool, channel: Uuid, id: Uuid) -> sqlx::Result<Option<Row>> {
    row!("WHERE d.channel_id = $1 AND d.id = $2", channel, id).fetch_optional(db).await
}

/// Gives up deliveries that have waited for longer than this; returns how many.
pub(crate) async fn give_up(db: &PgPool, age: Duration, limit: i64) -> sqlx::Result<u64> {
    let given_up = sqlx::query!(
        "UPDATE deliveries SET status = 'failed', ended_at = now(), error = coalesce(error, 'it waited for too long')
         WHERE status = 'pending' AND id IN (SELECT d.id FROM deliveries d
             WHERE d.status = 'pending' AND d.queued_at < now() - make_interval(secs => $1) ORDER BY d.queued_at LIMIT $2)",
        age.as_secs_f64(),
        limit
    )
    .execute(db)
    .await?;
    Ok(given_up.rows_affected())
}

/// Gives up the oldest deliveries of channels for which more than `most` wait, whether they fail or are slow; returns how many. A
/// channel for which something waits has a time at which it is due.
pub(crate) async fn give_up_beyond(db: &PgPool, most: i64, limit: i64) -> sqlx::Result<u64> {
    let given_up = sqlx::query!(
        "UPDATE deliveries SET status = 'failed', ended_at = now(), error = 'too many events wait for the channel'
         WHERE status = 'pending' AND id IN (SELECT o.id FROM channels c CROSS JOIN LATERAL (
             SELECT d.id FROM deliveries d WHERE d.channel_id = c.id AND d.status = 'pending'
             ORDER BY d.sequence DESC OFFSET $1) o
             WHERE c.due_at IS NOT NULL LIMIT $2)",
        most,
        limit
    )
    .execute(db)
    .await?;
    Ok(given_up.rows_affected())
}

/// Removes deliveries that ended longer ago than this; returns how many.
pub(crate) async fn prune(db: &PgPool, age: Duration, limit: i64) -> sqlx::Result<u64> {
    let pruned = sqlx::query!(
        "DELETE FROM deliveries WHERE id IN (SELECT d.id FROM deliveries d
             WHERE d.status <> 'pending' AND d.ended_at < now() - make_interval(secs => $1) ORDER BY d.ended_at LIMIT $2)",
        age.as_secs_f64(),
        limit
    )
    .execute(db)
    .await?;
    Ok(pruned.rows_affected())
}
