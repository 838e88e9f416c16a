// SPDX-License-Identifier: Apache-2.0
//! Accounts of users: how they come, sign in, change, and go. Nobody learns from an answer, or from the time that it takes,
//! whether an address has an account: what depends on that is told by mail only.

mod me;
mod reset;
mod sign_in;
mod sign_up;
mod upkeep;

pub(crate) use me::leave_own_teams;
pub(crate) use upkeep::run as upkeep;

use std::net::IpAddr;

use sqlx::PgConnection;
use wrenn_api::{ErrorCode, Secret, SignedIn, TeamId, UserId};

use crate::{
    access::{NewSession, Opened, SessionKind},
    attempts::{self, Attempt},
    db::accounts,
    deeds::{self, AuditResource},
    error::Fault,
    passwords::Hashed,
    state::App,
    teams,
};

/// What somebody signs in with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Device {
    /// Address of the client, if it is known.
    pub address: Option<IpAddr>,
    /// How the client's program calls itself.
    pub user_agent: Option<String>,
}

/// A sign-in: what its user gets, and the value of the cookie, if the session is kept in one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Entry {
    /// The user and the session.
    pub signed_in: SignedIn,
    /// Value of the session's cookie.
    pub cookie: Option<Secret>,
}

/// The accounts of a server.
#[derive(Clone)]
pub struct Accounts {
    app: App,
}

impl Accounts {
    pub(crate) const fn new(app: App) -> Self {
        Self { app }
    }

    /// Counts an attempt of a client, if it is not on this machine: behind a reverse proxy that is not configured as one, every
    /// client seems to be.
    async fn count_from(&self, attempt: Attempt, device: &Device) -> Result<(), Fault> {
        match attempts::remote(device.address) {
            Some(from) => self.count(attempt, &from).await,
            None => Ok(()),
        }
    }

    async fn count(&self, attempt: Attempt, whose: &str) -> Result<(), Fault> {
        self.app.attempts.count(&self.app.events, attempt, whose).await
    }

    /// Counts a mail to an address that somebody without an account causes.
    async fn count_mail(&self, device: &Device, email: &str) -> Result<(), Fault> {
        self.count_from(Attempt::MailFrom, device).await?;
        self.count(Attempt::MailTo, email).await?;
        self.count(Attempt::Mail, "").await
    }
}

/// A user who signs in.
pub(crate) struct Visitor<'a> {
    pub(crate) user: UserId,
    pub(crate) email: &'a str,
    pub(crate) name: &'a str,
}

/// Begins a session of an active user; it holds once the transaction is committed.
pub(crate) async fn enter(
    app: &App,
    tx: &mut PgConnection,
    visitor: &Visitor<'_>,
    (device, kind, method): (&Device, SessionKind, &str),
) -> Result<Entry, Fault> {
    let new = NewSession {
        user: visitor.user,
        kind,
        method,
        address: device.address,
        user_agent: device.user_agent.as_deref(),
    };
    let Opened { team, secret, csrf_token, expires_at, .. } = app.access.open_session(tx, &new).await?;
    deeds::by(visitor.user, team.unwrap_or(TeamId::NONE));
    deeds::about(AuditResource::new("user", visitor.user).named(visitor.email));
    let secret = Secret::from(secret);
    let (token, cookie) = match kind {
        SessionKind::Token => (Some(secret), None),
        SessionKind::Cookie => (None, Some(secret)),
    };
    let signed_in = SignedIn {
        token,
        user_id: visitor.user,
        team_id: team,
        email: visitor.email.to_owned(),
        name: visitor.name.to_owned(),
        expires_at,
        csrf_token: csrf_token.map(Secret::from),
    };
    Ok(Entry { signed_in, cookie })
}

/// A user to be added.
pub(crate) struct NewUser<'a> {
    /// As [`contact::email`](crate::contact::email) returns it.
    pub(crate) email: &'a str,
    /// As [`contact::name`](crate::contact::name) returns it.
    pub(crate) name: &'a str,
    pub(crate) password: Option<&'a Hashed>,
    pub(crate) is_admin: bool,
}

/// Adds a user, who has shown that the address is theirs, and may sign in at once. What is left of a deleted account with the address is
/// removed. Fails with `conflict` if there is an account.
pub(crate) async fn add(tx: &mut PgConnection, new: &NewUser<'_>) -> Result<UserId, Fault> {
    if let Some(old) = accounts::by_email(&mut *tx, new.email).await?
        && old.is_deleted()
    {
        accounts::remove(tx, old.id).await?;
    }
    let id = UserId::new();
    let hash = new.password.map(|hash| hash.0.as_str());
    if !accounts::insert(tx, id.uuid(), new.email, new.name, hash, new.is_admin).await? {
        let message = format!("there is an account with the address {} already: sign in", new.email);
        return Err(Fault::new(ErrorCode::Conflict, message));
    }
    Ok(id)
}

/// Fails if a user who is to go, or to administer the platform no more, is the only one who can. A transaction begins with it, before it
/// locks anything: of two administrators who would go at once, one stays.
pub(crate) async fn not_the_last_admin(tx: &mut PgConnection, user: UserId) -> Result<(), Fault> {
    if !accounts::is_last_admin(tx, user.uuid()).await? {
        return Ok(());
    }
    let message =
        format!("{user} is the only administrator of the platform who may sign in: make another one first");
    Err(Fault::new(ErrorCode::Conflict, message))
}

/// Makes a first team for a user who is in none.
pub(crate) async fn add_own_team(tx: &mut PgConnection, user: UserId, name: &str) -> Result<(), Fault> {
    if accounts::is_in_a_team(tx, user.uuid()).await? {
        return Ok(());
    }
    teams::insert(tx, TeamId::new(), &format!("{name}'s team"), user.uuid()).await
}
