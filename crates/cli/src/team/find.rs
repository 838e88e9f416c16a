// SPDX-License-Identifier: Apache-2.0
//! Teams and members by the names that people give them.

use anyhow::{Context as _, Result};
use wrenn_api::{Team, TeamId, TeamMember};
use wrenn_client::Client;

use crate::failure::Failure;

/// Finds one of the caller's teams by its id, its slug or its name.
pub(super) async fn team(client: &Client, text: &str) -> Result<Team> {
    let all = client.list_teams().await?;
    let by = |is_it: &dyn Fn(&Team) -> bool| all.iter().filter(|team| is_it(team)).collect::<Vec<_>>();
    let mut found = by(&|team| team.id.to_string() == text || team.slug.as_deref() == Some(text));
    if found.is_empty() {
        found = by(&|team| team.name == text);
    }
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let message = format!("you are in no team {text:?}: `wrenn team ls` lists yours");
            Err(Failure::new("not_found", message).into())
        }
        several => {
            let ids: Vec<_> = several.iter().map(|team| team.id.to_string()).collect();
            let message =
                format!("several of your teams are called {text:?}: name one by its id: {}", ids.join(", "));
            Err(Failure::new("ambiguous_id", message).into())
        }
    }
}

/// Parses the id of a team.
pub(super) fn id(text: &str) -> Result<TeamId> {
    text.parse().with_context(|| {
        format!("{text:?} is not the id of a team, as `wrenn team ls --platform` lists them")
    })
}

/// Returns the team that the caller acts for.
pub(crate) async fn of_caller(client: &Client) -> Result<TeamId> {
    let none = || {
        Failure::new(
            "not_found",
            "you are in no team: `wrenn team invitations --mine`, or `wrenn team create NAME`",
        )
    };
    if client.is_of_user() {
        return Ok(client.me().await?.team_id.ok_or_else(none)?);
    }
    // A key is of one team.
    Ok(client.list_teams().await?.first().ok_or_else(none)?.id)
}

/// Finds a member by its address or its id.
pub(super) async fn member(client: &Client, team: TeamId, text: &str) -> Result<TeamMember> {
    let all = client.list_members(team).await?;
    let is_it =
        |member: &TeamMember| member.email.eq_ignore_ascii_case(text) || member.user_id.to_string() == text;
    let found = all.into_iter().find(is_it);
    found.ok_or_else(|| {
        let message = format!("the team has no member {text:?}: `wrenn team members` lists them");
        Failure::new("not_found", message).into()
    })
}
