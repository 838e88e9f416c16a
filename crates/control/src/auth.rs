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
use uuid::Uuid;
use wrenn_api::ErrorCode;

use crate::{db::keys, error::ApiError, state::App};

/// Lifetime of a cached key: a revoked key works at most for this long.
const FRESH: Duration = Duration::from_secs(5);
/// Keys remembered at most.
const REMEMBERED: usize = 10_000;
/// Maximum length of a key, in bytes.
const KEY_MAX: usize = 128;

/// The team that a request speaks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Team(pub(crate) Uuid);

/// Keys that were looked up a moment ago.
#[derive(Default)]
pub(crate) struct KeyCache {
    known: Mutex<HashMap<[u8; 32], (Uuid, Instant)>>,
}

impl KeyCache {
    fn get(&self, hash: &[u8; 32]) -> Option<Uuid> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(hash).filter(|(_, at)| at.elapsed() < FRESH).map(|(team, _)| *team)
    }

    fn put(&self, hash: [u8; 32], team: Uuid) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(hash, (team, Instant::now()));
    }
}

/// Hash under which a key is stored.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

fn refused() -> ApiError {
    ApiError::new(
        ErrorCode::Unauthorized,
        "the request needs a valid API key in the header X-API-Key; `wrenn up` writes one to its configuration",
    )
}

/// The team of a secret; `None` when it is no valid key.
pub(crate) async fn team_of(app: &App, secret: &str) -> Result<Option<Uuid>, ApiError> {
    if secret.is_empty() || secret.len() > KEY_MAX {
        return Ok(None);
    }
    let hash = hash(secret);
    if let Some(team) = app.keys.get(&hash) {
        return Ok(Some(team));
    }
    let Some(key) = keys::find(&app.access, &hash).await? else { return Ok(None) };
    if !bool::from(key.secret_sha256.ct_eq(&hash)) {
        return Ok(None);
    }
    app.keys.put(hash, key.team_id);
    keys::used(&app.access, key.id).await?;
    Ok(Some(key.team_id))
}

/// Rejects requests without a valid key.
pub(crate) async fn required(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let secret = request.headers().get("x-api-key").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let team = team_of(&app, secret).await?.ok_or_else(refused)?;
    request.extensions_mut().insert(Team(team));
    Ok(next.run(request).await)
}
