// SPDX-License-Identifier: Apache-2.0
//! Tables of teams, members, invitations and quotas.

use wrenn_api::{AdminTeam, Invitation, MyInvitation, Quota, Team, TeamMember};

use crate::output::{plain, table, time};

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// Lists the caller's teams.
pub(super) fn teams(all: &[Team]) -> String {
    let rows = all.iter().map(|team| {
        let role = team.role.map(|role| role.to_string());
        [
            team.id.to_string(),
            plain(&team.name),
            or_dash(team.slug.clone()),
            or_dash(role),
            time(team.created_at),
        ]
    });
    table(["ID", "NAME", "SLUG", "ROLE", "CREATED"], rows)
}

/// Lists all teams.
pub(super) fn all_teams(all: &[AdminTeam]) -> String {
    let rows = all.iter().map(|team| {
        let state = match (team.deleted_at, team.emptied_at) {
            (None, _) => "",
            (Some(_), None) => "being deleted",
            (Some(_), Some(_)) => "deleted",
        };
        [
            team.id.to_string(),
            plain(&team.name),
            or_dash(team.owner_email.clone()),
            team.member_count.to_string(),
            team.active_sandbox_count.to_string(),
            if team.is_byoc { "yes" } else { "no" }.to_owned(),
            state.to_owned(),
        ]
    });
    table(["ID", "NAME", "OWNER", "MEMBERS", "SANDBOXES", "OWN HOSTS", "STATE"], rows)
}

/// Lists members.
pub(super) fn members(all: &[TeamMember]) -> String {
    let rows = all.iter().map(|member| {
        [
            member.user_id.to_string(),
            plain(&member.name),
            member.email.clone(),
            member.role.to_string(),
            time(member.joined_at),
        ]
    });
    table(["ID", "NAME", "ADDRESS", "ROLE", "SINCE"], rows)
}

/// Lists invitations into a team.
pub(super) fn invitations(all: &[Invitation]) -> String {
    let rows = all.iter().map(|one| {
        [
            one.id.to_string(),
            one.email.clone(),
            one.role.to_string(),
            one.inviter.clone(),
            time(one.expires_at),
        ]
    });
    table(["ID", "ADDRESS", "ROLE", "INVITED BY", "UNTIL"], rows)
}

/// Lists the caller's invitations.
pub(super) fn my_invitations(all: &[MyInvitation]) -> String {
    let rows = all.iter().map(|one| {
        let name = plain(&one.team_name);
        [one.id.to_string(), name, one.role.to_string(), one.inviter.clone(), time(one.expires_at)]
    });
    table(["ID", "TEAM", "ROLE", "INVITED BY", "UNTIL"], rows)
}

/// Lists quotas.
pub(super) fn quotas(all: &[Quota]) -> String {
    let rows =
        all.iter().map(|quota| [quota.name.to_string(), quota.used.to_string(), quota.limit.to_string()]);
    table(["NAME", "USED", "LIMIT"], rows)
}
