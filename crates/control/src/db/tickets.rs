// SPDX-License-Identifier: Apache-2.0
//! Tickets, each for one request.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

/// A ticket that was used just now, and is there no more.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) session_id: Option<Uuid>,
    pub(crate) key_id: Option<Uuid>,
    pub(crate) team_id: Uuid,
    pub(crate) method: String,
    pub(crate) path: String,
}

/// A ticket to be added: of a session or of a key.
pub(crate) struct NewRow<'a> {
    pub(crate) secret_sha256: &'a [u8],
    pub(crate) session: Option<Uuid>,
    pub(crate) key: Option<Uuid>,
    pub(crate) team: Uuid,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) lifetime_sec: f64,
}

/// Adds a ticket and returns when it ends; `None` if the session or key has `most` of them.
pub(crate) async fn insert(db: &PgPool, new: &NewRow<'_>, most: i64) -> sqlx::Result<Option<DateTime<Utc>>> {
    sqlx::query_scalar!(
        "INSERT INTO tickets (secret_sha256, session_id, key_id, team_id, method, path, expires_at)
         SELECT $1::bytea, $2::uuid, $3::uuid, $4::uuid, $5::text, $6::text, now() + make_interval(secs => $7)
         WHERE (SELECT count(*) FROM tickets WHERE (session_id = $2 OR key_id = $3) AND expires_at > now()) < $8
         RETURNING expires_at",
        new.secret_sha256,
        new.session,
        new.key,
        new.team,
        new.method,
        new.path,
        new.lifetime_sec,
        most
    )
    .fetch_optional(db)
    .await
}

/// Takes a ticket that has not ended.
pub(crate) async fn take(db: &PgPool, secret_sha256: &[u8]) -> sqlx::Result<Option<Used>> {
    sqlx::query_as!(
        Used,
        "DELETE FROM tickets WHERE secret_sha256 = $1 AND expires_at > now()
         RETURNING session_id, key_id, team_id, method, path",
        secret_sha256
    )
    .fetch_optional(db)
    .await
}

/// Removes a number of tickets that ended unused.
pub(crate) async fn remove_old(db: &PgPool) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM tickets WHERE secret_sha256 = ANY (ARRAY(
             SELECT secret_sha256 FROM tickets WHERE expires_at < now() ORDER BY expires_at LIMIT 1000))"
    )
    .execute(db)
    .await
    .map(drop)
}
