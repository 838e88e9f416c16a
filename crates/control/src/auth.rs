// SPDX-License-Identifier: Apache-2.0
//! Authentication by API keys, compared by hash and in constant time.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;
use uuid::Uuid;
use wrenn_api::ErrorCode;

use crate::{db::keys, error::ApiError, state::App, trail};

/// Lifetime of a cached key: a revoked key works at most for this long.
const FRESH: Duration = Duration::from_secs(5);
/// Maximum number of cached keys, separately for valid and invalid ones, so that invalid keys evict no valid
/// one.
const REMEMBERED: usize = 10_000;
/// Maximum length of a key, in bytes.
const KEY_MAX: usize = 128;
/// Maximum number of concurrent database lookups of keys; others wait.
const LOOK_UPS: usize = 8;

/// The authenticated team of a request, and its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) team: Uuid,
    pub(crate) key: Uuid,
    hash: [u8; 32],
}

#[cfg(test)]
impl Asker {
    /// An authenticated request of a team, with an unknown key.
    pub(crate) fn unknown(team: Uuid) -> Self {
        Self { team, key: Uuid::now_v7(), hash: [0; 32] }
    }
}

type Remembered<T> = Mutex<HashMap<[u8; 32], (T, Instant)>>;

/// Cache of API keys.
pub(crate) struct KeyCache {
    valid: Remembered<Asker>,
    invalid: Remembered<()>,
    look_ups: Semaphore,
}

impl Default for KeyCache {
    fn default() -> Self {
        Self { valid: Mutex::default(), invalid: Mutex::default(), look_ups: Semaphore::new(LOOK_UPS) }
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

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Valid(Asker),
    Invalid,
    Nothing,
}

impl KeyCache {
    /// Returns what is known of a key.
    fn get(&self, hash: &[u8; 32]) -> Known {
        match (get(&self.valid, hash), get(&self.invalid, hash)) {
            (Some(asker), _) => Known::Valid(asker),
            (None, Some(())) => Known::Invalid,
            (None, None) => Known::Nothing,
        }
    }

    /// Caches a key as valid for a team, or as invalid.
    #[cfg(test)]
    pub(crate) fn remember(&self, hash: [u8; 32], team: Option<Uuid>) {
        self.put(hash, team.map(|team| Asker { team, key: Uuid::now_v7(), hash }));
    }

    fn put(&self, hash: [u8; 32], asker: Option<Asker>) {
        match asker {
            Some(asker) => put(&self.valid, hash, asker),
            None => put(&self.invalid, hash, ()),
        }
    }
}

/// Hash under which a key is stored.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

fn refused() -> ApiError {
    ApiError::new(
        ErrorCode::Unauthorized,
        "the API key is missing or not valid: send it in the header X-API-Key",
    )
}

/// Returns the team and id of a key; `None` if it is not valid.
async fn asker_of(app: &App, secret: &str) -> Result<Option<Asker>, ApiError> {
    if secret.is_empty() || secret.len() > KEY_MAX {
        return Ok(None);
    }
    let hash = hash(secret);
    match app.keys.get(&hash) {
        Known::Valid(asker) => return Ok(Some(asker)),
        Known::Invalid => return Ok(None),
        Known::Nothing => {}
    }
    let _one_of_few = app.keys.look_ups.acquire().await;
    // Another request may have looked it up meanwhile.
    match app.keys.get(&hash) {
        Known::Valid(asker) => return Ok(Some(asker)),
        Known::Invalid => return Ok(None),
        Known::Nothing => {}
    }
    look_up(app, hash).await
}

async fn look_up(app: &App, hash: [u8; 32]) -> Result<Option<Asker>, ApiError> {
    let found = keys::find(&app.access, &hash).await?;
    let asker = found.filter(|key| bool::from(key.secret_sha256.ct_eq(&hash))).map(|key| Asker {
        team: key.team_id,
        key: key.id,
        hash,
    });
    app.keys.put(hash, asker);
    if let Some(asker) = asker {
        // Only informational: no reason to reject the request.
        if let Err(error) = keys::used(&app.access, asker.key).await {
            tracing::warn!(%error, key = %asker.key, "the use of a key could not be noted");
        }
    }
    Ok(asker)
}

/// Waits until the key of a stream is no longer valid. While the database does not respond, it counts as
/// valid.
pub(crate) async fn revoked(app: &App, asker: Asker) {
    loop {
        tokio::time::sleep(app.limits.key_check).await;
        if let Ok(None) = look_up(app, asker.hash).await {
            return;
        }
    }
}

/// Error for the client of a stream whose key was revoked.
pub(crate) fn was_revoked() -> ApiError {
    ApiError::new(ErrorCode::Unauthorized, "the API key was revoked while the stream was open")
}

/// Rejects requests without a valid key.
pub(crate) async fn required(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let secret = request.headers().get("x-api-key").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let asker = asker_of(&app, secret).await?.ok_or_else(refused)?;
    trail::asker(asker.team, asker.key);
    request.extensions_mut().insert(asker);
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_keys_push_no_valid_one_out() {
        let cache = KeyCache::default();
        let hash = hash("wrn_valid");
        let asker = Asker { team: Uuid::now_v7(), key: Uuid::now_v7(), hash };
        cache.put(hash, Some(asker));
        for number in 0..2 * REMEMBERED as u64 {
            let mut wrong = [0; 32];
            wrong[..8].copy_from_slice(&number.to_be_bytes());
            cache.put(wrong, None);
        }
        assert_eq!(cache.get(&hash), Known::Valid(asker));
        assert!(cache.invalid.lock().is_ok_and(|invalid| invalid.len() <= REMEMBERED));
        assert_eq!(cache.get(&[0xff; 32]), Known::Nothing);
    }
}
