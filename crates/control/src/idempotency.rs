// SPDX-License-Identifier: Apache-2.0
//! Idempotency keys, with which clients safely repeat requests that make something, and the meaning of their requests.

use std::time::Duration;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use wrenn_api::ErrorCode;

use crate::{db::idempotency::First, error::Fault};

/// Maximum length of a key.
const MAX: usize = 255;
/// Time limit of a repeated request for waiting for the first one, and the interval between its looks.
pub(crate) const FIRST: Duration = Duration::from_secs(60);
pub(crate) const LOOK: Duration = Duration::from_millis(100);
/// Number of attempts of a request whose key is claimed and released by others.
pub(crate) const TRIES: usize = 8;

/// Key that makes it safe to repeat a request.
#[derive(Debug, Clone)]
pub struct Idempotency {
    key: String,
}

impl Idempotency {
    /// Creates it from the client's text, which must be unique to one sandbox or snapshot of the team.
    pub fn new(key: impl Into<String>) -> Result<Self, Fault> {
        let key = key.into();
        if (1..=MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self { key });
        }
        let message = format!("Idempotency-Key: 1 to {MAX} printable ASCII characters without spaces");
        Err(Fault::invalid(message))
    }

    /// Joins the key with the meaning of its request.
    pub(crate) fn of(self, request: &impl Serialize) -> Result<Key, Fault> {
        Ok(Key { text: self.key, fingerprint: fingerprint(request)? })
    }
}

/// Key of a request, with the hash of the request's meaning.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) fingerprint: [u8; 32],
}

impl Key {
    /// Fails if the first request with this key was another one.
    pub(crate) fn check(&self, first: &First) -> Result<(), Fault> {
        if first.request_sha256 == self.fingerprint { Ok(()) } else { Err(mismatch()) }
    }
}

/// Returns the hash of a request's meaning, independent of its formatting. A field that is added later must not change the
/// hash of requests without it: use `#[serde(skip_serializing_if)]`.
pub(crate) fn fingerprint(request: &impl Serialize) -> Result<[u8; 32], Fault> {
    let text = serde_json::to_vec(request).map_err(|error| {
        tracing::error!(%error, "a request cannot be written down");
        Fault::internal()
    })?;
    Ok(Sha256::digest(text).into())
}

/// Returns the fault of a key that was used with another request.
pub(crate) fn mismatch() -> Fault {
    let message = "this Idempotency-Key was used with another request: use a new key for a new request";
    Fault::new(ErrorCode::IdempotencyMismatch, message)
}

/// Returns the fault of a request whose key is claimed and released by others.
pub(crate) fn contested() -> Fault {
    let message = "other requests with this Idempotency-Key come and fail over and over; try again";
    Fault::new(ErrorCode::Conflict, message)
}
