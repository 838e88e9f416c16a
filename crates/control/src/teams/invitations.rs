// SPDX-License-Identifier: Apache-2.0
//! Invitations into teams, by address: whoever has an account with the address can accept one, by the link in the mail or from the
//! list of their invitations. Nothing tells who invites whether there is such an account.

use uuid::Uuid;
use wrenn_api::{
    AcceptInvitation, CreateInvitation, ErrorCode, Invitation, InvitationId, MadeInvitation, MyInvitation,
    Team, TeamId, UserId,
};

use super::{Teams, gone, members::lock, users_only};
use crate::{
    access::Changed,
    attempts::Attempt,
    by::By,
    caller::Caller,
    contact::email,
    db::{
        actors,
        invitations::{self, New, Row},
        members, sessions, teams,
    },
    deeds::{AuditResource, about},
    error::Fault,
    links::{self, LinkKind},
    mail::Mail,
};

/// Maximum number of members and invitations of a team.
const MEMBERS_MAX: i64 = 1000;

/// Part of a list of a team's invitations.
#[derive(Debug)]
#[non_exhaustive]
pub struct ListedInvitations {
    /// The invitations.
    pub invitations: Vec<Invitation>,
    /// `before` of the next page, if there is one.
    pub next: Option<InvitationId>,
}

/// Part of a list of a user's invitations.
#[derive(Debug)]
#[non_exhaustive]
pub struct ListedMine {
    /// The invitations.
    pub invitations: Vec<MyInvitation>,
    /// `before` of the next page, if there is one.
    pub next: Option<InvitationId>,
}

impl Teams {
    /// Invites the user of an address into the caller's team. An invitation that the address has already is replaced. If the
    /// server sends no mail, the user finds it among their invitations.
    pub async fn invite(&self, caller: &Caller, new: &CreateInvitation) -> Result<MadeInvitation, Fault> {
        let (app, team) = (&self.app, caller.team());
        let email = email(&new.email)?;
        app.attempts.count(&app.events, Attempt::InviteFrom, &team.to_string()).await?;
        app.attempts.count(&app.events, Attempt::InviteTo, &email).await?;
        let mut tx = app.db.begin().await?;
        let name = lock(&mut tx, team).await?;
        if members::has_address(&mut tx, team.uuid(), &email).await? {
            return Err(Fault::new(ErrorCode::Conflict, format!("{email} is a member of the team already")));
        }
        let all =
            members::count(&mut tx, team.uuid()).await? + invitations::count(&mut tx, team.uuid()).await?;
        if all >= MEMBERS_MAX {
            let message =
                format!("the team has {all} members and invitations, as many as it may: remove some");
            return Err(Fault::new(ErrorCode::Conflict, message));
        }
        let inviter = match caller.user() {
            Some(user) => members::address_of(&mut tx, user.uuid()).await?,
            None => actors::caused(&mut tx, By::caller(caller)).await?.actor.name,
        };
        let inviter = inviter.unwrap_or_else(|| "somebody of the team".to_owned());
        let id = InvitationId::new();
        let row =
            New { id: id.uuid(), team_id: team.uuid(), email: &email, role: new.role, inviter: &inviter };
        let row = invitations::put(&mut tx, row, LinkKind::Invitation.lifetime()).await?;
        let mailed = app.mailer.check().is_ok();
        if mailed {
            let role = new.role.as_str().to_owned();
            let mail = Mail::Invitation { invitation: id, team: name, inviter, role };
            app.mailer.send(&mut tx, &email, &mail).await?;
        }
        tx.commit().await?;
        app.mailer.wake();
        about(AuditResource::new("invitation", id).named(email).of_team(team));
        Ok(MadeInvitation { invitation: row.public(), mailed })
    }

    /// Lists the invitations of the caller's team that are older than `before`, the newest first.
    pub async fn invitations(
        &self,
        caller: &Caller,
        before: Option<InvitationId>,
        limit: u32,
    ) -> Result<ListedInvitations, Fault> {
        let limit = limit.clamp(1, Self::PAGE_MAX) as usize;
        let (team, before) = (caller.team().uuid(), before.map(InvitationId::uuid));
        let mut rows = invitations::page(&self.app.db, team, before, limit as i64 + 1).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|row| row.id.into());
        Ok(ListedInvitations { invitations: rows.into_iter().map(Row::public).collect(), next })
    }

    /// Withdraws an invitation into the caller's team.
    pub async fn withdraw(&self, caller: &Caller, id: InvitationId) -> Result<(), Fault> {
        let mut tx = self.app.db.begin().await?;
        lock(&mut tx, caller.team()).await?;
        about(AuditResource::new("invitation", id).of_team(caller.team()));
        if !invitations::remove(&mut tx, caller.team().uuid(), id.uuid()).await? {
            return Err(none(id));
        }
        Ok(tx.commit().await?)
    }

    /// Lists the invitations of the caller, a user, that are older than `before`, the newest first.
    pub async fn my_invitations(
        &self,
        caller: &Caller,
        before: Option<InvitationId>,
        limit: u32,
    ) -> Result<ListedMine, Fault> {
        let user = caller.user().ok_or_else(users_only)?;
        let limit = limit.clamp(1, Self::PAGE_MAX) as usize;
        let mut connection = self.app.db.acquire().await?;
        let email = members::address_of(&mut connection, user.uuid()).await?.unwrap_or_default();
        drop(connection);
        let before = before.map(InvitationId::uuid);
        let mut all = invitations::of_address(&self.app.db, &email, before, limit as i64 + 1).await?;
        let more = all.len() > limit;
        all.truncate(limit);
        let next = all.last().filter(|_| more).map(|one| one.id);
        Ok(ListedMine { invitations: all, next })
    }

    /// Makes the caller, a user, a member of the team of an invitation of their address, and returns the team. A session without
    /// a team acts for it from then on.
    pub async fn accept(&self, caller: &Caller, which: &AcceptInvitation) -> Result<Team, Fault> {
        let app = &self.app;
        let user = caller.user().ok_or_else(users_only)?;
        app.attempts.count(&app.events, Attempt::LinkFrom, &user.to_string()).await?;
        let mut tx = app.db.begin().await?;
        let (id, by_token) = match (&which.token, which.id) {
            (Some(token), None) => (links::take(&mut tx, LinkKind::Invitation, token.reveal()).await?, true),
            (None, Some(id)) => (id.uuid(), false),
            _ => {
                return Err(Fault::invalid(
                    "give one of both: the token of the mail, or the id of the invitation",
                ));
            }
        };
        let row = self.own(&mut tx, user, id, by_token).await?;
        let team = TeamId::from(row.team_id);
        teams::lock(&mut tx, row.team_id).await?.ok_or_else(|| gone(team))?;
        // Nothing changes for somebody who is a member already.
        members::insert(&mut tx, row.team_id, user.uuid(), row.role().into()).await?;
        // Of two that accept it at once, and of one that is withdrawn at that moment, the lock of the team lets one pass.
        if !invitations::remove(&mut tx, row.team_id, id).await? {
            return Err(none(id.into()));
        }
        tx.commit().await?;
        about(AuditResource::new("member", user).named(row.email).of_team(team));
        if let Some(session) = caller.session().filter(|_| caller.team() == TeamId::NONE) {
            sessions::switch_team(&app.db, session.uuid(), team.uuid()).await?;
        }
        app.access.forget(Changed::User(user)).await;
        self.find(team, Some(user.uuid())).await
    }

    /// Finds an invitation of the user's own address.
    async fn own(
        &self,
        tx: &mut sqlx::PgConnection,
        user: UserId,
        id: Uuid,
        by_token: bool,
    ) -> Result<Row, Fault> {
        let missing = || if by_token { links::invalid() } else { none(id.into()) };
        let row = invitations::find(tx, id).await?.ok_or_else(missing)?;
        let email = members::address_of(tx, user.uuid()).await?;
        if email.is_some_and(|email| email.eq_ignore_ascii_case(&row.email)) {
            return Ok(row);
        }
        if by_token {
            let message = "the invitation is for another address than yours: sign in with the account that it was sent to";
            return Err(Fault::new(ErrorCode::Forbidden, message));
        }
        Err(none(id.into()))
    }
}

/// The fault of an invitation that is not there.
fn none(id: InvitationId) -> Fault {
    Fault::new(
        ErrorCode::NotFound,
        format!("there is no invitation {id}, or it is over: ask for another one"),
    )
}
