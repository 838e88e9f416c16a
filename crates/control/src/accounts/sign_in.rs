// SPDX-License-Identifier: Apache-2.0
//! Sign-in with a password or by a one-time link, and sign-out.

use wrenn_api::{ErrorCode, Login, TeamId, UseLink};

use super::{Accounts, Device, Entry, Visitor, enter};
use crate::{
    access::SessionKind,
    attempts::{self, Attempt},
    caller::{Caller, Permission},
    contact,
    db::accounts::{self, User},
    deeds,
    error::Fault,
    links::{self, LinkKind},
    passwords::Hashed,
};

impl Accounts {
    /// Signs a user in with a password.
    pub async fn login(&self, device: &Device, request: &Login) -> Result<Entry, Fault> {
        let email = contact::email(&request.email)?;
        // Counted before they are made, so that many at once are not more than one after the other.
        self.count_from(Attempt::LoginFrom, device).await?;
        let from_to = format!("{} {email}", attempts::from(device.address));
        self.count(Attempt::LoginFromTo, &from_to).await?;
        self.count(Attempt::LoginTo, &email).await?;
        let user = accounts::by_email(&self.app.db, &email).await?.filter(|user| !user.is_deleted());
        if let Some(user) = &user {
            // Recorded also if the password is wrong.
            deeds::by(user.id.into(), TeamId::NONE);
        }
        let hash = user.as_ref().and_then(|user| user.password_hash.clone()).map(Hashed);
        let fits = self.app.passwords.verify(&request.password, hash.as_ref()).await?;
        let Some(user) = user.filter(|_| fits) else {
            let message = "the e-mail address or the password is wrong";
            return Err(Fault::new(ErrorCode::Unauthorized, message));
        };
        let mut tx = self.app.db.begin().await?;
        // Locked: what was changed while the password was compared counts.
        let user =
            accounts::lock(&mut tx, user.id).await?.filter(|now| now.password_hash == user.password_hash);
        let user = active(user)?;
        let entry = self.enter(&mut tx, &user, (device, kind_of(request.cookie), "password")).await?;
        tx.commit().await?;
        for (attempt, whose) in [(Attempt::LoginFromTo, &from_to), (Attempt::LoginTo, &email)] {
            self.app.attempts.forget(&self.app.events, attempt, whose).await;
        }
        Ok(entry)
    }

    /// Signs a user in by a one-time link, which the operator made.
    pub async fn sign_in_by_link(&self, device: &Device, request: &UseLink) -> Result<Entry, Fault> {
        self.count_from(Attempt::LinkFrom, device).await?;
        let mut tx = self.app.db.begin().await?;
        let id = links::take(&mut tx, LinkKind::SignIn, request.token.reveal()).await?;
        let user = active(accounts::lock(&mut tx, id).await?)?;
        let entry = self.enter(&mut tx, &user, (device, kind_of(request.cookie), "link")).await?;
        tx.commit().await?;
        Ok(entry)
    }

    /// Ends the session of the caller at once, also its streams.
    pub async fn logout(&self, caller: &Caller) -> Result<(), Fault> {
        caller.require(Permission::AccountSelf)?;
        let (Some(user), Some(session)) = (caller.user(), caller.session()) else { return Ok(()) };
        self.app.access.end_session(user, session).await
    }

    async fn enter(
        &self,
        tx: &mut sqlx::PgConnection,
        user: &User,
        how: (&Device, SessionKind, &str),
    ) -> Result<Entry, Fault> {
        let visitor = Visitor { user: user.id.into(), email: &user.email, name: &user.name };
        enter(&self.app, tx, &visitor, how).await
    }
}

/// Kind of the session that a client wishes.
pub(super) const fn kind_of(cookie: bool) -> SessionKind {
    if cookie { SessionKind::Cookie } else { SessionKind::Token }
}

/// Returns a user who may sign in.
fn active(user: Option<User>) -> Result<User, Fault> {
    match user {
        Some(user) if user.is_active() => Ok(user),
        Some(user) if !user.is_deleted() => {
            let message = "an administrator has shut this account out: ask the operator of the server";
            Err(Fault::new(ErrorCode::AccountDisabled, message))
        }
        _ => Err(Fault::new(ErrorCode::Unauthorized, "the account was changed meanwhile: sign in again")),
    }
}
