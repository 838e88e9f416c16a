// SPDX-License-Identifier: Apache-2.0
//! Members of a team: their roles, and how they come to an end. Of the API keys that a member has made somebody must say what
//! becomes of them, since programs may depend on them.

use sqlx::PgConnection;
use wrenn_api::{ApiKeyId, ErrorCode, GivenRole, MadeKeys, TeamId, TeamMember, TeamRole, UserId};

use super::{Teams, gone, users_only};
use crate::{
    access::{Changed, permissions_of},
    caller::Caller,
    db::{
        members::{self, MadeKey, Row},
        teams,
    },
    deeds::{AuditResource, about},
    error::Fault,
    mail::Mail,
};

/// Maximum number of API keys that a refusal names.
const NAMED: usize = 10;

/// Part of a list of members.
#[derive(Debug)]
#[non_exhaustive]
pub struct ListedMembers {
    /// The members.
    pub members: Vec<TeamMember>,
    /// `after` of the next page, if there is one.
    pub next: Option<UserId>,
}

impl Teams {
    /// Lists the members of the caller's team after the user `after`.
    pub async fn members(
        &self,
        caller: &Caller,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<ListedMembers, Fault> {
        let limit = limit.clamp(1, Self::PAGE_MAX) as usize;
        let (team, after) = (caller.team().uuid(), after.map(UserId::uuid));
        // One more row than requested shows whether there is another page.
        let mut rows = members::page(&self.app.db, team, after, limit as i64 + 1).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|row| row.user_id.into());
        Ok(ListedMembers { members: rows.into_iter().map(Row::public).collect(), next })
    }

    /// Changes the role of a member, who is not the owner.
    pub async fn set_role(
        &self,
        caller: &Caller,
        user: UserId,
        role: GivenRole,
    ) -> Result<TeamMember, Fault> {
        let team = caller.team();
        let mut tx = self.app.db.begin().await?;
        lock(&mut tx, team).await?;
        let row = not_the_owner(&mut tx, team, user, "the owner of a team stays its owner").await?;
        about(AuditResource::new("member", user).named(row.email).of_team(team));
        members::set_role(&mut tx, team.uuid(), user.uuid(), role.into()).await?;
        let changed = member(&mut tx, team, user).await?;
        tx.commit().await?;
        self.app.access.forget(Changed::User(user)).await;
        Ok(changed.public())
    }

    /// Removes a member, who is not the owner and sees nothing of the team any more from then on. Fails if the member has made
    /// API keys that work, unless it is said what becomes of them.
    pub async fn remove_member(
        &self,
        caller: &Caller,
        user: UserId,
        keys: Option<MadeKeys>,
    ) -> Result<(), Fault> {
        let team = caller.team();
        let mut tx = self.app.db.begin().await?;
        let name = lock(&mut tx, team).await?;
        let row = not_the_owner(&mut tx, team, user, "the owner of a team cannot be removed").await?;
        about(AuditResource::new("member", user).named(row.email.clone()).of_team(team));
        let revoked = keys_settled(&mut tx, Some(team), user, &row.name, keys).await?;
        members::remove(&mut tx, team.uuid(), user.uuid()).await?;
        if caller.user() != Some(user) {
            self.app.mailer.send(&mut tx, &row.email, &Mail::Removed { team: name }).await?;
        }
        tx.commit().await?;
        self.app.mailer.wake();
        self.forget(user, revoked).await;
        Ok(())
    }

    /// Lets the caller, who is not the owner, leave the team; of their API keys as in [`Self::remove_member`].
    pub async fn leave(&self, caller: &Caller, keys: Option<MadeKeys>) -> Result<(), Fault> {
        let user = caller.user().ok_or_else(users_only)?;
        if caller.team() == TeamId::PLATFORM {
            let message =
                "nobody is a member of the platform's team: let your session act for another team instead";
            return Err(Fault::new(ErrorCode::Conflict, message));
        }
        self.remove_member(caller, user, keys).await
    }

    /// Makes a member the owner of the team, whose owner is an admin of it from then on.
    pub async fn transfer(&self, caller: &Caller, user: UserId) -> Result<(), Fault> {
        let team = caller.team();
        let mut tx = self.app.db.begin().await?;
        let name = lock(&mut tx, team).await?;
        let row = member(&mut tx, team, user).await?;
        about(AuditResource::new("member", user).named(row.email.clone()).of_team(team));
        if row.role() == TeamRole::Owner {
            return Ok(());
        }
        if members::address_of(&mut tx, user.uuid()).await?.is_none() {
            let message =
                format!("the account of {} is not active: transfer the team to another member", row.email);
            return Err(Fault::new(ErrorCode::Conflict, message));
        }
        let before = members::owner(&mut tx, team.uuid()).await?;
        // Of two transfers at once, the second one was asked for by somebody who is not the owner any more.
        if let (Some(owner), Some(by)) = (before, caller.user())
            && by.uuid() != owner
        {
            return Err(Fault::new(ErrorCode::Conflict, "you are not the owner of the team any more"));
        }
        if let Some(owner) = before {
            members::set_role(&mut tx, team.uuid(), owner, TeamRole::Admin).await?;
        }
        members::set_role(&mut tx, team.uuid(), user.uuid(), TeamRole::Owner).await?;
        self.app.mailer.send(&mut tx, &row.email, &Mail::Ownership { team: name }).await?;
        tx.commit().await?;
        self.app.mailer.wake();
        for user in before.into_iter().map(UserId::from).chain([user]) {
            self.app.access.forget(Changed::User(user)).await;
        }
        Ok(())
    }

    /// Lets all servers look up anew what a user and these keys may do.
    async fn forget(&self, user: UserId, keys: Vec<ApiKeyId>) {
        self.app.access.forget(Changed::User(user)).await;
        for key in keys {
            self.app.access.forget(Changed::Key(key)).await;
        }
    }
}

/// Decides what becomes of the API keys of a team, or of all teams, that a user has made, and returns those that were revoked.
/// Fails if there are any and nothing is said; the fault lists them with their last use.
pub(crate) async fn keys_settled(
    tx: &mut PgConnection,
    team: Option<TeamId>,
    user: UserId,
    name: &str,
    keys: Option<MadeKeys>,
) -> Result<Vec<ApiKeyId>, Fault> {
    let (team, user) = (team.map(TeamId::uuid), user.uuid());
    match keys {
        Some(MadeKeys::Keep) => {
            // Without a maker in the team nothing else bounds them.
            members::narrow_keys(tx, team, user, &permissions_of(TeamRole::Member).names()).await?;
            Ok(Vec::new())
        }
        Some(MadeKeys::Revoke) => {
            let revoked = members::revoke_keys(tx, team, user).await?;
            Ok(revoked.into_iter().map(ApiKeyId::from).collect())
        }
        None => {
            let made = members::keys(tx, team, user, NAMED as i64 + 1).await?;
            if made.is_empty() { Ok(Vec::new()) } else { Err(has_keys(name, &made)) }
        }
    }
}

/// The fault of a user who has made API keys that work.
fn has_keys(name: &str, made: &[MadeKey]) -> Fault {
    let shown = made.iter().take(NAMED).map(|key| {
        let used = key.last_used_at.map_or_else(
            || "never used".to_owned(),
            |at| format!("last used {}", at.format("%Y-%m-%d %H:%M UTC")),
        );
        format!("{:?} ({}, {}…, {used})", key.name, ApiKeyId::from(key.id), key.prefix)
    });
    let shown: Vec<_> = shown.collect();
    let (count, more) = if made.len() > NAMED {
        ("more than 10".to_owned(), ", and others")
    } else {
        (made.len().to_string(), "")
    };
    let message = format!(
        "{name:?} has made {count} API keys that still work: {}{more}; say keys=revoke to end them now, or keys=keep to leave \
         them to the team",
        shown.join(", ")
    );
    Fault::new(ErrorCode::MemberHasKeys, message)
}

/// Locks a team, and returns its name.
pub(super) async fn lock(tx: &mut PgConnection, team: TeamId) -> Result<String, Fault> {
    teams::lock(tx, team.uuid()).await?.ok_or_else(|| gone(team))
}

/// Returns a member who is not the owner.
async fn not_the_owner(
    tx: &mut PgConnection,
    team: TeamId,
    user: UserId,
    refused: &str,
) -> Result<Row, Fault> {
    let row = member(tx, team, user).await?;
    if row.role() == TeamRole::Owner {
        let message = format!("{refused}: transfer the team to another member first, or delete it");
        return Err(Fault::new(ErrorCode::Conflict, message));
    }
    Ok(row)
}

async fn member(tx: &mut PgConnection, team: TeamId, user: UserId) -> Result<Row, Fault> {
    let found = members::find(tx, team.uuid(), user.uuid()).await?;
    found.ok_or_else(|| Fault::new(ErrorCode::NotFound, format!("the team has no member {user}")))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(number: u128, last_used_at: Option<&str>) -> MadeKey {
        MadeKey {
            id: Uuid::from_u128(number),
            name: format!("ci {number}"),
            prefix: "wrn_3f9a".to_owned(),
            last_used_at: last_used_at.and_then(|at| at.parse().ok()),
        }
    }

    #[test]
    fn keys_are_listed_with_their_last_use() {
        let made = [key(1, Some("2026-01-31T09:30:00Z")), key(2, None)];
        let fault = has_keys("Grace", &made);
        assert_eq!(fault.code, ErrorCode::MemberHasKeys);
        for part in [
            "\"Grace\" has made 2 API keys",
            "\"ci 1\"",
            "last used 2026-01-31 09:30 UTC",
            "never used",
            "keys=keep",
        ] {
            assert!(fault.message.contains(part), "{part}: {}", fault.message);
        }
        let many: Vec<_> = (0..=NAMED as u128).map(|number| key(number, None)).collect();
        let message = has_keys("Grace", &many).message;
        assert!(
            message.contains("more than 10")
                && !message.contains("\"ci 10\"")
                && message.contains(", and others"),
            "{message}"
        );
    }
}
