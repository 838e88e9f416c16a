// SPDX-License-Identifier: Apache-2.0
//! `wrenn key`: API keys of the team, by the API, or with `--local` by the database of this machine's Wrenn: a key that was lost
//! is no dead end.

use anyhow::{Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use wrenn_api::{ApiKey, ApiKeyId, CreateApiKey, CreatedApiKey, TeamId, UpdateApiKey};
use wrenn_client::Client;

use crate::{
    config::Config,
    contexts::Target,
    creation::seconds,
    output::{self, Format, note, time},
    serve,
};

/// Text after the help.
pub(crate) const EXAMPLES: &str = "\
A key does what its scopes say, permissions such as sandbox.read; without scopes, all that an administrator of the team may. It never
does more than its maker may. x-permission in the API's description (`wrenn openapi`) names the permission of each operation.

Examples:
  wrenn key create ci --scope sandbox.read --scope sandbox.create --expires 90d
  wrenn key revoke key03halx8fdhw2fu3txwbd0kdw0
  sudo wrenn key create --local --admin        as who runs Wrenn on this machine, also without any key";

/// Options of commands that work without a server, too.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// Use the database of this machine's Wrenn, as who runs it may, instead of the API
    #[arg(long)]
    local: bool,
    /// With --local: the team, by its id [default: the oldest one]
    #[arg(long = "team", value_name = "TEAM", requires = "local")]
    team_id: Option<TeamId>,
}

/// Subcommands of `wrenn key`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create a key and print it; it is shown this one time
    Create {
        /// Its name
        #[arg(default_value = "wrenn key")]
        name: String,
        /// A permission that it has, such as sandbox.read; may be repeated [default: all of an administrator of the team]
        #[arg(long = "scope", value_name = "PERMISSION")]
        scopes: Vec<String>,
        /// When it ends: in so long, such as 90d, or at a time such as 2027-01-31T09:30:00Z [default: never]
        #[arg(long, value_name = "TIME", value_parser = end)]
        expires: Option<DateTime<Utc>>,
        /// With --local: it administers the platform too
        #[arg(long, requires = "local")]
        admin: bool,
        #[command(flatten)]
        place: Place,
    },
    /// List the keys of the team
    #[command(visible_alias = "list")]
    Ls(Place),
    /// Change name, scopes or end of a key; its secret stays
    Update {
        /// The key, by its id
        #[arg(value_name = "KEY")]
        key_id: ApiKeyId,
        /// Its new name
        #[arg(long)]
        name: Option<String>,
        /// A permission that it has from now on, instead of those it had; may be repeated
        #[arg(long = "scope", value_name = "PERMISSION")]
        scopes: Vec<String>,
        /// When it ends, as for a new one
        #[arg(long, value_name = "TIME", value_parser = end)]
        expires: Option<DateTime<Utc>>,
    },
    /// Revoke keys at once, also for what is open by them
    #[command(visible_aliases = ["rm", "delete"])]
    Revoke {
        /// The keys, by their ids
        #[arg(required = true, value_name = "KEY")]
        key_ids: Vec<ApiKeyId>,
        #[command(flatten)]
        place: Place,
    },
}

/// Runs `wrenn key`.
pub(crate) async fn run(config: &Config, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Create { name, scopes, expires, admin, place } => {
            let new = CreateApiKey { name: name.clone(), scopes: some(scopes), expires_at: *expires };
            let made = if place.local {
                serve::admin(config)?.create_key(place.team_id, &new, *admin).await?
            } else {
                client(config)?.create_api_key(&new).await?
            };
            print(&made, format)?;
        }
        Command::Ls(place) => {
            let all = if place.local {
                serve::admin(config)?.list_keys(place.team_id).await?
            } else {
                client(config)?.list_api_keys().await?
            };
            format.print(&all, || table(&all))?;
        }
        Command::Update { key_id, name, scopes, expires } => {
            let update = UpdateApiKey { name: name.clone(), scopes: some(scopes), expires_at: *expires };
            ensure!(update != UpdateApiKey::default(), "say what to change: --name, --scope or --expires");
            let changed = client(config)?.update_api_key(*key_id, &update).await?;
            format.print(&changed, || table(std::slice::from_ref(&changed)))?;
        }
        Command::Revoke { key_ids, place } => {
            for &id in key_ids {
                if place.local {
                    serve::admin(config)?.revoke_key(place.team_id, id).await?;
                } else {
                    client(config)?.revoke_api_key(id).await?;
                }
            }
            let ids: Vec<_> = key_ids.iter().map(ToString::to_string).collect();
            format.print(&json!({ "revoked": ids }), || ids.join("\n"))?;
        }
    }
    Ok(0)
}

fn client(config: &Config) -> Result<Client> {
    Target::of(config)?.client()
}

/// Prints a new key. As text it is alone on standard output, for a pipe.
fn print(made: &CreatedApiKey, format: Format) -> Result<()> {
    if format == Format::Text {
        let (id, name) = (made.api_key.id, output::plain(&made.api_key.name));
        note(&format!("API key {id} ({name}); it is shown this one time:"));
    }
    format.print(made, || made.key.reveal().to_owned())
}

fn some(scopes: &[String]) -> Option<Vec<String>> {
    (!scopes.is_empty()).then(|| scopes.to_vec())
}

/// Parses the end of a key: in so long, or a time.
fn end(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let end =
        seconds(text).ok().and_then(|time| Utc::now().checked_add_signed(TimeDelta::seconds(time.into())));
    end.ok_or_else(|| "write in how long, such as 90d, or a time such as 2027-01-31T09:30:00Z".to_owned())
}

fn table(all: &[ApiKey]) -> String {
    let rows = all.iter().map(|key| {
        let maker =
            key.created_by.as_ref().map(|maker| maker.email.clone().unwrap_or_else(|| maker.id.to_string()));
        [
            key.id.to_string(),
            output::plain(&key.name),
            format!("{}…", key.prefix),
            key.scopes.as_ref().map_or_else(|| "all".to_owned(), |scopes| scopes.join(",")),
            maker.unwrap_or_else(|| "operator".to_owned()),
            key.last_used_at.map_or_else(|| "never".to_owned(), time),
            key.expires_at.map_or_else(|| "never".to_owned(), time),
        ]
    });
    output::table(["ID", "NAME", "KEY", "SCOPES", "MADE BY", "LAST USED", "ENDS"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_in_so_long_or_times() {
        assert_eq!(end("2027-01-31T10:30:00+01:00"), end("2027-01-31T09:30:00Z"));
        let left = end("90d").expect("a time") - Utc::now();
        assert!((90 * 86_400 - 60..=90 * 86_400).contains(&left.num_seconds()), "{left}");
        for wrong in ["", "soon", "90x", "2027-01-31"] {
            assert!(end(wrong).is_err_and(|told| told.contains("90d")), "{wrong}");
        }
    }

    #[test]
    fn keys_are_listed_with_their_maker() {
        let value = json!([{"id": "key03halx8fdhw2fu3txwbd0kdw0", "name": "ci", "prefix": "wrn_3f9a",
            "scopes": ["sandbox.read", "event.read"], "created_at": "2026-01-31T09:30:00Z",
            "created_by": {"id": "us03halx8fdhw2fu3txwbd0kdw0", "email": "ada@example.com"}}]);
        let all: Vec<ApiKey> = serde_json::from_value(value).expect("keys");
        let text = table(&all);
        let words: Vec<_> = text.lines().nth(1).unwrap_or_default().split_whitespace().collect();
        let expected = [
            "key03halx8fdhw2fu3txwbd0kdw0",
            "ci",
            "wrn_3f9a…",
            "sandbox.read,event.read",
            "ada@example.com",
            "never",
            "never",
        ];
        assert_eq!(words, expected);
    }
}
