// SPDX-License-Identifier: Apache-2.0
//! Sign-up: it becomes an account when the link that is sent to its address is used.

use uuid::Uuid;
use wrenn_api::{Notice, SignUp, UseLink};

use super::{Accounts, Device, Entry, NewUser, Visitor, add, add_own_team, enter, sign_in::kind_of};
use crate::{
    attempts::Attempt,
    contact,
    db::accounts,
    error::Fault,
    links::{self, LinkKind},
    mail::Mail,
    passwords::Hashed,
};

impl Accounts {
    /// Signs somebody up: a mail with a link goes to the address. If there is an account with it, its owner is told by mail, and the
    /// answer is the same.
    pub async fn sign_up(&self, device: &Device, request: SignUp) -> Result<Notice, Fault> {
        self.app.mailer.check()?;
        let (email, name) = (contact::email(&request.email)?, contact::name(&request.name)?);
        self.count_mail(device, &email).await?;
        let Hashed(password_hash) = self.app.passwords.hash(&request.password, &email).await?;
        let id = Uuid::now_v7();
        let new = accounts::SignUp { email, name, password_hash };
        let mut tx = self.app.db.begin().await?;
        accounts::add_sign_up(&mut tx, id, &new, LinkKind::Activation.lifetime()).await?;
        self.app.mailer.send(&mut tx, &new.email, &Mail::Activation { sign_up: id }).await?;
        tx.commit().await?;
        self.app.mailer.wake();
        Ok(Notice { message: format!("a mail with a link is on its way to {}", new.email) })
    }

    /// Makes an account of a sign-up, with a team of its own, and signs its user in.
    pub async fn activate(&self, device: &Device, request: &UseLink) -> Result<Entry, Fault> {
        self.count_from(Attempt::LinkFrom, device).await?;
        let mut tx = self.app.db.begin().await?;
        let id = links::take(&mut tx, LinkKind::Activation, request.token.reveal()).await?;
        let sign_up = accounts::take_sign_up(&mut tx, id).await?.ok_or_else(links::invalid)?;
        let password = Hashed(sign_up.password_hash);
        let (email, name) = (sign_up.email.as_str(), sign_up.name.as_str());
        let new = NewUser { email, name, password: Some(&password), is_admin: false };
        let user = add(&mut tx, &new).await?;
        add_own_team(&mut tx, user, name).await?;
        let visitor = Visitor { user, email, name };
        let entry = enter(&self.app, &mut tx, &visitor, (device, kind_of(request.cookie), "link")).await?;
        tx.commit().await?;
        Ok(entry)
    }
}
