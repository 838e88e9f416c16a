// SPDX-License-Identifier: Apache-2.0
//! Signatures of URLs with which a file is read or written without an API key. The keys are in the database, so that every
//! server accepts what another one has signed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;
use wrenn_api::{ErrorCode, FileOperation, SandboxId};

use crate::{
    caller::{Caller, Permission, Permissions, Principal},
    db::signing_keys,
    error::Fault,
};

/// Time for which the keys are cached: a key that was removed works at most for this long.
const FRESH: Duration = Duration::from_secs(5);
/// Maximum lifetime of a URL, and time for which a key that was replaced is accepted.
pub(crate) const LONGEST: Duration = Duration::from_secs(604_800);
/// Length of a signature in hexadecimal digits.
const DIGITS: usize = 64;

/// What a URL is signed for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subject {
    /// What it allows.
    pub operation: FileOperation,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Path of the file, as it is in the URL.
    pub path: String,
    /// The user; empty for the default user.
    pub user: String,
    /// When it ends, in seconds since 1970.
    pub expires: i64,
}

/// A signature.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Signature {
    /// Number of the key.
    pub key: i32,
    /// The signature in hexadecimal digits.
    pub digits: String,
}

/// The keys.
type Keys = Arc<[(i32, hmac::Key)]>;

/// Signs and checks URLs.
pub(crate) struct Signatures {
    db: PgPool,
    keys: Mutex<Option<(Keys, Instant)>>,
}

impl Signatures {
    /// Creates the service. The pool should be one that other requests cannot use up.
    pub(crate) fn new(db: PgPool) -> Self {
        Self { db, keys: Mutex::default() }
    }

    /// Signs a URL.
    pub(crate) async fn sign(&self, subject: &Subject) -> Result<Signature, Fault> {
        let keys = self.keys().await?;
        let (number, key) = keys.first().ok_or_else(|| {
            tracing::error!("the database has no key to sign with: rotate the key");
            Fault::internal()
        })?;
        let tag = hmac::sign(key, &text(subject));
        Ok(Signature { key: *number, digits: digits(tag.as_ref()) })
    }

    /// Returns the caller who has a URL with this signature: it may do what the URL allows in the sandbox's team.
    pub(crate) async fn caller(&self, subject: &Subject, signature: &Signature) -> Result<Caller, Fault> {
        let keys = self.keys().await?;
        let key = keys.iter().find(|(number, _)| *number == signature.key);
        let given = bytes(&signature.digits);
        // In constant time.
        let valid =
            key.zip(given).is_some_and(|((_, key), given)| hmac::verify(key, &text(subject), &given).is_ok());
        if !valid {
            return Err(invalid());
        }
        if subject.expires <= Utc::now().timestamp() {
            let message = "the time of the signed URL is over: sign another one";
            return Err(Fault::new(ErrorCode::SignatureExpired, message));
        }
        let gone = || {
            let message = format!("sandbox {} of the signed URL is gone", subject.sandbox);
            Fault::new(ErrorCode::SignatureInvalid, message)
        };
        let team: Uuid = signing_keys::team_of(&self.db, subject.sandbox.uuid()).await?.ok_or_else(gone)?;
        let permission = match subject.operation {
            FileOperation::Read => Permission::FileRead,
            FileOperation::Write => Permission::FileWrite,
        };
        let principal = Principal::SignedUrl(subject.sandbox);
        Ok(Caller::new(principal, team.into(), Permissions::NONE.and(permission)))
    }

    async fn keys(&self) -> Result<Keys, Fault> {
        let cached = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((keys, _)) = cached.filter(|(_, at)| at.elapsed() < FRESH) {
            return Ok(keys);
        }
        let rows = signing_keys::all(&self.db).await?;
        let keys: Keys = rows
            .into_iter()
            .map(|row| (row.number, hmac::Key::new(hmac::HMAC_SHA256, &row.secret)))
            .collect();
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Some((keys.clone(), Instant::now()));
        Ok(keys)
    }
}

/// The fault of a signature that does not fit.
pub(crate) fn invalid() -> Fault {
    let message = "the signature does not fit the method, path, user and time of the URL: sign another one";
    Fault::new(ErrorCode::SignatureInvalid, message)
}

/// When a URL that is signed now ends.
pub(crate) fn end(seconds: u32) -> DateTime<Utc> {
    let seconds = u64::from(seconds).clamp(1, LONGEST.as_secs());
    // Whole seconds, as the URL has them.
    let now = Utc::now();
    let end = now.checked_add_signed(chrono::TimeDelta::seconds(seconds as i64)).unwrap_or(now);
    DateTime::from_timestamp(end.timestamp(), 0).unwrap_or(end)
}

/// What is signed. No part has a NUL character, so that no two subjects have the same text.
fn text(subject: &Subject) -> Vec<u8> {
    let Subject { operation, sandbox, path, user, expires } = subject;
    let operation = match operation {
        FileOperation::Read => "read",
        FileOperation::Write => "write",
    };
    format!("wrenn file 1\0{operation}\0{sandbox}\0{expires}\0{user}\0{path}").into_bytes()
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the digits of a signature; `None` if it cannot be one.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    if digits.len() != DIGITS || !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    (0..DIGITS).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn subject() -> Subject {
        Subject {
            operation: FileOperation::Read,
            sandbox: SandboxId::new(),
            path: "/a".into(),
            user: String::new(),
            expires: 1_900_000_000,
        }
    }

    #[test]
    fn every_part_is_signed() {
        let one = subject();
        let others = [
            Subject { operation: FileOperation::Write, ..one.clone() },
            Subject { sandbox: SandboxId::new(), ..one.clone() },
            Subject { path: "/b".into(), ..one.clone() },
            Subject { user: "root".into(), ..one.clone() },
            Subject { expires: 1_900_000_001, ..one.clone() },
        ];
        for other in others {
            assert_ne!(text(&one), text(&other), "{other:?}");
        }
    }

    #[test]
    fn a_signature_is_what_it_is_made_of() {
        let signed = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]), &text(&subject()));
        assert_eq!(bytes(&digits(signed.as_ref())).as_deref(), Some(signed.as_ref()));
        for wrong in [String::new(), "0".repeat(63), "A".repeat(64), "é".repeat(32), "g".repeat(64)] {
            assert_eq!(bytes(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_url_ends_within_a_week() {
        for (seconds, expected) in [(0, 1), (60, 60), (u32::MAX, 604_800)] {
            let lasts = (end(seconds) - Utc::now()).num_seconds();
            assert!((expected - 2..=expected).contains(&lasts), "{lasts} of {expected}");
        }
    }

    proptest! {
        /// Two subjects with different users and paths have different texts, however they are split.
        #[test]
        fn users_and_paths_do_not_run_into_each_other(user in "[^\\x00]{0,8}", path in "[^\\x00]{0,8}", other in "[^\\x00]{0,8}") {
            let of = |user: &str, path: &str| text(&Subject { user: user.into(), path: path.into(), ..Subject { sandbox: SandboxId::from(Uuid::nil()), ..subject() } });
            prop_assert_eq!(of(&user, &path) == of(&user, &other), path == other);
            let joined = of(&format!("{user}{path}"), "");
            prop_assert!(path.is_empty() || of(&user, &path) != joined);
        }
    }
}
