// SPDX-License-Identifier: Apache-2.0
//! What users do with their own account: look, rename, change the password, end sessions, and delete it.

use wrenn_api::{
    ChangePassword, DeleteMe, ErrorCode, KeptIn, Me, Secret, Session, SessionId, TeamId, UpdateMe, UserId,
};

use super::{Accounts, not_the_last_admin};
use crate::{
    access::Changed,
    attempts::Attempt,
    caller::{Caller, Permission},
    contact,
    db::{
        accounts::{self, User},
        members, sessions, teams as team_rows,
    },
    deeds::{AuditResource, about},
    error::Fault,
    mail::Mail,
    passwords::Hashed,
    state::App,
    teams,
};

/// Days for which the row of a deleted user is kept, so that an administrator can undo a mistake.
pub(super) const KEPT_DAYS: u32 = 15;

impl Accounts {
    /// Returns the caller's own account.
    pub async fn me(&self, caller: &Caller) -> Result<Me, Fault> {
        let id = user_of(caller)?;
        let user = known(accounts::find(&self.app.db, id.uuid()).await?)?;
        let providers = accounts::providers(&self.app.db, id.uuid()).await?;
        let team = Some(caller.team()).filter(|team| *team != TeamId::NONE);
        let role = match team {
            Some(team) => {
                let mut connection = self.app.db.acquire().await?;
                members::find(&mut connection, team.uuid(), id.uuid()).await?.map(|member| member.role())
            }
            None => None,
        };
        Ok(Me {
            user_id: id,
            email: user.email,
            name: user.name,
            has_password: user.password_hash.is_some(),
            providers,
            is_admin: user.is_admin,
            team_id: team,
            role,
            created_at: user.created_at,
        })
    }

    /// Renames the caller.
    pub async fn update_me(&self, caller: &Caller, request: &UpdateMe) -> Result<Me, Fault> {
        let id = user_of(caller)?;
        accounts::rename(&self.app.db, id.uuid(), &contact::name(&request.name)?).await?;
        self.me(caller).await
    }

    /// Lets the caller's session act for another team of theirs, or for the platform if the caller administers it.
    pub async fn switch_team(&self, caller: &Caller, team: TeamId) -> Result<Me, Fault> {
        let switched = self.app.access.switch_team(caller, team).await?;
        if team == TeamId::PLATFORM {
            // What follows is in the log of the platform, and so is how it began.
            about(AuditResource::new("team", team).of_team(team));
        }
        self.me(&switched).await
    }

    /// Changes the caller's password, and ends all other sessions of theirs.
    pub async fn change_password(&self, caller: &Caller, request: &ChangePassword) -> Result<(), Fault> {
        let id = user_of(caller)?;
        let user = self.confirmed(id, request.current_password.as_ref()).await?;
        let hash = self.app.passwords.hash(&request.new_password, &user.email).await?;
        let mut tx = self.app.db.begin().await?;
        unchanged(accounts::lock(&mut tx, id.uuid()).await?, &user)?;
        accounts::set_password(&mut tx, id.uuid(), &hash.0).await?;
        self.end_others(&mut tx, id, caller.session()).await?;
        self.app.mailer.send(&mut tx, &user.email, &Mail::PasswordChanged).await?;
        tx.commit().await?;
        self.app.mailer.wake();
        self.app.access.forget(Changed::User(id)).await;
        Ok(())
    }

    /// Deletes the caller's account, with the teams that nobody else is in and the API keys that the caller has made. Fails with
    /// `owns_team_with_members` if the caller owns another team, and with `conflict` if nobody else administers the platform.
    pub async fn delete_me(&self, caller: &Caller, request: &DeleteMe) -> Result<(), Fault> {
        let id = user_of(caller)?;
        let user = self.confirmed(id, request.current_password.as_ref()).await?;
        if !request.confirmation.trim().eq_ignore_ascii_case(&user.email) {
            let message = "confirmation: give your own e-mail address, so that nothing is deleted by mistake";
            return Err(Fault::invalid(message));
        }
        let mut tx = self.app.db.begin().await?;
        not_the_last_admin(&mut tx, id).await?;
        unchanged(accounts::lock(&mut tx, id.uuid()).await?, &user)?;
        let gone = leave_own_teams(&mut tx, &self.app, id).await?;
        accounts::delete(&mut tx, id.uuid()).await?;
        self.app.mailer.send(&mut tx, &user.email, &Mail::AccountDeleted { days: KEPT_DAYS }).await?;
        tx.commit().await?;
        self.app.mailer.wake();
        self.app.cleanups.notify_one();
        for team in gone {
            self.app.access.forget(Changed::Team(team)).await;
        }
        self.app.access.forget(Changed::User(id)).await;
        Ok(())
    }

    /// Lists the caller's sessions, the newest first. There are at most as many as a user may have.
    pub async fn sessions(&self, caller: &Caller) -> Result<Vec<Session>, Fault> {
        let id = user_of(caller)?;
        let rows = sessions::list(&self.app.db, id.uuid()).await?;
        let public = |row: sessions::Listed| {
            let session = SessionId::from(row.id);
            Session {
                id: session,
                kept_in: if row.kind == "cookie" { KeptIn::Cookie } else { KeptIn::Token },
                method: row.method,
                is_current: caller.session() == Some(session),
                address: row.address,
                user_agent: row.user_agent,
                created_at: row.created_at,
                last_used_at: row.last_used_at,
                expires_at: row.expires_at,
            }
        };
        Ok(rows.into_iter().map(public).collect())
    }

    /// Ends a session of the caller at once, also its streams.
    pub async fn end_session(&self, caller: &Caller, session: SessionId) -> Result<(), Fault> {
        self.app.access.end_session(user_of(caller)?, session).await
    }

    /// Returns the user if the password is theirs, or if they have none and give none.
    async fn confirmed(&self, id: UserId, password: Option<&Secret>) -> Result<User, Fault> {
        let user = known(accounts::find(&self.app.db, id.uuid()).await?)?;
        let Some(hash) = user.password_hash.clone().map(Hashed) else {
            // Who gives one believes to have one.
            return if password.is_none() { Ok(user) } else { Err(wrong()) };
        };
        // Whoever got hold of a session must not guess the password with it.
        self.count(Attempt::Password, &id.to_string()).await?;
        let password = password.ok_or_else(|| {
            let message = "current_password is missing: give the password that you have now";
            Fault::invalid(message)
        })?;
        if !self.app.passwords.verify(password, Some(&hash)).await? {
            return Err(wrong());
        }
        self.app.attempts.forget(&self.app.events, Attempt::Password, &id.to_string()).await;
        Ok(user)
    }
}

/// Deletes the teams that a user owns and nobody else is in, and returns them. Fails with `owns_team_with_members` if there is
/// another one.
pub(crate) async fn leave_own_teams(
    tx: &mut sqlx::PgConnection,
    app: &App,
    user: UserId,
) -> Result<Vec<TeamId>, Fault> {
    let mut gone = Vec::new();
    for team in accounts::owned_teams(tx, user.uuid()).await? {
        // Locked, so that nobody joins it meanwhile.
        let Some(name) = team_rows::lock(tx, team).await? else { continue };
        if members::count(tx, team).await? > 1 {
            let message = format!(
                "you own the team {:?}, which others are in: hand it over or delete it first",
                name.chars().take(128).collect::<String>()
            );
            return Err(Fault::new(ErrorCode::OwnsTeamWithMembers, message));
        }
        teams::delete_in(tx, app, team, false).await?;
        gone.push(TeamId::from(team));
    }
    Ok(gone)
}

/// Returns the user that the caller is.
fn user_of(caller: &Caller) -> Result<UserId, Fault> {
    caller.require(Permission::AccountSelf)?;
    caller.user().ok_or_else(|| {
        Fault::new(ErrorCode::Forbidden, "only users can do this: sign in, an API key is not enough")
    })
}

fn known(user: Option<User>) -> Result<User, Fault> {
    user.filter(User::is_active).ok_or_else(changed)
}

/// Fails if the password was changed since it was compared, or the user shut out.
fn unchanged(now: Option<User>, before: &User) -> Result<(), Fault> {
    let now = known(now)?;
    if now.password_hash == before.password_hash { Ok(()) } else { Err(changed()) }
}

fn changed() -> Fault {
    Fault::new(ErrorCode::Unauthorized, "the account was changed meanwhile: sign in again")
}

fn wrong() -> Fault {
    Fault::new(ErrorCode::WrongPassword, "current_password is not your password")
}
