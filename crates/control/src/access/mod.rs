// SPDX-License-Identifier: Apache-2.0
//! Who may do what, now. Credentials become callers here: what the database says of a key, a session, a user and a
//! membership is cached for a second at most, and forgotten at once when a server tells the others that it changed.

mod cache;
mod changes;
mod jwt;
mod members;
mod roles;
mod sessions;
mod tickets;

use std::{sync::Arc, time::Duration};

use sqlx::PgPool;
use tokio::{
    sync::{Semaphore, broadcast},
    time::{Instant, MissedTickBehavior},
};
use wrenn_api::{ApiKeyId, ErrorCode, SessionId, TeamId};

pub(crate) use changes::{Changed, follow};
pub(crate) use roles::permissions as permissions_of;
pub(crate) use sessions::{NewSession, Opened, SessionKind, is_csrf_token};

use crate::{
    caller::{Caller, Permission, Principal},
    db::{keys, sessions as rows},
    error::Fault,
    event_store::EventStore,
    secrets::{hash, hash_of_key},
};
use cache::{Cache, FRESH};
use jwt::Tokens;

/// Maximum length of a credential, in bytes.
const CREDENTIAL_MAX: usize = 1024;
/// Maximum number of concurrent database lookups of credentials; others wait.
const LOOK_UPS: usize = 8;
/// Number of changes that a stream may be behind before it checks its caller in any case.
const BEHIND: usize = 256;

/// Callers of a server, by their credentials.
pub struct Access {
    db: PgPool,
    store: Arc<EventStore>,
    /// Interval between checks of the caller of an open stream.
    check: Duration,
    tokens: Tokens,
    of_keys: Cache,
    of_tokens: Cache,
    of_cookies: Cache,
    look_ups: Semaphore,
    /// Changes that were made here or by other servers; `None` if any may have been missed.
    changes: broadcast::Sender<Option<Changed>>,
}

impl Access {
    /// Creates the service. The pool should be one that other requests cannot use up.
    pub(crate) fn new(db: PgPool, store: Arc<EventStore>, check: Duration) -> Self {
        Self {
            tokens: Tokens::new(db.clone()),
            db,
            store,
            check,
            of_keys: Cache::default(),
            of_tokens: Cache::default(),
            of_cookies: Cache::default(),
            look_ups: Semaphore::new(LOOK_UPS),
            changes: broadcast::Sender::new(BEHIND),
        }
    }

    /// Returns the caller with this API key; `None` if it is not valid.
    pub async fn by_key(&self, secret: &str) -> Result<Option<Caller>, Fault> {
        if !is_credible(secret) {
            return Ok(None);
        }
        let of_secret = hash_of_key(secret);
        self.known(&self.of_keys, of_secret, self.look_up_key(of_secret)).await
    }

    /// Returns the caller with this token of a session; `None` if it is not valid.
    pub async fn by_token(&self, token: &str) -> Result<Option<Caller>, Fault> {
        if !is_credible(token) {
            return Ok(None);
        }
        self.known(&self.of_tokens, hash(token), self.look_up_token(token)).await
    }

    /// Returns the caller with this value of the session cookie; `None` if it is not valid.
    pub async fn by_cookie(&self, value: &str) -> Result<Option<Caller>, Fault> {
        if !is_credible(value) {
            return Ok(None);
        }
        let of_value = hash(value);
        self.known(&self.of_cookies, of_value, self.look_up_cookie(of_value)).await
    }

    /// Returns the caller acting for a team that a path names. Fails with `not_found` unless the user is a member of it, or the
    /// key is the team's. A user who administers the platform acts for its team so, and a key never does.
    pub async fn in_team(&self, caller: &Caller, team: TeamId) -> Result<Caller, Fault> {
        let unknown = || {
            Fault::new(ErrorCode::NotFound, format!("there is no team {team}, or you are not a member of it"))
        };
        if team == TeamId::NONE {
            return Err(unknown());
        }
        if caller.team() == team {
            // Whom an extension lets act for the platform does no more with its team than its administrators.
            return if team == TeamId::PLATFORM { caller.for_platform() } else { Ok(*caller) };
        }
        let Principal::User { session, .. } = caller.principal() else { return Err(unknown()) };
        let found = rows::in_team(&self.db, session.uuid(), team.uuid()).await?;
        let caller = found.map(|row| members::caller_in(&row, team));
        caller.filter(|caller| caller.team() == team).ok_or_else(unknown)
    }

    /// Waits until a caller, who has an open stream, may not do any more what it might when the stream began: the key or session
    /// ended, the user was shut out or left the team, or a permission was taken away. While the database does not respond,
    /// nothing has changed. Who has a signed URL, or is known to an extension only, goes on.
    pub async fn ended(&self, caller: &Caller) {
        if !matches!(caller.principal(), Principal::Key(_) | Principal::User { .. }) {
            return std::future::pending().await;
        }
        let mut changes = self.changes.subscribe();
        // What changed between the caller's look-up and now is not told any more: the first check is soon.
        tokio::time::sleep(FRESH).await;
        let mut checks = tokio::time::interval_at(Instant::now() + self.check, self.check);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.has_ended(caller).await {
                return;
            }
            loop {
                let is_concerned = tokio::select! {
                    changed = changes.recv() => match changed {
                        Ok(Some(changed)) => changed.concerns(caller),
                        // This service has the other end, so it is never closed.
                        Ok(None) | Err(_) => true,
                    },
                    _ = checks.tick() => true,
                };
                if is_concerned {
                    break;
                }
            }
        }
    }

    /// Whether a caller still may do all that it might when it was found.
    pub(crate) async fn is_valid(&self, caller: &Caller) -> Result<bool, Fault> {
        let now = self.again(caller).await?;
        Ok(now.is_some_and(|now| now.permissions().has_all(caller.permissions())))
    }

    async fn has_ended(&self, caller: &Caller) -> bool {
        match self.is_valid(caller).await {
            Ok(is_valid) => !is_valid,
            Err(error) => {
                tracing::debug!(%error, principal = ?caller.principal(), "the caller of a stream cannot be checked");
                false
            }
        }
    }

    /// Returns a caller with what it may do now, in the same team; `None` if it is not valid there any more.
    pub(crate) async fn again(&self, caller: &Caller) -> Result<Option<Caller>, Fault> {
        let _one_of_few = self.look_ups.acquire().await;
        let now = match caller.principal() {
            Principal::Key(key) => match keys::find_id(&self.db, key.uuid()).await? {
                Some(row) => {
                    self.note_key(&row).await;
                    Some(members::caller_of_key(&row))
                }
                None => None,
            },
            Principal::User { session, .. } => {
                match rows::in_team(&self.db, session.uuid(), caller.team().uuid()).await? {
                    Some(row) => {
                        self.note_session(&row).await;
                        Some(members::caller_in(&row, caller.team()))
                    }
                    None => None,
                }
            }
            Principal::SignedUrl(_) | Principal::Extension { .. } => Some(*caller),
        };
        Ok(match now {
            // A key has another team: it acts for the platform in what is only for administrators.
            Some(now) if caller.team() == TeamId::PLATFORM && now.has(Permission::PlatformAdmin) => {
                now.for_platform().ok()
            }
            now => now.filter(|now| now.team() == caller.team()),
        })
    }

    /// Returns what is cached of a credential, or else what the look-up gives.
    async fn known(
        &self,
        cache: &Cache,
        hash: [u8; 32],
        look_up: impl Future<Output = Result<Option<Caller>, Fault>>,
    ) -> Result<Option<Caller>, Fault> {
        if let Some(known) = cache.get(&hash) {
            return Ok(known.caller());
        }
        let _one_of_few = self.look_ups.acquire().await;
        // Another request may have looked it up meanwhile.
        if let Some(known) = cache.get(&hash) {
            return Ok(known.caller());
        }
        let generation = cache.generation();
        let caller = look_up.await?;
        cache.put(hash, caller, generation);
        Ok(caller)
    }

    async fn look_up_key(&self, hash: [u8; 32]) -> Result<Option<Caller>, Fault> {
        let found = keys::find(&self.db, &hash).await?;
        let Some(row) = found.filter(|row| is_equal(&row.secret_sha256, &hash)) else { return Ok(None) };
        self.note_key(&row).await;
        Ok(Some(members::caller_of_key(&row)))
    }

    async fn look_up_token(&self, token: &str) -> Result<Option<Caller>, Fault> {
        let Some((user, session)) = self.tokens.read(token).await? else { return Ok(None) };
        let found = rows::find(&self.db, session.uuid()).await?;
        let Some(row) = found.filter(|row| row.user_id == user.uuid()) else { return Ok(None) };
        self.note_session(&row).await;
        Ok(Some(members::caller_of_session(&row)))
    }

    async fn look_up_cookie(&self, hash: [u8; 32]) -> Result<Option<Caller>, Fault> {
        let Some(row) = rows::find_cookie(&self.db, &hash).await? else { return Ok(None) };
        self.note_session(&row).await;
        Ok(Some(members::caller_of_session(&row)))
    }

    /// Records that a key is in use. Only informational: a failure is no reason to reject the request.
    async fn note_key(&self, row: &keys::Key) {
        if !row.unnoted {
            return;
        }
        if let Err(error) = keys::used(&self.db, row.id).await {
            tracing::warn!(%error, key = %ApiKeyId::from(row.id), "the use of a key could not be noted");
        }
    }

    /// The same for a session.
    async fn note_session(&self, row: &rows::Session) {
        if !row.unnoted {
            return;
        }
        if let Err(error) = rows::used(&self.db, row.id).await {
            let session = SessionId::from(row.id);
            tracing::warn!(%error, %session, "the use of a session could not be noted");
        }
    }

    /// Caches a key as valid for a team, or as invalid.
    #[cfg(test)]
    pub(crate) fn remember(&self, secret: &str, team: Option<TeamId>) {
        use crate::caller::Permissions;
        let caller = |team| Caller::new(Principal::Key(ApiKeyId::new()), team, Permissions::OF_TEAM);
        self.of_keys.put(hash_of_key(secret), team.map(caller), self.of_keys.generation());
    }
}

/// Returns whether a text can be a credential at all.
fn is_credible(text: &str) -> bool {
    !text.is_empty() && text.len() <= CREDENTIAL_MAX
}

/// Compares two hashes in constant time.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    use subtle::ConstantTimeEq as _;
    one.ct_eq(other).into()
}
