// SPDX-License-Identifier: Apache-2.0
//! Users, made by who runs Wrenn. They get a one-time link to sign in, so that no mail is needed and no password is told.

use anyhow::{Context, ensure};
use sqlx::PgConnection;
use wrenn_api::{Secret, TeamId, TeamRole, UserId};

use super::Admin;
use crate::{
    accounts::{NewUser, add, add_own_team},
    audit,
    by::By,
    contact,
    db::{accounts, members},
    deeds::{AuditResource, Deed},
    links::{self, LinkKind},
};

/// Address of the administrator that `wrenn up` makes. No mail can reach it.
const FIRST_ADMIN: &str = "admin@localhost";

/// A one-time link to sign in, which works within 24 hours.
#[derive(Debug, Clone)]
pub struct SignInLink {
    token: Secret,
}

impl SignInLink {
    /// Returns the link to the server that users reach at this URL.
    pub fn url(&self, public_url: &str) -> String {
        links::url(public_url, LinkKind::SignIn, self.token.reveal())
    }

    /// Returns the token, which the API takes.
    pub const fn token(&self) -> &Secret {
        &self.token
    }
}

impl Admin {
    /// Makes a user, who may administer the platform, and returns a link to sign in. If there is one with the address, they keep what
    /// they have, earlier links end, and `is_admin` lets them administer the platform from now on.
    pub async fn create_user(&self, email: &str, name: &str, is_admin: bool) -> anyhow::Result<SignInLink> {
        let (email, name) = (contact::email(email)?, contact::name(name)?);
        let mut tx = self.db.begin().await?;
        let known = accounts::by_email(&mut *tx, &email).await?.filter(|user| !user.is_deleted());
        let (user, action) = match known {
            Some(user) => {
                ensure!(
                    is_admin || user.is_active(),
                    "the user {email} is shut out: let an administrator activate them, or make them one with --admin"
                );
                if is_admin {
                    accounts::make_admin(&mut tx, user.id).await?;
                }
                (UserId::from(user.id), "user.update")
            }
            None => {
                let new = NewUser { email: &email, name: &name, password: None, is_admin };
                (add(&mut tx, &new).await?, "user.create")
            }
        };
        if is_admin {
            own_first_team(&mut tx, user).await?;
        }
        add_own_team(&mut tx, user, &name).await?;
        let deed = Deed::new(By::OPERATOR, TeamId::PLATFORM, action);
        let deed = deed.on(AuditResource::new("user", user).named(email.as_str()));
        audit::record(&mut *tx, &deed).await?;
        let link = sign_in_link(&mut tx, user).await?;
        tx.commit().await?;
        Ok(link)
    }

    /// Returns another link to sign in for a user who is there, and ends the earlier ones.
    pub async fn sign_in_link(&self, email: &str) -> anyhow::Result<SignInLink> {
        let email = contact::email(email)?;
        let mut tx = self.db.begin().await?;
        let user = accounts::by_email(&mut *tx, &email).await?.filter(accounts::User::is_active);
        let user = user.with_context(|| format!("there is no user {email} who may sign in: make one"))?;
        let link = sign_in_link(&mut tx, user.id.into()).await?;
        tx.commit().await?;
        Ok(link)
    }

    /// Makes the first administrator of the platform if there is none, and returns a link to sign in; `None` if they have signed in
    /// before.
    pub async fn first_admin_link(&self) -> anyhow::Result<Option<SignInLink>> {
        match accounts::first_admin(&self.db).await? {
            Some(admin) if admin.last_login_at.is_some() || !admin.is_active() => Ok(None),
            Some(admin) => self.sign_in_link(&admin.email).await.map(Some),
            None => self.create_user(FIRST_ADMIN, "Admin", true).await.map(Some),
        }
    }
}

/// Gives the oldest team to a user if it has no member, as that of `wrenn up`: they see what its API key has made.
async fn own_first_team(tx: &mut PgConnection, user: UserId) -> anyhow::Result<()> {
    let Some(team) = accounts::lock_first_team(tx).await? else { return Ok(()) };
    if accounts::has_no_member(tx, team).await? {
        members::insert(tx, team, user.uuid(), TeamRole::Owner).await?;
    }
    Ok(())
}

async fn sign_in_link(tx: &mut PgConnection, user: UserId) -> anyhow::Result<SignInLink> {
    links::end(tx, LinkKind::SignIn, user.uuid()).await?;
    let token = links::create(tx, LinkKind::SignIn, user.uuid()).await?;
    Ok(SignInLink { token: Secret::from(token) })
}
