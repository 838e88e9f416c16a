// SPDX-License-Identifier: Apache-2.0
//! `wrenn team`: teams, their members, and invitations into them.

mod find;
mod table;

use anyhow::Result;
use serde_json::json;
use wrenn_api::{AcceptInvitation, GivenRole, InvitationId, MadeKeys, QuotaName, TeamId, TeamQuotas};
use wrenn_client::Client;

pub(crate) use self::find::of_caller;
use crate::{
    confirm,
    output::{Format, note, plain},
    password::FromStdin,
};

/// Text after the help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  wrenn team invite grace@example.com --role admin
  wrenn team remove grace@example.com --keys revoke
  wrenn team use \"Analytical Engines\"
  wrenn team use --platform";

/// Which team a command is about.
#[derive(Debug, clap::Args)]
pub(crate) struct OfTeam {
    /// The team: its id, its slug or its name [default: the one that you act for]
    #[arg(long = "team", value_name = "TEAM")]
    of_team: Option<String>,
}

/// Subcommands of `wrenn team`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List your teams
    #[command(visible_alias = "list")]
    Ls {
        /// List all teams, also deleted ones, as administrators of the platform may
        #[arg(long)]
        platform: bool,
    },
    /// Create a team, which you own
    Create {
        /// Its name
        name: String,
    },
    /// Act for another one of your teams from now on
    #[command(visible_alias = "switch")]
    Use {
        /// The team: its id, its slug or its name
        #[arg(required_unless_present = "platform")]
        team: Option<String>,
        /// Act for the platform, as its administrators may
        #[arg(long, conflicts_with = "team")]
        platform: bool,
    },
    /// Give a team another name
    Rename {
        /// The new name
        name: String,
        #[command(flatten)]
        of: OfTeam,
    },
    /// Delete a team with its sandboxes, snapshots, templates and keys
    #[command(visible_alias = "delete")]
    Rm {
        /// The team: its id, its slug or its name
        team: String,
        /// Do not ask
        #[arg(long, short = 'y')]
        yes: bool,
        /// It is any team, of which administrators of the platform know the id
        #[arg(long)]
        platform: bool,
    },
    /// Leave a team
    Leave {
        /// The team: its id, its slug or its name
        team: String,
        /// What becomes of the API keys that you made: revoke or keep
        #[arg(long, value_name = "HOW", value_parser = keys)]
        keys: Option<MadeKeys>,
    },
    /// List the members of a team
    Members(OfTeam),
    /// Give a member another role
    Role {
        /// The member: its address or its id
        member: String,
        /// The role: member or admin
        #[arg(value_parser = role)]
        role: GivenRole,
        #[command(flatten)]
        of: OfTeam,
    },
    /// Remove a member
    Remove {
        /// The member: its address or its id
        member: String,
        /// What becomes of the API keys that it made: revoke or keep
        #[arg(long, value_name = "HOW", value_parser = keys)]
        keys: Option<MadeKeys>,
        #[command(flatten)]
        of: OfTeam,
    },
    /// Make a member the owner of a team; you are an admin of it then
    Transfer {
        /// The member: its address or its id
        member: String,
        #[command(flatten)]
        of: OfTeam,
    },
    /// Invite somebody into a team
    Invite {
        /// The address
        #[arg(value_name = "ADDRESS")]
        email: String,
        /// The role: member or admin
        #[arg(long, default_value = "member", value_parser = role)]
        role: GivenRole,
        #[command(flatten)]
        of: OfTeam,
    },
    /// List the invitations into a team that were not accepted yet, or your own
    Invitations {
        /// List the teams that you are invited into
        #[arg(long, conflicts_with = "of_team")]
        mine: bool,
        #[command(flatten)]
        of: OfTeam,
    },
    /// Take invitations back
    Uninvite {
        /// The invitations, by their ids
        #[arg(required = true, value_name = "INVITATION")]
        invitations: Vec<InvitationId>,
        #[command(flatten)]
        of: OfTeam,
    },
    /// Accept an invitation: the one with this id, or that of a mail, whose link is asked for
    Accept {
        /// The invitation, by its id, as in `wrenn team invitations --mine`
        #[arg(value_name = "INVITATION")]
        invitation: Option<InvitationId>,
        #[command(flatten)]
        from: FromStdin,
    },
    /// Show the limits of a team, and how much of each is used; administrators of the platform set them
    Quotas {
        #[command(flatten)]
        of: OfTeam,
        /// Set a limit of any team, by its id, to a number, or to `server` for that of the server; may be repeated
        #[arg(long = "limit", value_name = "NAME=LIMIT", value_parser = limit, requires = "of_team")]
        limits: Vec<(QuotaName, Option<u32>)>,
    },
}

/// Runs `wrenn team`.
pub(crate) async fn run(client: &Client, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Ls { platform: true } => {
            let all = client.all_teams(true).await?;
            format.print(&all, || table::all_teams(&all))?;
        }
        Command::Ls { platform: false } => {
            let all = client.list_teams().await?;
            format.print(&all, || table::teams(&all))?;
        }
        Command::Create { name } => {
            let team = client.create_team(name).await?;
            format.print(&team, || team.id.to_string())?;
        }
        Command::Use { platform: true, .. } => {
            let me = client.switch_team(TeamId::PLATFORM).await?;
            format.print(&me, || "you act for the platform: `wrenn team use TEAM` goes back".to_owned())?;
        }
        Command::Use { team, .. } => {
            let team = find::team(client, team.as_deref().unwrap_or_default()).await?;
            let me = client.switch_team(team.id).await?;
            format.print(&me, || format!("you act for {} ({})", plain(&team.name), team.id))?;
        }
        Command::Rename { name, of } => {
            let team = client.rename_team(of.id(client).await?, name).await?;
            format.print(&team, || team.id.to_string())?;
        }
        Command::Rm { team, yes, platform } => remove(client, team, *yes, *platform, format).await?,
        Command::Leave { team, keys } => {
            let team = find::team(client, team).await?;
            client.leave_team(team.id, *keys).await?;
            format.print(&json!({ "left": team.id }), || team.id.to_string())?;
        }
        Command::Members(_) | Command::Role { .. } | Command::Remove { .. } | Command::Transfer { .. } => {
            members(client, what, format).await?;
        }
        Command::Invite { .. }
        | Command::Invitations { .. }
        | Command::Uninvite { .. }
        | Command::Accept { .. } => invitations(client, what, format).await?,
        Command::Quotas { of, limits } => quotas(client, of, limits, format).await?,
    }
    Ok(0)
}

async fn remove(client: &Client, team: &str, yes: bool, platform: bool, format: Format) -> Result<()> {
    let (id, name) = if platform {
        (find::id(team)?, team.to_owned())
    } else {
        let found = find::team(client, team).await?;
        (found.id, format!("{} ({})", plain(&found.name), found.id))
    };
    if !yes {
        confirm::removal(&format!("team {name}"), "with its sandboxes, snapshots, templates and keys")
            .await?;
    }
    if platform {
        client.delete_any_team(id).await?;
    } else {
        client.delete_team(id).await?;
    }
    format.print(&json!({ "removed": id }), || id.to_string())
}

/// Runs the commands about members.
async fn members(client: &Client, what: &Command, format: Format) -> Result<()> {
    match what {
        Command::Members(of) => {
            let all = client.list_members(of.id(client).await?).await?;
            format.print(&all, || table::members(&all))
        }
        Command::Role { member, role, of } => {
            let team = of.id(client).await?;
            let member = find::member(client, team, member).await?;
            let changed = client.update_member(team, member.user_id, *role).await?;
            format.print(&changed, || format!("{}  {}", changed.email, changed.role))
        }
        Command::Remove { member, keys, of } => {
            let team = of.id(client).await?;
            let member = find::member(client, team, member).await?;
            client.remove_member(team, member.user_id, *keys).await?;
            format.print(&json!({ "removed": member.user_id }), || member.email.clone())
        }
        Command::Transfer { member, of } => {
            let team = of.id(client).await?;
            let member = find::member(client, team, member).await?;
            client.transfer_team(team, member.user_id).await?;
            format.print(&json!({ "owner": member.user_id }), || member.email.clone())
        }
        _ => Ok(()),
    }
}

/// Runs the commands about invitations.
async fn invitations(client: &Client, what: &Command, format: Format) -> Result<()> {
    match what {
        Command::Invite { email, role, of } => {
            let made = client.invite(of.id(client).await?, email, *role).await?;
            if !made.mailed {
                note(
                    "wrenn: this server sends no mail: who is invited signs in and uses `wrenn team invitations --mine`",
                );
            }
            format.print(&made, || made.invitation.id.to_string())
        }
        Command::Invitations { mine: true, .. } => {
            let all = client.my_invitations().await?;
            format.print(&all, || table::my_invitations(&all))
        }
        Command::Invitations { of, .. } => {
            let all = client.list_invitations(of.id(client).await?).await?;
            format.print(&all, || table::invitations(&all))
        }
        Command::Uninvite { invitations, of } => {
            let team = of.id(client).await?;
            for invitation in invitations {
                client.delete_invitation(team, *invitation).await?;
            }
            let ids: Vec<_> = invitations.iter().map(ToString::to_string).collect();
            format.print(&json!({ "removed": ids }), || ids.join("\n"))
        }
        Command::Accept { invitation, from } => {
            let which = match invitation {
                Some(id) => AcceptInvitation { id: Some(*id), token: None },
                None => {
                    let link = from.read("link of the invitation")?;
                    let (_, token) = crate::login::parts(link.reveal())?;
                    AcceptInvitation { id: None, token: Some(token.to_owned().into()) }
                }
            };
            let team = client.accept_invitation(&which).await?;
            format.print(&team, || format!("you are in {} ({})", plain(&team.name), team.id))
        }
        _ => Ok(()),
    }
}

async fn quotas(
    client: &Client,
    of: &OfTeam,
    limits: &[(QuotaName, Option<u32>)],
    format: Format,
) -> Result<()> {
    if limits.is_empty() {
        let all = client.team_quotas(of.id(client).await?).await?;
        return format.print(&all, || table::quotas(&all));
    }
    let id = find::id(of.of_team.as_deref().unwrap_or_default())?;
    let all = client.all_teams(false).await?;
    let present = all.iter().find(|team| team.id == id).map(|team| team.quotas).unwrap_or_default();
    let changed = with_limits(present, limits)?;
    let team = client.set_team_quotas(id, &changed).await?;
    format.print(&team, || crate::output::fields(&team.quotas))
}

/// Returns quotas with other limits; the rest stays.
fn with_limits(present: TeamQuotas, limits: &[(QuotaName, Option<u32>)]) -> Result<TeamQuotas> {
    let mut value = serde_json::to_value(present)?;
    for (name, limit) in limits {
        value[name.as_str()] = json!(limit);
    }
    Ok(serde_json::from_value(value)?)
}

impl OfTeam {
    /// Id of the team.
    async fn id(&self, client: &Client) -> Result<TeamId> {
        match &self.of_team {
            Some(team) => find::team(client, team).await.map(|team| team.id),
            None => of_caller(client).await,
        }
    }
}

fn role(text: &str) -> Result<GivenRole, String> {
    text.parse().map_err(|()| format!("write {}", GivenRole::ALL.map(GivenRole::as_str).join(" or ")))
}

/// Parses what becomes of keys.
pub(crate) fn keys(text: &str) -> Result<MadeKeys, String> {
    text.parse().map_err(|()| "write revoke or keep".to_owned())
}

fn limit(text: &str) -> Result<(QuotaName, Option<u32>), String> {
    let all = || QuotaName::ALL.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let wrong = || format!("write NAME=LIMIT, with a name of {}, and a number or `server`", all());
    let (name, limit) = text.split_once('=').ok_or_else(wrong)?;
    let name = QuotaName::ALL.iter().find(|known| known.as_str() == name).ok_or_else(wrong)?;
    let limit = if limit == "server" { None } else { Some(limit.parse().map_err(|_| wrong())?) };
    Ok((*name, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named_and_the_rest_stays() -> Result<()> {
        assert_eq!(limit("running=50"), Ok((QuotaName::Running, Some(50))));
        assert_eq!(limit("running=server"), Ok((QuotaName::Running, None)));
        for wrong in ["running", "flying=1", "running=-1", "running=", "=1"] {
            assert!(limit(wrong).is_err_and(|told| told.contains("memory_mb")), "{wrong}");
        }
        let present = TeamQuotas { running: Some(5), vcpus: Some(7), ..TeamQuotas::default() };
        let changed = with_limits(present, &[(QuotaName::Running, None), (QuotaName::Builds, Some(2))])?;
        assert_eq!(changed, TeamQuotas { vcpus: Some(7), builds: Some(2), ..TeamQuotas::default() });
        Ok(())
    }
}
