// SPDX-License-Identifier: Apache-2.0
//! One-time links, by the SHA-256 of their token.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// Adds a link that works for some time.
pub(crate) async fn put(
    tx: &mut PgConnection,
    kind: &str,
    subject: Uuid,
    secret_sha256: &[u8],
    lifetime: Duration,
) -> sqlx::Result<()> {
    sqlx::query!(
        "INSERT INTO one_time_links (secret_sha256, kind, subject, expires_at)
         VALUES ($1, $2, $3, now() + make_interval(secs => $4))",
        secret_sha256,
        kind,
        subject,
        lifetime.as_secs_f64()
    )
    .execute(tx)
    .await
    .map(drop)
}

/// Returns the subject of a link that is valid.
pub(crate) async fn find(
    tx: &mut PgConnection,
    kind: &str,
    secret_sha256: &[u8],
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "SELECT subject FROM one_time_links WHERE secret_sha256 = $1 AND kind = $2 AND expires_at > now()",
        secret_sha256,
        kind
    )
    .fetch_optional(tx)
    .await
}

/// Removes a link, and returns its subject if it was still valid. Of two that take it at once one gets it.
pub(crate) async fn take(
    tx: &mut PgConnection,
    kind: &str,
    secret_sha256: &[u8],
) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "DELETE FROM one_time_links WHERE secret_sha256 = $1 AND kind = $2 AND expires_at > now() RETURNING subject",
        secret_sha256,
        kind
    )
    .fetch_optional(tx)
    .await
}

/// Removes all links of a kind to a subject.
pub(crate) async fn end(tx: &mut PgConnection, kind: &str, subject: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM one_time_links WHERE kind = $1 AND subject = $2", kind, subject)
        .execute(tx)
        .await
        .map(drop)
}

/// Removes links that work no more, at most this many.
pub(crate) async fn remove_old(db: &PgPool, limit: i64) -> sqlx::Result<u64> {
    sqlx::query!(
        "DELETE FROM one_time_links WHERE secret_sha256 = ANY (ARRAY(
            SELECT secret_sha256 FROM one_time_links WHERE expires_at <= now() ORDER BY expires_at LIMIT $1))",
        limit
    )
    .execute(db)
    .await
    .map(|done| done.rows_affected())
}
