// SPDX-License-Identifier: Apache-2.0
//! Teams, for administrators of the platform: listed, given quotas and hosts of their own, and deleted.

use wrenn_api::{AdminTeam, ErrorCode, QuotaName, TeamId, TeamQuotas};

use super::{Platform, page};
use crate::{
    by::By,
    caller::{Caller, Permission},
    db::{
        platform::{self, Team},
        quotas, teams,
    },
    deeds::{AuditResource, about},
    error::Fault,
    teams::Teams,
};

/// Part of a list of teams.
#[derive(Debug)]
#[non_exhaustive]
pub struct ListedTeams {
    /// The teams.
    pub teams: Vec<AdminTeam>,
    /// `before` of the next page, if there is one.
    pub next: Option<TeamId>,
}

impl Platform {
    /// Lists teams that are older than `before`, the newest first, with or without deleted ones.
    pub async fn teams(
        &self,
        caller: &Caller,
        with_deleted: bool,
        before: Option<TeamId>,
        limit: u32,
    ) -> Result<ListedTeams, Fault> {
        caller.require(Permission::PlatformAdmin)?;
        let limit = page(limit);
        let before = before.map(TeamId::uuid);
        let mut rows = platform::teams(&self.app.db, None, with_deleted, before, limit as i64 + 1).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|row| row.id.into());
        Ok(ListedTeams { teams: rows.into_iter().map(Team::public).collect(), next })
    }

    /// Lets a team bring hosts of its own, or takes that back, while it has none.
    pub async fn set_byoc(&self, caller: &Caller, id: TeamId, is_byoc: bool) -> Result<AdminTeam, Fault> {
        caller.require(Permission::PlatformAdmin)?;
        let mut tx = self.app.db.begin().await?;
        let name = teams::lock(&mut tx, id.uuid()).await?.filter(|_| id != TeamId::PLATFORM);
        about(AuditResource::new("team", id).named(name.ok_or_else(|| none(id))?).of_team(id));
        let hosts = platform::own_hosts(&mut tx, id.uuid()).await?;
        if !is_byoc && hosts > 0 {
            let message = format!("the team has {hosts} hosts of its own: remove them first");
            return Err(Fault::new(ErrorCode::Conflict, message));
        }
        platform::set_byoc(&mut tx, id.uuid(), is_byoc).await?;
        tx.commit().await?;
        self.team(id).await
    }

    /// Gives a team quotas of its own, in the place of those that it had. What it has beyond them stays, and it gets no more. The
    /// platform has those of the server.
    pub async fn set_quotas(
        &self,
        caller: &Caller,
        id: TeamId,
        own: &TeamQuotas,
    ) -> Result<AdminTeam, Fault> {
        caller.require(Permission::PlatformAdmin)?;
        for name in QuotaName::ALL.iter().copied() {
            if let Some(limit) = own.get(name).filter(|limit| *limit > name.max()) {
                return Err(Fault::invalid(format!("{name} is {limit}: it must be 0 to {}", name.max())));
            }
        }
        let json = serde_json::to_value(own).map_err(|error| {
            tracing::error!(%error, "quotas cannot be written");
            Fault::internal()
        })?;
        if id == TeamId::PLATFORM {
            let message = "the platform's team has the quotas of the server: change its settings instead";
            return Err(Fault::new(ErrorCode::NotFound, message));
        }
        let is_none = *own == TeamQuotas::default();
        about(AuditResource::new("team", id).of_team(id));
        if !quotas::set(&self.app.db, id.uuid(), Some(&json).filter(|_| !is_none)).await? {
            return Err(none(id));
        }
        self.team(id).await
    }

    /// Deletes a team, as its owner can.
    pub async fn delete_team(&self, caller: &Caller, id: TeamId) -> Result<(), Fault> {
        caller.require(Permission::PlatformAdmin)?;
        if id == TeamId::PLATFORM {
            return Err(none(id));
        }
        Teams::new(self.app.clone()).delete_as(id, By::admin(caller)).await
    }

    async fn team(&self, id: TeamId) -> Result<AdminTeam, Fault> {
        let found = platform::teams(&self.app.db, Some(id.uuid()), true, None, 1).await?;
        found.into_iter().next().map(Team::public).ok_or_else(|| none(id))
    }
}

/// The fault of a team that is not there.
fn none(id: TeamId) -> Fault {
    Fault::new(ErrorCode::NotFound, format!("there is no team {id}, or it was deleted"))
}
