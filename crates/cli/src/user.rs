// SPDX-License-Identifier: Apache-2.0
//! `wrenn user`: users of the platform. Who runs Wrenn on this machine makes them in its database, without mail; the rest is done
//! by the API, as administrators of the platform may.

use anyhow::Result;
use serde_json::json;
use wrenn_api::{AdminUser, ChangePassword, MadeKeys, UserId, UserStatus};
use wrenn_client::Client;
use wrenn_control::SignInLink;

use crate::{
    config::Config,
    confirm,
    contexts::Target,
    failure::Failure,
    output::{self, Format, note, time},
    password::FromStdin,
    serve,
    team::keys,
};

/// Text after the help.
pub(crate) const EXAMPLES: &str = "\
`create` and `link` work on the database of this machine's Wrenn, so they need its user or root, and no server. The others need a
sign-in, or an API key, of an administrator of the platform, such as the key that `wrenn up` writes.

Examples:
  sudo wrenn user create ada@example.com --name Ada --admin
  wrenn user disable grace@example.com --keys revoke";

/// Subcommands of `wrenn user`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a user and print a one-time link to sign in
    Create {
        /// The address
        #[arg(value_name = "ADDRESS")]
        email: String,
        /// Name that others see [default: what is before the @]
        #[arg(long)]
        name: Option<String>,
        /// Let the user administer the platform
        #[arg(long)]
        admin: bool,
    },
    /// Print another one-time link to sign in for a user; earlier ones end
    Link {
        /// The address
        #[arg(value_name = "ADDRESS")]
        email: String,
    },
    /// List the users
    #[command(visible_alias = "list")]
    Ls,
    /// Change your own password, or set one; your other sessions end
    Password {
        #[command(flatten)]
        from: FromStdin,
    },
    /// Shut a user out, which ends its sessions
    Disable {
        /// The user: its address or its id
        user: String,
        /// What becomes of the API keys that it made: revoke or keep
        #[arg(long, value_name = "HOW", value_parser = keys)]
        keys: Option<MadeKeys>,
    },
    /// Let a user in again
    Enable {
        /// The user: its address or its id
        user: String,
    },
    /// Let a user administer the platform, or take that back
    Admin {
        /// The user: its address or its id
        user: String,
        /// Take it back
        #[arg(long)]
        revoke: bool,
    },
    /// Delete a user
    #[command(visible_alias = "delete")]
    Rm {
        /// The user: its address or its id
        user: String,
        /// What becomes of the API keys that it made: revoke or keep
        #[arg(long, value_name = "HOW", value_parser = keys)]
        keys: Option<MadeKeys>,
        /// Do not ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
}

/// Runs `wrenn user`.
pub(crate) async fn run(config: &Config, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Create { email, name, admin } => {
            let name = name.as_deref().unwrap_or_else(|| email.split('@').next().unwrap_or_default());
            print_link(
                config,
                email,
                &serve::admin(config)?.create_user(email, name, *admin).await?,
                format,
            )?;
        }
        Command::Link { email } => {
            print_link(config, email, &serve::admin(config)?.sign_in_link(email).await?, format)?;
        }
        _ => by_api(&Target::of(config)?.client()?, what, format).await?,
    }
    Ok(0)
}

async fn by_api(client: &Client, what: &Command, format: Format) -> Result<()> {
    match what {
        // They are not done by the API.
        Command::Create { .. } | Command::Link { .. } => Ok(()),
        Command::Ls => {
            let all = client.all_users().await?;
            format.print(&all, || table(&all))
        }
        Command::Password { from } => {
            let me = client.me().await?;
            let (current_password, new_password) = from.read_change(me.has_password)?;
            client.change_password(&ChangePassword { current_password, new_password }).await?;
            format.print(&json!({ "changed": me.user_id }), || {
                format!("the password of {} is changed", me.email)
            })
        }
        Command::Disable { user, keys } => {
            let changed = client.set_user_active(find(client, user).await?.0, false, *keys).await?;
            print(&changed, format)
        }
        Command::Enable { user } => {
            let changed = client.set_user_active(find(client, user).await?.0, true, None).await?;
            print(&changed, format)
        }
        Command::Admin { user, revoke } => {
            let changed = client.set_user_admin(find(client, user).await?.0, !revoke).await?;
            print(&changed, format)
        }
        Command::Rm { user, keys, yes } => {
            let (id, name) = find(client, user).await?;
            if !yes {
                confirm::removal(&format!("the user {name}"), "for good").await?;
            }
            client.delete_user(id, *keys).await?;
            format.print(&json!({ "removed": id }), || id.to_string())
        }
    }
}

/// Prints a link, alone on standard output.
fn print_link(config: &Config, email: &str, link: &SignInLink, format: Format) -> Result<()> {
    let server = config.server();
    let base = server.mail.public_url.unwrap_or_else(|| config.local_url());
    let url = link.url(&base);
    if format == Format::Text {
        note(&format!(
            "link for {email}; it works once, within a day, in a browser and by `wrenn login --link`:"
        ));
    }
    format.print(&json!({ "email": email, "link": url }), || url.clone())
}

/// Finds a user by its address or its id; also returns what it is called.
async fn find(client: &Client, text: &str) -> Result<(UserId, String)> {
    if let Ok(id) = text.parse() {
        return Ok((id, text.to_owned()));
    }
    let found = client.user_by_email(text).await?;
    let found = found
        .ok_or_else(|| Failure::new("not_found", format!("there is no user {text:?}: `wrenn user ls`")))?;
    Ok((found.id, found.email))
}

fn print(user: &AdminUser, format: Format) -> Result<()> {
    format.print(user, || table(std::slice::from_ref(user)))
}

fn table(all: &[AdminUser]) -> String {
    let rows = all.iter().map(|user| {
        let status = match user.status {
            UserStatus::Active if user.is_admin => "admin",
            status => status.as_str(),
        };
        [
            user.id.to_string(),
            user.email.clone(),
            output::plain(&user.name),
            status.to_owned(),
            user.teams_joined.to_string(),
            user.last_login_at.map_or_else(|| "never".to_owned(), time),
        ]
    });
    output::table(["ID", "ADDRESS", "NAME", "STATE", "TEAMS", "LAST SIGN-IN"], rows)
}
