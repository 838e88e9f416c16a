// SPDX-License-Identifier: Apache-2.0
//! Outbox of mails: written in the transaction of a change, sent by the worker of any server.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// A mail on its way. It stays JSON: another server may have written it, whose mails this version does not know.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: Uuid,
    pub(crate) recipient: String,
    pub(crate) mail: serde_json::Value,
    /// Number of attempts, with the one that begins.
    pub(crate) attempts: i32,
    /// Seconds since it was written.
    pub(crate) age_sec: f64,
}

/// Adds a mail.
pub(crate) async fn put(
    tx: &mut PgConnection,
    id: Uuid,
    recipient: &str,
    mail: &serde_json::Value,
) -> sqlx::Result<()> {
    sqlx::query!("INSERT INTO mails (id, recipient, mail) VALUES ($1, $2, $3)", id, recipient, mail)
        .execute(tx)
        .await
        .map(drop)
}

/// Takes the mail that waits longest, if one is due. It is due again after `first`, doubled with each attempt, at most `most`, so
/// that another server sends it when this one dies.
pub(crate) async fn take(db: &PgPool, first: Duration, most: Duration) -> sqlx::Result<Option<Waiting>> {
    sqlx::query_as!(
        Waiting,
        r#"UPDATE mails SET attempts = attempts + 1,
            next_attempt_at = now() + make_interval(
                secs => least($1::double precision * power(2::double precision, least(attempts, 20)), $2::double precision))
         WHERE id = (SELECT id FROM mails WHERE failed_at IS NULL AND next_attempt_at <= now()
            ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
         RETURNING id, recipient, mail, attempts,
            extract(epoch FROM now() - created_at)::double precision AS "age_sec!""#,
        first.as_secs_f64(),
        most.as_secs_f64()
    )
    .fetch_optional(db)
    .await
}

/// Removes a mail, which was sent or is not needed any more.
pub(crate) async fn done(db: &PgPool, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM mails WHERE id = $1", id).execute(db).await.map(drop)
}

/// Records that an attempt failed, and with `is_last` that there is no other one. Does nothing if a later one has begun.
pub(crate) async fn failed(db: &PgPool, mail: &Waiting, error: &str, is_last: bool) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE mails SET error = $2, failed_at = CASE WHEN $3 THEN now() END WHERE id = $1 AND attempts = $4",
        mail.id,
        error,
        is_last,
        mail.attempts
    )
    .execute(db)
    .await
    .map(drop)
}

/// Removes mails that failed before this number of seconds, at most `limit`.
pub(crate) async fn remove_failed(db: &PgPool, kept_sec: f64, limit: i64) -> sqlx::Result<u64> {
    sqlx::query!(
        "DELETE FROM mails WHERE id = ANY (ARRAY(SELECT id FROM mails
            WHERE failed_at IS NOT NULL AND failed_at <= now() - make_interval(secs => $1) ORDER BY failed_at LIMIT $2))",
        kept_sec,
        limit
    )
    .execute(db)
    .await
    .map(|done| done.rows_affected())
}
