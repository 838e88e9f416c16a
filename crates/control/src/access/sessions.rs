// SPDX-License-Identifier: Apache-2.0
//! Sessions: begun by a sign-in, named by a token or a cookie, and ended by the user, by an administrator or by time.

use std::{fmt, net::IpAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use wrenn_api::{ErrorCode, SessionId, TeamId, UserId};

use super::{Access, Changed, is_equal};
use crate::{caller::Caller, db::sessions as rows, error::Fault, secrets::hash};

/// Lifetime of a session with a token: no longer than a key that was replaced is accepted.
const OF_TOKEN: Duration = crate::signatures::LONGEST;
/// Lifetime of a session with a cookie.
const OF_COOKIE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Maximum number of sessions of a user: a sign-in beyond it ends the oldest.
const SESSIONS: i64 = 100;
/// Maximum length of what is kept of a user agent, in characters.
const USER_AGENT_MAX: usize = 256;
/// Number of random bytes of a secret.
const SECRET: usize = 32;

/// What names a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionKind {
    /// A signed token, for clients of the API.
    Token,
    /// A cookie, for browsers.
    Cookie,
}

/// A sign-in.
#[derive(Debug, Clone)]
pub(crate) struct NewSession<'a> {
    /// Who signs in; an active user.
    pub(crate) user: UserId,
    pub(crate) kind: SessionKind,
    /// How the user showed who they are: `password`, `link`, or the name of a provider.
    pub(crate) method: &'a str,
    pub(crate) address: Option<IpAddr>,
    pub(crate) user_agent: Option<&'a str>,
}

/// A session that was begun just now. It holds once the transaction is committed.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) session: SessionId,
    /// Team that the user acts for; none if the user is in no team.
    pub(crate) team: Option<TeamId>,
    /// The token, or the value of the cookie.
    pub(crate) secret: String,
    /// What a browser sends in `X-CSRF-Token`, if the session has a cookie.
    pub(crate) csrf_token: Option<String>,
    pub(crate) expires_at: DateTime<Utc>,
}

// By hand: it has secrets.
impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Access {
    /// Begins a session of a user.
    pub(crate) async fn open_session(
        &self,
        tx: &mut PgConnection,
        new: &NewSession<'_>,
    ) -> Result<Opened, Fault> {
        let session = SessionId::new();
        let cookie = (new.kind == SessionKind::Cookie).then(secret);
        let of_cookie = cookie.as_deref().map(hash);
        let address = new.address.map(|address| address.to_string());
        let agent = new.user_agent.map(|agent| agent.chars().take(USER_AGENT_MAX).collect::<String>());
        let (kind, lifetime) = match new.kind {
            SessionKind::Token => ("token", OF_TOKEN),
            SessionKind::Cookie => ("cookie", OF_COOKIE),
        };
        let row = rows::NewRow {
            id: session.uuid(),
            user: new.user.uuid(),
            kind,
            secret_sha256: of_cookie.as_ref().map(<[u8; 32]>::as_slice),
            method: new.method,
            address: address.as_deref(),
            user_agent: agent.as_deref(),
            lifetime_sec: lifetime.as_secs_f64(),
        };
        let (team, expires_at) = rows::insert(tx, &row).await?;
        rows::revoke_beyond(tx, new.user.uuid(), SESSIONS).await?;
        rows::signed_in(tx, new.user.uuid(), new.method).await?;
        let csrf_token = cookie.as_deref().map(csrf_token);
        let secret = match cookie {
            Some(cookie) => cookie,
            None => self.tokens.make(new.user, session, expires_at).await?,
        };
        Ok(Opened { session, team: team.map(Into::into), secret, csrf_token, expires_at })
    }

    /// Ends a session of a user at once, also its streams. Fails with `not_found` if the user has no such session.
    pub(crate) async fn end_session(&self, user: UserId, session: SessionId) -> Result<(), Fault> {
        if !rows::revoke(&self.db, user.uuid(), session.uuid()).await? {
            let message = format!("you have no session {session}, or it has ended");
            return Err(Fault::new(ErrorCode::NotFound, message));
        }
        self.forget(Changed::Session(session)).await;
        Ok(())
    }

    /// Ends all sessions of a user, but possibly one, in a transaction. After its commit, tell it with
    /// [`Access::forget`] and [`Changed::User`].
    pub(crate) async fn end_sessions(
        &self,
        tx: &mut PgConnection,
        user: UserId,
        but: Option<SessionId>,
    ) -> Result<(), Fault> {
        rows::revoke_all(tx, user.uuid(), but.map(SessionId::uuid)).await.map_err(Into::into)
    }

    /// Lets the caller's session act for another of the user's teams, or for the platform if the user administers it. Its token or
    /// cookie stays the same.
    pub(crate) async fn switch_team(&self, caller: &Caller, team: TeamId) -> Result<Caller, Fault> {
        caller.require(crate::caller::Permission::AccountSelf)?;
        let switched = self.in_team(caller, team).await?;
        if let Some(session) = caller.session() {
            rows::switch_team(&self.db, session.uuid(), team.uuid()).await?;
            self.forget(Changed::Session(session)).await;
        }
        Ok(switched)
    }
}

/// Returns what a browser with this cookie must send in `X-CSRF-Token`: other sites make it send the cookie, but cannot read it.
pub(crate) fn csrf_token(cookie: &str) -> String {
    let digest = Sha256::new_with_prefix(b"wrenn csrf 1\0").chain_update(cookie.as_bytes()).finalize();
    URL_SAFE_NO_PAD.encode(digest)
}

/// Returns whether a browser with this cookie may have sent this `X-CSRF-Token`; in constant time.
pub(crate) fn is_csrf_token(cookie: &str, given: &str) -> bool {
    is_equal(csrf_token(cookie).as_bytes(), given.as_bytes())
}

/// Returns a new secret of 256 random bits.
pub(super) fn secret() -> String {
    let mut bytes = [0_u8; SECRET];
    rand::rng().fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cookie_has_a_token_of_its_own() {
        let (one, other) = (secret(), secret());
        assert_eq!(one.len(), 43);
        assert!(is_csrf_token(&one, &csrf_token(&one)));
        assert!(!is_csrf_token(&one, &csrf_token(&other)));
        assert!(!is_csrf_token(&one, "") && !is_csrf_token(&one, &one));
    }

    #[test]
    fn a_session_does_not_show_its_secrets() {
        let opened = Opened {
            session: SessionId::new(),
            team: None,
            secret: "hunter2".to_owned(),
            csrf_token: Some("hunter3".to_owned()),
            expires_at: Utc::now(),
        };
        let shown = format!("{opened:?}");
        assert!(!shown.contains("hunter"), "{shown}");
    }
}
