// SPDX-License-Identifier: Apache-2.0
//! Sign-in by accounts at providers (OAuth 2 with PKCE). A sign-in begins and ends in one browser: the database has the hash of
//! a state that goes by way of the provider, and of a secret that only the browser has, which is the verifier of PKCE, too. Coming
//! back removes the row, so nothing that a provider gives is used twice.

mod sign_in;

use std::{net::IpAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore as _;
use wrenn_api::{ErrorCode, SessionId, UserId};

use crate::{
    accounts::Device,
    attempts::{Attempt, remote},
    caller::{Caller, Permission},
    db::{accounts, oauth},
    error::Fault,
    providers::github::{self, GitHub},
    secrets::hash,
    state::App,
};

pub(crate) use sign_in::Outcome;

/// Time within which a browser comes back from a provider.
pub(crate) const LIFETIME: Duration = Duration::from_secs(600);
/// Maximum length of a path to return to, in bytes.
const PATH_MAX: usize = 512;
/// Maximum length of what comes back, in bytes.
const BACK_MAX: usize = 256;
/// Number of random bytes of a secret.
const SECRET: usize = 32;

/// Sign-in by accounts at providers.
#[derive(Clone)]
pub(crate) struct OAuth {
    app: App,
}

/// A sign-in that has begun.
pub(crate) struct Begun {
    /// Where the browser goes.
    pub(crate) url: String,
    /// What goes by way of the provider.
    pub(crate) state: String,
    /// What the browser keeps in a cookie until it comes back.
    pub(crate) browser: String,
}

/// What a browser comes back with.
pub(crate) struct Back {
    /// The secret of its cookie for this state.
    pub(crate) browser: Option<String>,
    pub(crate) state: Option<String>,
    pub(crate) code: Option<String>,
    /// Whether the provider tells an error, as if the user refuses.
    pub(crate) is_error: bool,
    pub(crate) device: Device,
}

impl OAuth {
    pub(crate) const fn new(app: App) -> Self {
        Self { app }
    }

    /// Begins a sign-in of a browser, which comes back to a path of this server. For a sign-up an account is made if there is
    /// none.
    pub(crate) async fn begin(
        &self,
        provider: &str,
        return_to: &str,
        is_signup: bool,
        address: Option<IpAddr>,
    ) -> Result<Begun, Fault> {
        let github = self.app.oauth.find(provider)?;
        self.count(address).await?;
        self.begin_with(github, provider, return_to, is_signup, None).await
    }

    /// Begins to give the caller, a user, an account at a provider, too.
    pub(crate) async fn connect(
        &self,
        caller: &Caller,
        provider: &str,
        return_to: &str,
    ) -> Result<Begun, Fault> {
        caller.require(Permission::AccountSelf)?;
        let github = self.app.oauth.find(provider)?;
        self.begin_with(github, provider, return_to, false, caller.user().zip(caller.session())).await
    }

    /// Counts an attempt of a browser: each keeps a row for a while.
    async fn count(&self, address: Option<IpAddr>) -> Result<(), Fault> {
        match remote(address) {
            Some(from) => self.app.attempts.count(&self.app.events, Attempt::LinkFrom, &from).await,
            None => Ok(()),
        }
    }

    async fn begin_with(
        &self,
        github: &GitHub,
        provider: &str,
        return_to: &str,
        is_signup: bool,
        linked: Option<(UserId, SessionId)>,
    ) -> Result<Begun, Fault> {
        check_path(return_to)?;
        let (state, browser) = (secret(), secret());
        let new = oauth::New {
            state_sha256: &hash(&state),
            provider,
            browser_sha256: &hash(&browser),
            return_to,
            is_signup,
            linked: linked.map(|(user, session)| (user.uuid(), session.uuid())),
            lifetime: LIFETIME,
        };
        oauth::begin(&self.app.db, &new).await?;
        Ok(Begun { url: github.authorize_url(&state, &browser), state, browser })
    }

    /// Takes the account at a provider from the caller, a user. Fails if the user could not sign in any more.
    pub(crate) async fn disconnect(&self, caller: &Caller, provider: &str) -> Result<(), Fault> {
        caller.require(Permission::AccountSelf)?;
        let none = || Fault::new(ErrorCode::NotFound, "you have no account at this provider connected");
        let user = caller.user().ok_or_else(none)?.uuid();
        let mut tx = self.app.db.begin().await?;
        let row = accounts::lock(&mut tx, user).await?.ok_or_else(none)?;
        if provider != github::NAME || !oauth::unlink(&mut tx, user, provider).await? {
            return Err(none());
        }
        if row.password_hash.is_none() && oauth::count(&mut tx, user).await? == 0 {
            let message = "you could not sign in any more: set a password first, or connect another provider";
            return Err(Fault::new(ErrorCode::LastLoginMethod, message));
        }
        tx.commit().await?;
        Ok(())
    }
}

/// Fails unless this is a path of this server: a browser must not be led to another one.
fn check_path(path: &str) -> Result<(), Fault> {
    let is_path = path.starts_with('/') && !path.starts_with("//") && path.len() <= PATH_MAX;
    // Browsers take a backslash for a slash, and leave white space out.
    if is_path && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
        return Ok(());
    }
    let message = format!(
        "return_to: give a path of this server such as /settings, of at most {PATH_MAX} ASCII characters without spaces and \\"
    );
    Err(Fault::invalid(message))
}

/// Returns a new secret of 256 random bits, in a form that a verifier of PKCE may have.
fn secret() -> String {
    let mut bytes = [0_u8; SECRET];
    rand::rng().fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_returns_to_this_server_only() {
        for path in ["/", "/settings", "/a/b?c=d#e", "/%2F%2Fexample.com"] {
            assert!(check_path(path).is_ok(), "{path}");
        }
        let long = format!("/{}", "a".repeat(PATH_MAX));
        for path in [
            "",
            "a",
            "//example.com",
            "/\\example.com",
            "/\t/example.com",
            "https://example.com",
            "/é",
            &long,
        ] {
            assert!(check_path(path).is_err_and(|fault| fault.code == ErrorCode::InvalidRequest), "{path:?}");
        }
    }

    #[test]
    fn a_secret_is_a_verifier() {
        let (one, other) = (secret(), secret());
        assert_ne!(one, other);
        // RFC 7636, section 4.1.
        assert!((43..=128).contains(&one.len()));
        assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)), "{one}");
    }
}
