// SPDX-License-Identifier: Apache-2.0
//! Tokens of sessions (JWT, HS256). A token names a session and proves that a server of this database made it; whether the
//! session still holds is looked up. The keys are derived from those that sign URLs, and replaced with them.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use wrenn_api::{SessionId, UserId};

use crate::{db::signing_keys, error::Fault};

/// Issuer and audience of the tokens.
const WRENN: &str = "wrenn";
/// What the derived keys are for.
const PURPOSE: &[u8] = b"wrenn session token 1";
/// Time for which the keys are cached: a key that was removed works at most for this long.
const FRESH: Duration = Duration::from_secs(5);
/// Age of the cache from which a key that it does not have is looked for: another server may have added it.
const RELOAD: Duration = Duration::from_secs(1);

/// What a token says.
#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    sid: String,
    iat: i64,
    exp: i64,
    iss: String,
    aud: String,
}

/// A key by its number.
struct Key {
    number: i32,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl Key {
    fn derive(number: i32, secret: &[u8]) -> Self {
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), PURPOSE);
        let secret = derived.as_ref();
        Self {
            number,
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
        }
    }
}

// By hand: the key is a secret.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.number)
    }
}

type Keys = Arc<[Key]>;

/// Makes and reads tokens.
pub(super) struct Tokens {
    db: PgPool,
    keys: Mutex<Option<(Keys, Instant)>>,
}

impl Tokens {
    pub(super) fn new(db: PgPool) -> Self {
        Self { db, keys: Mutex::default() }
    }

    /// Makes the token of a session.
    pub(super) async fn make(
        &self,
        user: UserId,
        session: SessionId,
        expires_at: DateTime<Utc>,
    ) -> Result<String, Fault> {
        let keys = self.keys(FRESH).await?;
        let key = keys.first().ok_or_else(|| {
            tracing::error!("the database has no key to sign with: rotate the key");
            Fault::internal()
        })?;
        sign(key, user, session, expires_at).map_err(|error| {
            tracing::error!(%error, "a token could not be signed");
            Fault::internal()
        })
    }

    /// Returns the user and the session that a token names; `None` if no server of this database made it, or if it is too old.
    pub(super) async fn read(&self, token: &str) -> Result<Option<(UserId, SessionId)>, Fault> {
        let Some(number) = number(token) else { return Ok(None) };
        for age in [FRESH, RELOAD] {
            let keys = self.keys(age).await?;
            if let Some(key) = keys.iter().find(|key| key.number == number) {
                return Ok(verify(key, token));
            }
        }
        Ok(None)
    }

    /// Returns the keys as they were no longer ago than `age`, the latest first.
    async fn keys(&self, age: Duration) -> Result<Keys, Fault> {
        let cached = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((keys, _)) = cached.filter(|(_, at)| at.elapsed() < age) {
            return Ok(keys);
        }
        let rows = signing_keys::all(&self.db).await?;
        let keys: Keys = rows.into_iter().map(|row| Key::derive(row.number, &row.secret)).collect();
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Some((keys.clone(), Instant::now()));
        Ok(keys)
    }
}

/// Returns the number of the key that a token says it is signed with.
fn number(token: &str) -> Option<i32> {
    let header = decode_header(token).ok().filter(|header| header.alg == Algorithm::HS256)?;
    header.kid?.parse().ok()
}

fn sign(
    key: &Key,
    user: UserId,
    session: SessionId,
    expires_at: DateTime<Utc>,
) -> Result<String, jsonwebtoken::errors::Error> {
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(key.number.to_string());
    let claims = Claims {
        sub: user.to_string(),
        sid: session.to_string(),
        iat: Utc::now().timestamp(),
        exp: expires_at.timestamp(),
        iss: WRENN.to_owned(),
        aud: WRENN.to_owned(),
    };
    encode(&header, &claims, &key.encoding)
}

fn verify(key: &Key, token: &str) -> Option<(UserId, SessionId)> {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_issuer(&[WRENN]);
    validation.set_audience(&[WRENN]);
    validation.set_required_spec_claims(&["exp", "sub", "iss", "aud"]);
    let Claims { sub, sid, .. } = decode::<Claims>(token, &key.decoding, &validation).ok()?.claims;
    Some((sub.parse().ok()?, sid.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn key(number: i32) -> Key {
        Key::derive(number, &[number as u8; 32])
    }

    fn in_minutes(minutes: i64) -> DateTime<Utc> {
        Utc::now() + TimeDelta::minutes(minutes)
    }

    #[test]
    fn a_token_names_its_session() {
        let (user, session) = (UserId::new(), SessionId::new());
        let token = sign(&key(3), user, session, in_minutes(1)).expect("a token");
        assert_eq!(number(&token), Some(3));
        assert_eq!(verify(&key(3), &token), Some((user, session)));
        assert_eq!(verify(&key(4), &token), None);
    }

    #[test]
    fn what_was_changed_or_is_too_old_is_no_token() {
        let (user, session) = (UserId::new(), SessionId::new());
        let old = sign(&key(1), user, session, in_minutes(-5)).expect("a token");
        assert_eq!(verify(&key(1), &old), None);
        let token = sign(&key(1), user, session, in_minutes(5)).expect("a token");
        let parts: Vec<&str> = token.split('.').collect();
        // {"alg":"none"}, as some libraries took it.
        let unsigned = format!("eyJhbGciOiJub25lIiwia2lkIjoiMSJ9.{}.", parts[1]);
        assert_eq!(number(&unsigned), None);
        let other = sign(&key(1), UserId::new(), session, in_minutes(5)).expect("a token");
        let mixed = format!("{}.{}.{}", parts[0], other.split('.').nth(1).unwrap_or_default(), parts[2]);
        assert_eq!(verify(&key(1), &mixed), None);
        for garbage in ["", ".", "..", "wrn_00000000", "a.b.c"] {
            assert_eq!(number(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn a_key_does_not_show_its_secret() {
        assert_eq!(format!("{:?}", key(9)), "Key(9)");
    }
}
