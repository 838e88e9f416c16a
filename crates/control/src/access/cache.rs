// SPDX-License-Identifier: Apache-2.0
//! Cache of callers by the hash of their credential, for a second.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::changes::Changed;
use crate::caller::Caller;

/// Lifetime of a cached caller: what ended works at most for this long, also while Redis is away.
pub(super) const FRESH: Duration = Duration::from_secs(1);
/// Maximum number of cached credentials, separately for valid and invalid ones, so that invalid ones evict no valid one.
const REMEMBERED: usize = 10_000;

type Remembered<T> = Mutex<HashMap<[u8; 32], (T, Instant)>>;

/// What is known of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Valid(Caller),
    Invalid,
}

impl Known {
    /// The caller, if the credential is valid.
    pub(super) const fn caller(self) -> Option<Caller> {
        match self {
            Self::Valid(caller) => Some(caller),
            Self::Invalid => None,
        }
    }
}

/// Cache of one kind of credential.
#[derive(Default)]
pub(super) struct Cache {
    valid: Remembered<Caller>,
    invalid: Remembered<()>,
    /// Number of times that something was forgotten: what was looked up before that is not kept.
    generation: AtomicU64,
}

impl Cache {
    /// Returns what is known of a credential.
    pub(super) fn get(&self, hash: &[u8; 32]) -> Option<Known> {
        let valid = get(&self.valid, hash).map(Known::Valid);
        valid.or_else(|| get(&self.invalid, hash).map(|()| Known::Invalid))
    }

    /// Generation of the cache, to be read before a look-up whose result is put into it.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Keeps what a look-up gave, unless something was forgotten since it began.
    pub(super) fn put(&self, hash: [u8; 32], caller: Option<Caller>, generation: u64) {
        match caller {
            Some(caller) => put(&self.valid, hash, caller, || self.generation() == generation),
            None => put(&self.invalid, hash, (), || self.generation() == generation),
        }
    }

    /// Forgets whom a change concerns; everybody if it is not known what changed. An invalid credential may have become valid,
    /// too.
    pub(super) fn forget(&self, changed: Option<Changed>) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        let concerns = |caller: &Caller| changed.is_none_or(|changed| changed.concerns(caller));
        lock(&self.valid).retain(|_, (caller, _)| !concerns(caller));
        lock(&self.invalid).clear();
    }
}

fn lock<T>(remembered: &Remembered<T>) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], (T, Instant)>> {
    remembered.lock().unwrap_or_else(PoisonError::into_inner)
}

fn get<T: Copy>(remembered: &Remembered<T>, hash: &[u8; 32]) -> Option<T> {
    lock(remembered).get(hash).filter(|(_, at)| at.elapsed() < FRESH).map(|(value, _)| *value)
}

fn put<T>(remembered: &Remembered<T>, hash: [u8; 32], value: T, is_current: impl Fn() -> bool) {
    let mut remembered = lock(remembered);
    // Under the lock: who forgets counts first, and then takes the lock.
    if !is_current() {
        return;
    }
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
    use wrenn_api::{ApiKeyId, TeamId};

    use super::*;
    use crate::caller::{Permissions, Principal};

    fn caller() -> (Caller, ApiKeyId) {
        let key = ApiKeyId::new();
        (Caller::new(Principal::Key(key), TeamId::new(), Permissions::OF_TEAM), key)
    }

    #[test]
    fn wrong_credentials_push_no_valid_one_out() {
        let (cache, hash) = (Cache::default(), [7; 32]);
        let (caller, _) = caller();
        cache.put(hash, Some(caller), 0);
        for number in 0..2 * REMEMBERED as u64 {
            let mut wrong = [0; 32];
            wrong[..8].copy_from_slice(&number.to_be_bytes());
            cache.put(wrong, None, 0);
        }
        assert_eq!(cache.get(&hash), Some(Known::Valid(caller)));
        assert!(lock(&cache.invalid).len() <= REMEMBERED);
        assert_eq!(cache.get(&[0xff; 32]), None);
    }

    #[test]
    fn only_whom_a_change_concerns_is_forgotten() {
        let cache = Cache::default();
        let ((one, key), (other, _)) = (caller(), caller());
        cache.put([1; 32], Some(one), 0);
        cache.put([2; 32], Some(other), 0);
        cache.put([3; 32], None, 0);
        cache.forget(Some(Changed::Key(key)));
        assert_eq!(cache.get(&[1; 32]), None);
        assert_eq!(cache.get(&[2; 32]), Some(Known::Valid(other)));
        assert_eq!(cache.get(&[3; 32]), None);
        cache.forget(None);
        assert_eq!(cache.get(&[2; 32]), None);
    }

    #[test]
    fn what_was_looked_up_before_a_change_is_not_kept() {
        let cache = Cache::default();
        let generation = cache.generation();
        cache.forget(Some(Changed::Team(TeamId::new())));
        cache.put([1; 32], Some(caller().0), generation);
        assert_eq!(cache.get(&[1; 32]), None);
    }
}
