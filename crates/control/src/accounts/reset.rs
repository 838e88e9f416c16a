// SPDX-License-Identifier: Apache-2.0
//! Another password for a user who does not know the present one, by a link that is sent to the address.

use wrenn_api::{ConfirmReset, RequestReset, UserId};

use super::{Accounts, Device};
use crate::{
    access::Changed,
    attempts::Attempt,
    contact,
    db::accounts,
    error::Fault,
    links::{self, LinkKind},
    mail::Mail,
};

impl Accounts {
    /// Sends a link to set another password to the address, if there is an account with it. Whether there is one is found out when the
    /// mail is sent, so that the answer does not tell it.
    pub async fn request_reset(&self, device: &Device, request: &RequestReset) -> Result<(), Fault> {
        self.app.mailer.check()?;
        let email = contact::email(&request.email)?;
        self.count_mail(device, &email).await?;
        let mut connection = self.app.db.acquire().await?;
        self.app.mailer.send(&mut connection, &email, &Mail::PasswordReset).await?;
        self.app.mailer.wake();
        Ok(())
    }

    /// Sets another password by a link, and ends all sessions of its user.
    pub async fn confirm_reset(&self, device: &Device, request: &ConfirmReset) -> Result<(), Fault> {
        self.count_from(Attempt::LinkFrom, device).await?;
        let token = request.token.reveal();
        // The link is looked at before the password is hashed, which takes work, and taken after that.
        let mut connection = self.app.db.acquire().await?;
        let id = links::look(&mut connection, LinkKind::PasswordReset, token).await?;
        let user = accounts::find(&mut *connection, id).await?.filter(accounts::User::is_active);
        let user = user.ok_or_else(links::invalid)?;
        drop(connection);
        let hash = self.app.passwords.hash(&request.new_password, &user.email).await?;
        let mut tx = self.app.db.begin().await?;
        let id = links::take(&mut tx, LinkKind::PasswordReset, token).await?;
        let user = accounts::lock(&mut tx, id).await?.filter(accounts::User::is_active);
        let user = user.ok_or_else(links::invalid)?;
        accounts::set_password(&mut tx, id, &hash.0).await?;
        self.end_others(&mut tx, id.into(), None).await?;
        self.app.mailer.send(&mut tx, &user.email, &Mail::PasswordChanged).await?;
        tx.commit().await?;
        self.app.mailer.wake();
        self.app.access.forget(Changed::User(id.into())).await;
        Ok(())
    }

    /// Ends what a password that was replaced had let somebody do: sessions but the one that changes it, and links.
    pub(super) async fn end_others(
        &self,
        tx: &mut sqlx::PgConnection,
        user: UserId,
        but: Option<wrenn_api::SessionId>,
    ) -> Result<(), Fault> {
        self.app.access.end_sessions(tx, user, but).await?;
        for kind in [LinkKind::PasswordReset, LinkKind::SignIn] {
            links::end(tx, kind, user.uuid()).await?;
        }
        Ok(())
    }
}
