// SPDX-License-Identifier: Apache-2.0
//! Users, for administrators of the platform: found, shut out, made administrators, and deleted.

use sqlx::PgConnection;
use wrenn_api::{AdminUser, ErrorCode, MadeKeys, SetActive, TeamId, UserId, UserStatus};

use super::{Platform, page};
use crate::{
    access::Changed,
    accounts::{leave_own_teams, not_the_last_admin},
    caller::{Caller, Permission},
    db::{
        accounts, members,
        platform::{self, User},
        sessions,
    },
    deeds::{AuditResource, about},
    error::Fault,
    teams::keys_settled,
};

/// Which users a list has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UserFilter {
    /// Only those of this state.
    pub status: Option<UserStatus>,
    /// Only the one with this address.
    pub email: Option<String>,
}

/// Part of a list of users.
#[derive(Debug)]
#[non_exhaustive]
pub struct ListedUsers {
    /// The users.
    pub users: Vec<AdminUser>,
    /// `before` of the next page, if there is one.
    pub next: Option<UserId>,
}

impl Platform {
    /// Lists users that are older than `before`, the newest first.
    pub async fn users(
        &self,
        caller: &Caller,
        filter: UserFilter,
        before: Option<UserId>,
        limit: u32,
    ) -> Result<ListedUsers, Fault> {
        caller.require(Permission::PlatformAdmin)?;
        let limit = page(limit);
        // PostgreSQL takes no text with NUL, and no address has it.
        if filter.email.as_ref().is_some_and(|email| email.contains('\0')) {
            return Ok(ListedUsers { users: Vec::new(), next: None });
        }
        let (email, before) = (filter.email.as_deref(), before.map(UserId::uuid));
        let rows = platform::users(&self.app.db, filter.status, email, before, limit as i64 + 1).await?;
        let more = rows.len() > limit;
        let users: Vec<_> = rows.into_iter().take(limit).map(User::public).collect();
        let next = users.last().filter(|_| more).map(|user| user.id);
        Ok(ListedUsers { users, next })
    }

    /// Lets a user sign in, or shuts it out: its sessions end at once, and its API keys as it is said. What its teams have stays.
    pub async fn set_active(&self, caller: &Caller, id: UserId, how: &SetActive) -> Result<AdminUser, Fault> {
        caller.require(Permission::PlatformAdmin)?;
        if how.active && how.keys.is_some() {
            return Err(Fault::invalid(
                "keys: only of a user who is shut out something becomes of them: leave it out",
            ));
        }
        if !how.active {
            not_oneself(caller, id, "shut yourself out")?;
        }
        let mut tx = self.app.db.begin().await?;
        if !how.active {
            not_the_last_admin(&mut tx, id).await?;
        }
        let user = known(&mut tx, id).await?;
        let mut revoked = Vec::new();
        if how.active {
            platform::set_active(&mut tx, id.uuid(), true).await?;
        } else {
            revoked = keys_settled(&mut tx, None, id, &user.name, how.keys).await?;
            platform::set_active(&mut tx, id.uuid(), false).await?;
            sessions::revoke_all(&mut tx, id.uuid(), None).await?;
        }
        let user = known(&mut tx, id).await?;
        tx.commit().await?;
        self.app.access.forget(Changed::User(id)).await;
        for key in revoked {
            self.app.access.forget(Changed::Key(key)).await;
        }
        Ok(user)
    }

    /// Makes a user an administrator of the platform, or takes that back: their sessions that act for the platform act for a team
    /// of theirs then, as after the end of a membership.
    pub async fn set_admin(&self, caller: &Caller, id: UserId, is_admin: bool) -> Result<AdminUser, Fault> {
        caller.require(Permission::PlatformAdmin)?;
        if !is_admin {
            not_oneself(caller, id, "take this from yourself")?;
        }
        let mut tx = self.app.db.begin().await?;
        if !is_admin {
            not_the_last_admin(&mut tx, id).await?;
        }
        known(&mut tx, id).await?;
        platform::set_admin(&mut tx, id.uuid(), is_admin).await?;
        if !is_admin {
            members::remove(&mut tx, TeamId::PLATFORM.uuid(), id.uuid()).await?;
        }
        let user = known(&mut tx, id).await?;
        tx.commit().await?;
        self.app.access.forget(Changed::User(id)).await;
        Ok(user)
    }

    /// Deletes a user with the teams that nobody else is in. Fails with `owns_team_with_members` if the user owns another team, and
    /// with `member_has_keys` if it has made API keys that work, unless it is said what becomes of them.
    pub async fn delete_user(
        &self,
        caller: &Caller,
        id: UserId,
        keys: Option<MadeKeys>,
    ) -> Result<(), Fault> {
        caller.require(Permission::PlatformAdmin)?;
        not_oneself(caller, id, "delete yourself here: delete your account instead")?;
        let mut tx = self.app.db.begin().await?;
        not_the_last_admin(&mut tx, id).await?;
        accounts::lock(&mut tx, id.uuid()).await?;
        let user = known(&mut tx, id).await?;
        let gone = leave_own_teams(&mut tx, &self.app, id).await?;
        let revoked = keys_settled(&mut tx, None, id, &user.name, keys).await?;
        if keys == Some(MadeKeys::Keep) {
            members::release_keys(&mut tx, id.uuid()).await?;
        }
        accounts::delete(&mut tx, id.uuid()).await?;
        tx.commit().await?;
        self.app.cleanups.notify_one();
        for team in gone {
            self.app.access.forget(Changed::Team(team)).await;
        }
        self.app.access.forget(Changed::User(id)).await;
        for key in revoked {
            self.app.access.forget(Changed::Key(key)).await;
        }
        Ok(())
    }
}

/// Finds a user who is not deleted, and notes that the request is about them.
async fn known(tx: &mut PgConnection, id: UserId) -> Result<AdminUser, Fault> {
    let user = platform::user(tx, id.uuid()).await?.map(User::public);
    let user = user.filter(|user| user.status != UserStatus::Deleted);
    let none = || Fault::new(ErrorCode::NotFound, format!("there is no user {id}, or it was deleted"));
    let user = user.ok_or_else(none)?;
    about(AuditResource::new("user", id).named(user.email.clone()));
    Ok(user)
}

/// Fails if an administrator would do this to themselves: somebody must be left who can undo it.
fn not_oneself(caller: &Caller, id: UserId, what: &str) -> Result<(), Fault> {
    if caller.user() != Some(id) {
        return Ok(());
    }
    let message = format!("you cannot {what}; another administrator of the platform can");
    Err(Fault::new(ErrorCode::Conflict, message))
}
