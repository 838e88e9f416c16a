// SPDX-License-Identifier: Apache-2.0
//! API keys: found by the hash of their secret, compared in constant time, and cached for seconds.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;
use wrenn_api::{ApiKeyId, TeamId};

use crate::{
    caller::{Caller, Permissions, Principal},
    db::keys,
    error::Fault,
};

/// Lifetime of a cached key: a revoked key works at most for this long.
const FRESH: Duration = Duration::from_secs(5);
/// Maximum number of cached keys, separately for valid and invalid ones, so that invalid keys evict no valid
/// one.
const REMEMBERED: usize = 10_000;
/// Maximum length of a key, in bytes.
const KEY_MAX: usize = 128;
/// Maximum number of concurrent database lookups of keys; others wait.
const LOOK_UPS: usize = 8;

/// The API keys of all teams.
pub struct Keys {
    db: PgPool,
    /// Interval between checks of the key of an open stream.
    check: Duration,
    cache: Cache,
    look_ups: Semaphore,
}

impl Keys {
    /// Creates the service. The pool should be one that other requests cannot use up.
    pub(crate) fn new(db: PgPool, check: Duration) -> Self {
        Self { db, check, cache: Cache::default(), look_ups: Semaphore::new(LOOK_UPS) }
    }

    /// Returns the caller with this key; `None` if it is not valid.
    pub async fn caller(&self, secret: &str) -> Result<Option<Caller>, Fault> {
        if secret.is_empty() || secret.len() > KEY_MAX {
            return Ok(None);
        }
        let hash = hash(secret);
        match self.cache.get(&hash) {
            Known::Valid(caller) => return Ok(Some(caller)),
            Known::Invalid => return Ok(None),
            Known::Nothing => {}
        }
        let _one_of_few = self.look_ups.acquire().await;
        // Another request may have looked it up meanwhile.
        match self.cache.get(&hash) {
            Known::Valid(caller) => Ok(Some(caller)),
            Known::Invalid => Ok(None),
            Known::Nothing => self.look_up(hash).await,
        }
    }

    async fn look_up(&self, hash: [u8; 32]) -> Result<Option<Caller>, Fault> {
        let found = keys::find(&self.db, &hash).await?;
        let key = found.filter(|key| bool::from(key.secret_sha256.ct_eq(&hash)));
        let caller = key.map(|key| caller_of(key.id.into(), key.team_id.into()));
        self.cache.put(hash, caller);
        if let Some(caller) = caller {
            self.note_use(&caller).await;
        }
        Ok(caller)
    }

    /// Records that a key is in use. Only informational: a failure is no reason to reject the request.
    async fn note_use(&self, caller: &Caller) {
        let Principal::Key(key) = caller.principal() else { return };
        if let Err(error) = keys::used(&self.db, key.uuid()).await {
            tracing::warn!(%error, %key, "the use of a key could not be noted");
        }
    }

    /// Waits until the key of a caller, who has an open stream, is no longer valid. While the database does
    /// not respond, it counts as valid. What is no key is not revoked.
    pub async fn revoked(&self, caller: &Caller) {
        let Principal::Key(key) = caller.principal() else { return std::future::pending().await };
        loop {
            tokio::time::sleep(self.check).await;
            match keys::is_valid(&self.db, key.uuid()).await {
                Ok(true) => self.note_use(caller).await,
                Ok(false) => return,
                Err(error) => tracing::debug!(%error, %key, "the key of a stream cannot be checked"),
            }
        }
    }

    /// Caches a key as valid for a team, or as invalid.
    #[cfg(test)]
    pub(crate) fn remember(&self, secret: &str, team: Option<TeamId>) {
        self.cache.put(hash(secret), team.map(|team| caller_of(ApiKeyId::new(), team)));
    }
}

/// Returns the caller with a valid key: keys have every permission.
const fn caller_of(key: ApiKeyId, team: TeamId) -> Caller {
    Caller::new(Principal::Key(key), team, Permissions::ALL)
}

/// Returns the hash under which a key is stored.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

type Remembered<T> = Mutex<HashMap<[u8; 32], (T, Instant)>>;

/// Cache of keys by hash.
#[derive(Default)]
struct Cache {
    valid: Remembered<Caller>,
    invalid: Remembered<()>,
}

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Valid(Caller),
    Invalid,
    Nothing,
}

impl Cache {
    /// Returns what is known of a key.
    fn get(&self, hash: &[u8; 32]) -> Known {
        match (get(&self.valid, hash), get(&self.invalid, hash)) {
            (Some(caller), _) => Known::Valid(caller),
            (None, Some(())) => Known::Invalid,
            (None, None) => Known::Nothing,
        }
    }

    fn put(&self, hash: [u8; 32], caller: Option<Caller>) {
        match caller {
            Some(caller) => put(&self.valid, hash, caller),
            None => put(&self.invalid, hash, ()),
        }
    }
}

fn get<T: Copy>(remembered: &Remembered<T>, hash: &[u8; 32]) -> Option<T> {
    let remembered = remembered.lock().unwrap_or_else(PoisonError::into_inner);
    remembered.get(hash).filter(|(_, at)| at.elapsed() < FRESH).map(|(value, _)| *value)
}

fn put<T>(remembered: &Remembered<T>, hash: [u8; 32], value: T) {
    let mut remembered = remembered.lock().unwrap_or_else(PoisonError::into_inner);
    if remembered.len() >= REMEMBERED {
        remembered.retain(|_, (_, at)| at.elapsed() < FRESH);
    }
    if remembered.len() >= REMEMBERED {
        remembered.clear();
    }
    remembered.insert(hash, (value, Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_keys_push_no_valid_one_out() {
        let cache = Cache::default();
        let hash = hash("wrn_valid");
        let caller = caller_of(ApiKeyId::new(), TeamId::new());
        cache.put(hash, Some(caller));
        for number in 0..2 * REMEMBERED as u64 {
            let mut wrong = [0; 32];
            wrong[..8].copy_from_slice(&number.to_be_bytes());
            cache.put(wrong, None);
        }
        assert_eq!(cache.get(&hash), Known::Valid(caller));
        assert!(cache.invalid.lock().is_ok_and(|invalid| invalid.len() <= REMEMBERED));
        assert_eq!(cache.get(&[0xff; 32]), Known::Nothing);
    }
}
