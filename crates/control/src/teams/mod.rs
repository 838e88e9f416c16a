// SPDX-License-Identifier: Apache-2.0
//! Teams service: teams, their members, and invitations into them. Who may act in the team of a path was found out before
//! ([`crate::access::Access::in_team`]): callers act for that team here.

mod cleanup;
mod invitations;
mod members;
mod names;

use rand::RngCore as _;
use sqlx::PgConnection;
use uuid::Uuid;
use wrenn_api::{ErrorCode, Quota, Team, TeamId, TeamRole, UserId};

pub(crate) use self::cleanup::run as cleanup;
pub use self::invitations::{ListedInvitations, ListedMine};
pub use self::members::ListedMembers;
pub(crate) use self::members::keys_settled;
use self::names::check_name;
use crate::{
    access::Changed,
    by::By,
    caller::Caller,
    db::{members as member_rows, teams, templates},
    deeds::{AuditResource, about},
    error::Fault,
    mail::Mail,
    quotas,
    state::App,
};

/// Maximum number of teams that a user owns.
const OWNED_MAX: i64 = 100;
/// Maximum number of members who are told that their team was deleted.
const TOLD_MAX: i64 = 1000;

/// Teams of users.
#[derive(Clone)]
pub struct Teams {
    app: App,
}

/// Part of a list of teams.
#[derive(Debug)]
#[non_exhaustive]
pub struct ListedTeams {
    /// The teams.
    pub teams: Vec<Team>,
    /// `after` of the next page, if there is one.
    pub next: Option<TeamId>,
}

impl Teams {
    /// Maximum number of entries of a page.
    pub const PAGE_MAX: u32 = 100;

    pub(crate) const fn new(app: App) -> Self {
        Self { app }
    }

    /// Creates a team that the caller owns, who must be a user.
    pub async fn create(&self, caller: &Caller, name: &str) -> Result<Team, Fault> {
        check_name(name)?;
        let user = caller.user().ok_or_else(users_only)?;
        let id = TeamId::new();
        let mut tx = self.app.db.begin().await?;
        if teams::owned_by(&mut tx, user.uuid()).await? >= OWNED_MAX {
            let message =
                format!("you own {OWNED_MAX} teams, as many as a user may: delete some, or transfer them");
            return Err(Fault::new(ErrorCode::Conflict, message));
        }
        insert(&mut tx, id, name, user.uuid()).await?;
        tx.commit().await?;
        about(AuditResource::new("team", id).named(name).of_team(id));
        self.app.access.forget(Changed::User(user)).await;
        self.find(id, Some(user.uuid())).await
    }

    /// Lists the teams of a user after the team `after`; of any other caller the team that it acts for.
    pub async fn list(
        &self,
        caller: &Caller,
        after: Option<TeamId>,
        limit: u32,
    ) -> Result<ListedTeams, Fault> {
        let limit = limit.clamp(1, Self::PAGE_MAX) as usize;
        let Some(user) = caller.user() else {
            let is_before = after.is_none_or(|after| after < caller.team());
            let own = if is_before { Some(self.find(caller.team(), None).await?) } else { None };
            return Ok(ListedTeams { teams: own.into_iter().collect(), next: None });
        };
        // One more row than requested shows whether there is another page.
        let after = after.map(TeamId::uuid);
        let mut rows = teams::of_user(&self.app.db, user.uuid(), after, limit as i64 + 1).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|row| row.id.into());
        Ok(ListedTeams { teams: rows.into_iter().map(teams::Row::public).collect(), next })
    }

    /// Returns the team of the caller.
    pub async fn get(&self, caller: &Caller) -> Result<Team, Fault> {
        self.find(caller.team(), caller.user().map(UserId::uuid)).await
    }

    /// Renames the team of the caller.
    pub async fn rename(&self, caller: &Caller, name: &str) -> Result<Team, Fault> {
        check_name(name)?;
        let team = caller.team();
        about(AuditResource::new("team", team).named(name).of_team(team));
        if !teams::rename(&self.app.db, team.uuid(), name).await? {
            return Err(gone(team));
        }
        self.get(caller).await
    }

    /// Deletes the team of the caller with everything that it has: keys, invitations and members at once, and sandboxes, templates,
    /// snapshots and images on all hosts as soon as they answer.
    pub async fn delete(&self, caller: &Caller) -> Result<(), Fault> {
        self.delete_as(caller.team(), By::caller(caller)).await
    }

    /// Lists the quotas of the team of the caller, and what it uses of them.
    pub async fn quotas(&self, caller: &Caller) -> Result<Vec<Quota>, Fault> {
        let mut connection = self.app.db.acquire().await?;
        quotas::list(&mut connection, caller.team().uuid(), &self.app.limits).await
    }

    /// Deletes a team, which its owner or an administrator of the platform wants.
    pub(crate) async fn delete_as(&self, team: TeamId, by: By) -> Result<(), Fault> {
        let app = &self.app;
        let mut tx = app.db.begin().await?;
        let Some(name) = delete_in(&mut tx, app, team.uuid(), true).await? else { return Err(gone(team)) };
        tx.commit().await?;
        about(AuditResource::new("team", team).named(name).of_team(team));
        tracing::info!(%team, "a team was deleted; what it has is removed from its hosts");
        app.mailer.wake();
        app.access.forget(Changed::Team(team)).await;
        cleanup::begin(app, team, by);
        Ok(())
    }

    async fn find(&self, id: TeamId, user: Option<Uuid>) -> Result<Team, Fault> {
        let row = teams::find(&self.app.db, id.uuid(), user).await?;
        row.map(teams::Row::public).ok_or_else(|| gone(id))
    }
}

/// Inserts a team with its owner.
pub(crate) async fn insert(tx: &mut PgConnection, id: TeamId, name: &str, owner: Uuid) -> Result<(), Fault> {
    teams::insert(tx, id.uuid(), name, &slug()).await?;
    member_rows::insert(tx, id.uuid(), owner, TeamRole::Owner).await?;
    Ok(())
}

/// Deletes a team in a transaction, and returns its name; `None` if it is deleted. With `tell`, its members get a mail. What hosts
/// have of it is removed by the worker [`cleanup`]. After the commit, forget the callers of the team ([`Changed::Team`]).
pub(crate) async fn delete_in(
    tx: &mut PgConnection,
    app: &App,
    team: Uuid,
    tell: bool,
) -> Result<Option<String>, Fault> {
    let Some(name) = teams::lock(tx, team).await? else { return Ok(None) };
    let told = if tell { member_rows::addresses(tx, team, TOLD_MAX).await? } else { Vec::new() };
    for address in told {
        app.mailer.send(tx, &address, &Mail::TeamDeleted { team: name.clone() }).await?;
    }
    teams::delete(tx, team).await?;
    templates::delete_all(tx, team).await?;
    Ok(Some(name))
}

/// Returns a new name of a team in URLs.
fn slug() -> String {
    let mut bytes = [0_u8; 6];
    rand::rng().fill_bytes(&mut bytes);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{}-{}", hex(&bytes[..3]), hex(&bytes[3..]))
}

/// The fault of a team that is not there.
fn gone(team: TeamId) -> Fault {
    Fault::new(ErrorCode::NotFound, format!("there is no team {team}, or it was deleted"))
}

/// The fault of a caller that is no user.
fn users_only() -> Fault {
    Fault::new(ErrorCode::Forbidden, "only users can do this: sign in, an API key is not enough")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_is_of_two_groups_of_digits() {
        let (one, other) = (slug(), slug());
        assert_ne!(one, other);
        let (first, second) = one.split_once('-').expect("two groups");
        let is_group = |text: &str| text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(is_group(first) && is_group(second), "{one}");
    }
}
