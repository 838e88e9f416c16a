// SPDX-License-Identifier: Apache-2.0
//! Sign-ins by providers that have begun, and the accounts of users at providers.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// Maximum number of old sign-ins that a new one removes.
const OLD: i64 = 100;

/// A sign-in that begins.
pub(crate) struct New<'a> {
    pub(crate) state_sha256: &'a [u8],
    pub(crate) provider: &'a str,
    /// Hash of what the browser has in its cookie.
    pub(crate) browser_sha256: &'a [u8],
    pub(crate) return_to: &'a str,
    /// Whether an account is made if there is none.
    pub(crate) is_signup: bool,
    /// User and session that get the account of the provider, instead of a sign-in.
    pub(crate) linked: Option<(Uuid, Uuid)>,
    pub(crate) lifetime: Duration,
}

/// A sign-in that has begun, and is over now.
pub(crate) struct Begun {
    pub(crate) browser_sha256: Vec<u8>,
    pub(crate) return_to: String,
    pub(crate) is_signup: bool,
    pub(crate) user_id: Option<Uuid>,
    pub(crate) session_id: Option<Uuid>,
    /// Whether its time is not over.
    pub(crate) is_fresh: bool,
}

/// The user of an account at a provider.
pub(crate) struct Owner {
    pub(crate) id: Uuid,
    pub(crate) email: String,
    pub(crate) name: String,
    status: String,
}

impl Owner {
    /// Whether the user may sign in.
    pub(crate) fn is_active(&self) -> bool {
        self.status == "active"
    }
}

/// An account at a provider.
pub(crate) struct Identity<'a> {
    pub(crate) provider: &'a str,
    /// The provider's own id of it.
    pub(crate) subject: &'a str,
    pub(crate) name: &'a str,
    pub(crate) email: &'a str,
}

/// Adds a sign-in, and removes some whose time is over.
pub(crate) async fn begin(db: &PgPool, new: &New<'_>) -> sqlx::Result<()> {
    let (user, session) = new.linked.unzip();
    sqlx::query!(
        "WITH old AS (DELETE FROM oauth_states WHERE state_sha256 = ANY (ARRAY(
                SELECT state_sha256 FROM oauth_states WHERE expires_at <= now() ORDER BY expires_at LIMIT $9)))
         INSERT INTO oauth_states (state_sha256, provider, browser_sha256, return_to, is_signup, user_id, session_id, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(secs => $8))",
        new.state_sha256,
        new.provider,
        new.browser_sha256,
        new.return_to,
        new.is_signup,
        user,
        session,
        new.lifetime.as_secs_f64(),
        OLD
    )
    .execute(db)
    .await
    .map(drop)
}

/// Removes a sign-in and returns it: of two that come back with one state, one gets it.
pub(crate) async fn take(db: &PgPool, provider: &str, state_sha256: &[u8]) -> sqlx::Result<Option<Begun>> {
    sqlx::query_as!(
        Begun,
        r#"DELETE FROM oauth_states WHERE state_sha256 = $1 AND provider = $2
         RETURNING browser_sha256, return_to, is_signup, user_id, session_id, expires_at > now() AS "is_fresh!""#,
        state_sha256,
        provider
    )
    .fetch_optional(db)
    .await
}

/// Returns the user of an account at a provider.
pub(crate) async fn owner(
    tx: &mut PgConnection,
    provider: &str,
    subject: &str,
) -> sqlx::Result<Option<Owner>> {
    sqlx::query_as!(
        Owner,
        "SELECT u.id, u.email, u.name, u.status FROM identities i JOIN users u ON u.id = i.user_id
         WHERE i.provider = $1 AND i.subject = $2",
        provider,
        subject
    )
    .fetch_optional(tx)
    .await
}

/// Gives an account at a provider to a user; `false` if it is somebody's, or the user has another one there.
pub(crate) async fn link(tx: &mut PgConnection, user: Uuid, identity: &Identity<'_>) -> sqlx::Result<bool> {
    let linked = sqlx::query!(
        "INSERT INTO identities (provider, subject, user_id, name, email) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        identity.provider,
        identity.subject,
        user,
        identity.name,
        identity.email
    )
    .execute(tx)
    .await?;
    Ok(linked.rows_affected() == 1)
}

/// Takes the account at a provider from a user; `false` if there is none.
pub(crate) async fn unlink(tx: &mut PgConnection, user: Uuid, provider: &str) -> sqlx::Result<bool> {
    let unlinked =
        sqlx::query!("DELETE FROM identities WHERE user_id = $1 AND provider = $2", user, provider)
            .execute(tx)
            .await?;
    Ok(unlinked.rows_affected() == 1)
}

/// Number of providers with which a user can sign in.
pub(crate) async fn count(tx: &mut PgConnection, user: Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM identities WHERE user_id = $1"#, user)
        .fetch_one(tx)
        .await
}

/// Returns whether a session of a user goes on.
pub(crate) async fn goes_on(tx: &mut PgConnection, user: Uuid, session: Uuid) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM sessions
             WHERE id = $2 AND user_id = $1 AND revoked_at IS NULL AND expires_at > now()) AS "does!""#,
        user,
        session
    )
    .fetch_one(tx)
    .await
}
