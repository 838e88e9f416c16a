// SPDX-License-Identifier: Apache-2.0
//! One-time links: a random token that stands for one thing, works once, and ends. Only its hash is stored.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore as _;
use sqlx::PgConnection;
use uuid::Uuid;
use wrenn_api::ErrorCode;

use crate::{db::links, error::Fault, secrets::hash};

/// Number of random bytes of a token.
const BYTES: usize = 32;
/// Maximum length of a token that is looked up, in bytes.
const TOKEN_MAX: usize = 128;

/// What a link is for; its subject is in parentheses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkKind {
    /// Makes an account of a sign-up (the sign-up).
    Activation,
    /// Signs a user in (the user).
    SignIn,
    /// Sets another password (the user).
    PasswordReset,
    /// Lets a user join a team (the invitation).
    Invitation,
}

impl LinkKind {
    /// Word of the database.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Activation => "activation",
            Self::SignIn => "sign_in",
            Self::PasswordReset => "password_reset",
            Self::Invitation => "invitation",
        }
    }

    /// Time for which a link works.
    pub(crate) const fn lifetime(self) -> Duration {
        const HOUR: u64 = 3600;
        Duration::from_secs(match self {
            Self::Activation => 24 * HOUR,
            Self::SignIn => 24 * HOUR,
            Self::PasswordReset => HOUR,
            Self::Invitation => 7 * 24 * HOUR,
        })
    }

    /// Last part of the path that a link of this kind has.
    pub(crate) const fn page(self) -> &'static str {
        match self {
            Self::Activation => "activate",
            Self::SignIn => "sign-in",
            Self::PasswordReset => "reset-password",
            Self::Invitation => "invitation",
        }
    }
}

/// Makes a link of this kind and returns its token, which is nowhere else.
pub(crate) async fn create(tx: &mut PgConnection, kind: LinkKind, subject: Uuid) -> Result<String, Fault> {
    let token = token();
    links::put(tx, kind.as_str(), subject, &hash(&token), kind.lifetime()).await?;
    Ok(token)
}

/// Takes a link, which works no more once the transaction is committed, and returns its subject. Fails with `invalid_token` if
/// there is none, or no more.
pub(crate) async fn take(tx: &mut PgConnection, kind: LinkKind, token: &str) -> Result<Uuid, Fault> {
    let subject = match token.len() {
        1..=TOKEN_MAX => links::take(tx, kind.as_str(), &hash(token)).await?,
        _ => None,
    };
    subject.ok_or_else(invalid)
}

/// Returns the subject of a link, which goes on to work. Fails as [`take`] does.
pub(crate) async fn look(tx: &mut PgConnection, kind: LinkKind, token: &str) -> Result<Uuid, Fault> {
    let subject = match token.len() {
        1..=TOKEN_MAX => links::find(tx, kind.as_str(), &hash(token)).await?,
        _ => None,
    };
    subject.ok_or_else(invalid)
}

/// Ends all links of this kind to a subject.
pub(crate) async fn end(tx: &mut PgConnection, kind: LinkKind, subject: Uuid) -> Result<(), Fault> {
    links::end(tx, kind.as_str(), subject).await.map_err(Into::into)
}

/// URL of a link. The token is behind the `#`, so that no proxy writes it to its log.
pub(crate) fn url(public_url: &str, kind: LinkKind, token: &str) -> String {
    format!("{}/account/{}#token={token}", public_url.trim_end_matches('/'), kind.page())
}

/// The fault of a link that does not work.
pub(crate) fn invalid() -> Fault {
    let message = "the link was used before, is too old, or is not complete: ask for another one";
    Fault::new(ErrorCode::InvalidToken, message)
}

fn token() -> String {
    let mut bytes = [0_u8; BYTES];
    rand::rng().fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_of_characters_that_urls_have() {
        let (one, other) = (token(), token());
        assert_ne!(one, other);
        assert_eq!(one.len(), 43);
        assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')), "{one}");
    }

    #[test]
    fn the_token_is_in_the_fragment() {
        for kind in [LinkKind::Activation, LinkKind::SignIn, LinkKind::PasswordReset, LinkKind::Invitation] {
            let link = url("https://wrenn.example/", kind, "abc");
            assert_eq!(link, format!("https://wrenn.example/account/{}#token=abc", kind.page()));
            let link = url("https://wrenn.example/wrenn", kind, "abc");
            assert_eq!(link, format!("https://wrenn.example/wrenn/account/{}#token=abc", kind.page()));
        }
    }
}
