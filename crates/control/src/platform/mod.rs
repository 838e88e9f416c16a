// SPDX-License-Identifier: Apache-2.0
//! Platform service: what its administrators see and change of all teams. Each call needs the permission for it, which is looked up
//! with every request. Administrators act as themselves; nobody acts as another one.

mod teams;
mod users;

use uuid::Uuid;
use wrenn_api::{
    AdminHost, AdminSandbox, AdminTemplate, ErrorCode, HostId, SandboxId, SandboxStatus, TeamId,
};

pub use self::teams::ListedTeams;
pub use self::users::{ListedUsers, UserFilter};
use crate::{
    by::By,
    caller::{Caller, Permission},
    db::{
        platform::{self, Host, Template},
        sandboxes::{self, Row},
    },
    deeds::{AuditResource, about},
    error::Fault,
    names::is_template_name,
    sandboxes::destroy,
    state::App,
};

/// The platform, for its administrators.
#[derive(Clone)]
pub struct Platform {
    app: App,
}

/// Which sandboxes a list has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SandboxFilter {
    /// Only those of this team.
    pub team: Option<TeamId>,
    /// Only those on this host.
    pub host: Option<HostId>,
    /// Only those of this status; default: all that are not deleted.
    pub status: Option<SandboxStatus>,
}

impl Platform {
    /// Maximum number of entries of a page.
    pub const PAGE_MAX: u32 = 100;

    pub(crate) const fn new(app: App) -> Self {
        Self { app }
    }

    /// Lists hosts after the host `after`. The second value is `after` of the next page, if there is one.
    pub async fn hosts(
        &self,
        caller: &Caller,
        after: Option<HostId>,
        limit: u32,
    ) -> Result<(Vec<AdminHost>, Option<HostId>), Fault> {
        caller.require(Permission::PlatformAdmin)?;
        let limit = page(limit);
        let mut rows = platform::hosts(&self.app.db, after.map(HostId::uuid), limit as i64 + 1).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|row| row.id.into());
        Ok((rows.into_iter().map(Host::public).collect(), next))
    }

    /// Lists sandboxes of all teams that are older than `before`, the newest first. The second value is `before` of the next page,
    /// if there is one.
    pub async fn sandboxes(
        &self,
        caller: &Caller,
        filter: SandboxFilter,
        before: Option<SandboxId>,
        limit: u32,
    ) -> Result<(Vec<AdminSandbox>, Option<SandboxId>), Fault> {
        caller.require(Permission::PlatformAdmin)?;
        let limit = page(limit);
        let (team, host) = (filter.team.map(TeamId::uuid), filter.host.map(HostId::uuid));
        let before = before.map(SandboxId::uuid);
        let mut rows =
            sandboxes::of_all(&self.app.db, (team, host), filter.status, before, limit as i64 + 1).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(Row::public_id);
        let public = |row: &Row| AdminSandbox {
            team_id: row.team_id.into(),
            host_id: row.host_id.map(Into::into),
            sandbox: row.public(),
        };
        Ok((rows.iter().map(public).collect(), next))
    }

    /// Deletes a sandbox of any team, as its team can.
    pub async fn delete_sandbox(&self, caller: &Caller, id: SandboxId) -> Result<(), Fault> {
        caller.require(Permission::PlatformAdmin)?;
        let team = sandboxes::team_of(&self.app.db, id.uuid()).await?;
        let none = || Fault::new(ErrorCode::NotFound, format!("there is no sandbox {id}"));
        let team: Uuid = team.ok_or_else(none)?;
        about(AuditResource::new("sandbox", id).of_team(team.into()));
        destroy(&self.app, team, id, By::admin(caller)).await
    }

    /// Lists templates that teams, or one team, and the platform have built, each by its newest version, after the template `after`
    /// of a team. The second value is `after` of the next page, if there is one.
    pub async fn templates(
        &self,
        caller: &Caller,
        team: Option<TeamId>,
        after: Option<(TeamId, String)>,
        limit: u32,
    ) -> Result<(Vec<AdminTemplate>, Option<(TeamId, String)>), Fault> {
        caller.require(Permission::PlatformAdmin)?;
        if after.as_ref().is_some_and(|(_, name)| !is_template_name(name)) {
            return Err(Fault::invalid("cursor: take it from the page before, or leave it out"));
        }
        let limit = page(limit);
        let after = after.as_ref().map(|(team, name)| (team.uuid(), name.as_str()));
        let team = team.map(TeamId::uuid);
        let mut rows = platform::templates(&self.app.db, team, after, limit as i64 + 1).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|row| (row.team_id.into(), row.name.clone()));
        Ok((rows.into_iter().map(Template::public).collect(), next))
    }
}

/// Number of entries of a page for which so many are asked.
fn page(limit: u32) -> usize {
    limit.clamp(1, Platform::PAGE_MAX) as usize
}
