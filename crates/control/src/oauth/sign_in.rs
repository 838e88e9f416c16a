// SPDX-License-Identifier: Apache-2.0
//! End of a sign-in by a provider: the browser comes back, and gets a session, an account with a session, or a connected account.

use sqlx::PgConnection;
use subtle::ConstantTimeEq as _;
use uuid::Uuid;
use wrenn_api::{ErrorCode, TeamId, UserId};

use super::{BACK_MAX, Back, OAuth};
use crate::{
    access::SessionKind,
    accounts::{Entry, NewUser, Visitor, add, add_own_team, enter},
    contact::{email, name},
    db::{accounts, oauth},
    deeds::{self, AuditResource},
    error::Fault,
    providers::github::{Account, GitHub},
    secrets::hash,
};

/// A sign-in that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Path at which the browser goes on, with that of the server.
    pub(crate) return_to: String,
    pub(crate) outcome: Outcome,
}

/// What became of a sign-in.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The browser has a session now, which is kept in a cookie.
    SignedIn(Box<Entry>),
    /// The user has an account at the provider now.
    Connected,
    /// Nothing changed, for the reason with this code.
    Refused(&'static str),
}

/// The browser did not begin this sign-in, or it took too long, or it was finished before.
const INVALID_STATE: Outcome = Outcome::Refused("invalid_state");
/// The user or the provider refused.
const ACCESS_DENIED: Outcome = Outcome::Refused("access_denied");
/// The provider does not answer, or does not accept the code.
const EXCHANGE_FAILED: Outcome = Outcome::Refused("exchange_failed");
/// The provider has verified no primary address of the account.
const EMAIL_NOT_VERIFIED: Outcome = Outcome::Refused("email_not_verified");
/// No user has this account at the provider, and a sign-up was not asked for.
const NO_ACCOUNT: Outcome = Outcome::Refused("no_account");
/// A user has the address: the user signs in as usual, and connects the account then.
const EMAIL_TAKEN: Outcome = Outcome::Refused("email_taken");
/// An administrator has shut the user out, or the account was deleted.
const ACCOUNT_DISABLED: Outcome = Outcome::Refused(ErrorCode::AccountDisabled.as_str());
/// Another user has the account at the provider, or the user has another one there.
const ALREADY_CONNECTED: Outcome = Outcome::Refused("already_connected");
/// The session in which the connection began has ended.
const SESSION_ENDED: Outcome = Outcome::Refused("session_ended");

impl OAuth {
    /// Ends a sign-in of a browser that comes back from a provider. It fails only if it cannot be known where to return to.
    pub(crate) async fn finish(&self, provider: &str, back: Back) -> Result<Finished, Fault> {
        let github = self.app.oauth.find(provider)?;
        let public = |path: &str| format!("{}{path}", self.app.public_path);
        let Some((begun, browser)) = self.begun(provider, &back).await? else {
            return Ok(Finished { return_to: public("/"), outcome: INVALID_STATE });
        };
        let outcome = self.outcome(github, provider, &begun, &browser, &back).await;
        let outcome = outcome.unwrap_or_else(|fault| Outcome::Refused(fault.code.as_str()));
        Ok(Finished { return_to: public(&begun.return_to), outcome })
    }

    /// Returns the sign-in that this browser has begun, and the browser's secret; `None` if it has not. It counts only if something is
    /// looked up: a page that is loaded again and again has no cookie any more, and takes nothing from others with its address.
    async fn begun(&self, provider: &str, back: &Back) -> Result<Option<(oauth::Begun, String)>, Fault> {
        let known = |text: Option<&String>| text.filter(|text| text.len() <= BACK_MAX).cloned();
        let (state, browser) = (known(back.state.as_ref()), known(back.browser.as_ref()));
        let (Some(state), Some(browser)) = (state, browser) else { return Ok(None) };
        self.count(back.device.address).await?;
        let found = oauth::take(&self.app.db, provider, &hash(&state)).await?;
        let is_its = |begun: &oauth::Begun| bool::from(begun.browser_sha256.ct_eq(&hash(&browser)));
        Ok(found.filter(|begun| begun.is_fresh && is_its(begun)).map(|begun| (begun, browser)))
    }

    async fn outcome(
        &self,
        github: &GitHub,
        provider: &str,
        begun: &oauth::Begun,
        browser: &str,
        back: &Back,
    ) -> Result<Outcome, Fault> {
        let Some(code) = back.code.as_deref().filter(|_| !back.is_error) else { return Ok(ACCESS_DENIED) };
        let account = match github.account(code, browser).await {
            Ok(account) => account,
            Err(cause) => {
                tracing::warn!(provider, cause, "a provider did not tell whose account it is");
                return Ok(EXCHANGE_FAILED);
            }
        };
        match (begun.user_id, begun.session_id) {
            (Some(user), Some(session)) => self.link(provider, &account, user, session).await,
            _ => self.sign_in(provider, &account, begun.is_signup, back).await,
        }
    }

    /// Gives the account at the provider to a user, whose session goes on.
    async fn link(
        &self,
        provider: &str,
        account: &Account,
        user: Uuid,
        session: Uuid,
    ) -> Result<Outcome, Fault> {
        let mut tx = self.app.db.begin().await?;
        let row = accounts::lock(&mut tx, user).await?;
        let is_active = row.is_some_and(|row| row.is_active());
        if !is_active || !oauth::goes_on(&mut tx, user, session).await? {
            return Ok(SESSION_ENDED);
        }
        deeds::by(user.into(), TeamId::NONE);
        deeds::about(AuditResource::new("user", UserId::from(user)));
        let owner = oauth::owner(&mut tx, provider, &account.subject).await?;
        match owner {
            Some(owner) if owner.id == user => return Ok(Outcome::Connected),
            Some(_) => return Ok(ALREADY_CONNECTED),
            None => {}
        }
        if !oauth::link(&mut tx, user, &identity(provider, account)).await? {
            return Ok(ALREADY_CONNECTED);
        }
        tx.commit().await?;
        Ok(Outcome::Connected)
    }

    /// Signs the user of the account in, who is made first if that was asked for.
    async fn sign_in(
        &self,
        provider: &str,
        account: &Account,
        is_signup: bool,
        back: &Back,
    ) -> Result<Outcome, Fault> {
        let mut tx = self.app.db.begin().await?;
        let owner = oauth::owner(&mut tx, provider, &account.subject).await?;
        let (user, email, name) = match owner {
            Some(owner) if owner.is_active() => (owner.id.into(), owner.email, owner.name),
            Some(owner) => {
                deeds::by(owner.id.into(), TeamId::NONE);
                return Ok(ACCOUNT_DISABLED);
            }
            None if !is_signup => return Ok(NO_ACCOUNT),
            None => match register(&mut tx, provider, account).await? {
                Ok(registered) => registered,
                Err(refused) => return Ok(refused),
            },
        };
        let visitor = Visitor { user, email: &email, name: &name };
        let entry =
            enter(&self.app, &mut tx, &visitor, (&back.device, SessionKind::Cookie, provider)).await?;
        tx.commit().await?;
        Ok(Outcome::SignedIn(Box::new(entry)))
    }
}

/// Makes a user with a team of an account at a provider, with the address that the provider has verified; returns address and
/// name, too.
async fn register(
    tx: &mut PgConnection,
    provider: &str,
    account: &Account,
) -> Result<Result<(UserId, String, String), Outcome>, Fault> {
    let email = account.email.as_deref().and_then(|text| email(text).ok());
    let Some(email) = email else { return Ok(Err(EMAIL_NOT_VERIFIED)) };
    let name = name(&account.name).unwrap_or_else(|_| provider.to_owned());
    let new = NewUser { email: &email, name: &name, password: None, is_admin: false };
    let user = match add(tx, &new).await {
        Ok(user) => user,
        // The address gives no right to the account that has it: the provider may have another idea of whose it is.
        Err(fault) if fault.code == ErrorCode::Conflict => return Ok(Err(EMAIL_TAKEN)),
        Err(fault) => return Err(fault),
    };
    if !oauth::link(tx, user.uuid(), &identity(provider, account)).await? {
        return Ok(Err(ALREADY_CONNECTED));
    }
    add_own_team(tx, user, &name).await?;
    Ok(Ok((user, email, name)))
}

fn identity<'a>(provider: &'a str, account: &'a Account) -> oauth::Identity<'a> {
    let email = account.email.as_deref().unwrap_or_default();
    oauth::Identity { provider, subject: &account.subject, name: &account.name, email }
}
