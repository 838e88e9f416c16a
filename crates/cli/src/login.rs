// SPDX-License-Identifier: Apache-2.0
//! `wrenn login`, `wrenn logout` and `wrenn whoami`: sign-in of a user, or a key, for a context.

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::json;
use wrenn_api::{Login, Me, Secret, SignedIn, Team, UseLink};
use wrenn_client::{Client, SandboxFilter};

use crate::{
    config::Config,
    contexts::{Context, Contexts, Credential, Place, Target},
    output::{self, Format, note, time},
    password::FromStdin,
};

/// Text after the help of `wrenn login`.
pub(crate) const EXAMPLES: &str = "\
Password, key and link are asked for, or read from standard input with --stdin: command lines are seen by others.

Examples:
  wrenn login --email ada@example.com
  wrenn login --url https://wrenn.example --key --stdin < key
  wrenn login --link                           with the link that `wrenn up` or `wrenn user create` prints";

/// What a link has before its token.
const TOKEN: &str = "token=";
/// What a link has between the server's URL and what it is for.
const ACCOUNT: &str = "/account/";
/// What a link that activates a sign-up has.
const ACTIVATE: &str = "/account/activate";

/// Arguments of `wrenn login`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Sign in as this user, with a password
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["key", "link"])]
    email: Option<String>,
    /// Use an API key
    #[arg(long, conflicts_with = "link")]
    key: bool,
    /// Sign in by a one-time link
    #[arg(long)]
    link: bool,
    #[command(flatten)]
    from: FromStdin,
}

/// Runs `wrenn login`.
pub(crate) async fn run(config: &Config, args: &Args, format: Format) -> Result<u8> {
    let mut contexts = Contexts::load(config.file())?;
    if args.link {
        let link = args.from.read("link")?;
        let (base, token) = parts(link.reveal())?;
        let place = Place::of(config, &contexts, base)?;
        let client = Client::new(&place.url, None)?;
        let used = UseLink { token: Secret::from(token.to_owned()), cookie: false };
        let activates = link.reveal().contains(ACTIVATE);
        let signed_in =
            if activates { client.activate(&used).await? } else { client.log_in_by_link(&used).await? };
        return keep_session(config, &mut contexts, &place, &signed_in, format);
    }
    let place = Place::of(config, &contexts, None)?;
    if args.key {
        let key = args.from.read("API key")?;
        // A key that may not see sandboxes is one nevertheless.
        let client = Client::new(&place.url, Some(key.reveal()))?;
        match client.list(&SandboxFilter::default(), 1, None).await {
            Err(error) if error.code() != Some("forbidden") => return Err(error.into()),
            _ => {}
        }
        let context = Context { api_key: Some(key), ..Context::new(place.url.clone()) };
        keep(config, &mut contexts, &place.context, context)?;
        let said = json!({ "context": place.context, "url": place.url });
        format.print(&said, || format!("context {}: the key is kept for {}", place.context, place.url))?;
        return Ok(0);
    }
    let email = match &args.email {
        Some(email) => email.clone(),
        None => ask_email()?,
    };
    let login = Login { email, password: args.from.read("password")?, cookie: false };
    let signed_in = Client::new(&place.url, None)?.log_in(&login).await?;
    keep_session(config, &mut contexts, &place, &signed_in, format)
}

/// Asks for the address of the user, which may be shown.
fn ask_email() -> Result<String> {
    let terminal = console::Term::stderr();
    anyhow::ensure!(
        terminal.is_term() && crate::stdin::is_terminal(),
        "say as whom: --email ADDRESS, --key or --link"
    );
    terminal.write_str("e-mail address: ").context("the terminal cannot be written to")?;
    let typed = terminal.read_line().context("the terminal cannot be read")?;
    Ok(typed.trim().to_owned())
}

/// Returns the server's URL, if the link has one, and the token of a link.
pub(crate) fn parts(link: &str) -> Result<(Option<&str>, &str)> {
    let link = link.trim();
    let token = match link.split_once(TOKEN) {
        Some((_, token)) => token.split('&').next().unwrap_or_default(),
        None => link,
    };
    let is_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    anyhow::ensure!(
        !token.is_empty() && token.chars().all(is_token),
        "this is no link to sign in by: give all of it"
    );
    Ok((link.split_once(ACCOUNT).map(|(base, _)| base), token))
}

/// Keeps a session for its context, which is used from then on.
fn keep_session(
    config: &Config,
    contexts: &mut Contexts,
    place: &Place,
    signed_in: &SignedIn,
    format: Format,
) -> Result<u8> {
    let context = Context::new(place.url.clone()).signed_in(signed_in)?;
    keep(config, contexts, &place.context, context)?;
    let said = json!({
        "context": place.context, "url": place.url, "user_id": signed_in.user_id, "email": signed_in.email,
        "team_id": signed_in.team_id, "expires_at": signed_in.expires_at,
    });
    format.print(&said, || {
        let (name, until) = (&place.context, time(signed_in.expires_at));
        format!("context {name}: signed in to {} as {} until {until}", place.url, signed_in.email)
    })?;
    Ok(0)
}

fn keep(config: &Config, contexts: &mut Contexts, name: &str, context: Context) -> Result<()> {
    contexts.contexts.insert(name.to_owned(), context);
    contexts.current = Some(name.to_owned());
    contexts.save(config.file())?;
    if config.given("api_key").is_some() {
        note("wrenn: an API key is given by WRENN_API_KEY or --api-key, which is stronger: unset it");
    }
    Ok(())
}

impl Context {
    /// The context with this session.
    fn signed_in(self, signed_in: &SignedIn) -> Result<Self> {
        let token = signed_in.token.clone().context("the server gave no token")?;
        let (email, expires_at) = (Some(signed_in.email.clone()), Some(signed_in.expires_at));
        Ok(Self { email, expires_at, token: Some(token), api_key: None, ..self })
    }
}

/// Runs `wrenn logout`: ends the session, and forgets what was used to sign in.
pub(crate) async fn log_out(config: &Config, format: Format) -> Result<u8> {
    let mut contexts = Contexts::load(config.file())?;
    let (name, stored) = crate::contexts::used(config, &contexts)?;
    let Some(stored) = stored.filter(|stored| stored.token.is_some() || stored.api_key.is_some()).cloned()
    else {
        anyhow::bail!("context {name}: nobody is signed in");
    };
    if let Some(token) = &stored.token {
        let ended = Client::with_token(&stored.url, token.reveal())?.log_out().await;
        match ended {
            // It had ended by itself.
            Err(error) if error.code() == Some("unauthorized") => {}
            other => other.context("the session goes on; `wrenn context rm` forgets it all the same")?,
        }
    } else {
        note("wrenn: the key itself stays valid: `wrenn key revoke` ends it");
    }
    contexts.contexts.insert(name.clone(), Context::new(stored.url.clone()));
    contexts.save(config.file())?;
    format.print(&json!({ "context": name }), || format!("context {name}: signed out of {}", stored.url))?;
    Ok(0)
}

/// The output of `wrenn whoami`.
#[derive(Debug, Serialize)]
struct Whoami {
    context: String,
    url: String,
    /// `token` or `api_key`.
    sign_in: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Me>,
    #[serde(skip_serializing_if = "Option::is_none")]
    team: Option<Team>,
}

/// Runs `wrenn whoami`.
pub(crate) async fn who_am_i(config: &Config, format: Format) -> Result<u8> {
    let target = Target::of(config)?;
    let client = target.client()?;
    let is_user = matches!(target.credential, Credential::Token(_));
    let user = if is_user { Some(client.me().await?) } else { None };
    let team = match user.as_ref().map(|me| me.team_id) {
        Some(None) => None,
        Some(Some(team)) => Some(client.get_team(team).await?),
        // A key may be without the permission to see its team.
        None => match client.list_teams().await {
            Ok(teams) => teams.into_iter().next(),
            Err(error) if error.code() == Some("forbidden") => None,
            Err(error) => return Err(error.into()),
        },
    };
    let sign_in = if is_user { "token" } else { "api_key" };
    let said = Whoami { context: target.context, url: target.url, sign_in, user, team };
    format.print(&said, || said.text())?;
    Ok(0)
}

impl Whoami {
    fn text(&self) -> String {
        let mut fields = vec![("context", self.context.clone()), ("url", self.url.clone())];
        match &self.user {
            Some(user) => {
                let admin = if user.is_admin { ", administers the platform" } else { "" };
                fields.push(("user", format!("{} ({}){admin}", user.email, user.user_id)));
            }
            None => fields.push(("user", "an API key".to_owned())),
        }
        let role = |team: &Team| team.role.map(|role| format!(", {role}")).unwrap_or_default();
        let team = self
            .team
            .as_ref()
            .map(|team| format!("{} ({}){}", output::plain(&team.name), team.id, role(team)));
        fields.push(("team", team.unwrap_or_else(|| "-".to_owned())));
        output::lines(&fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_a_server_and_a_token() -> Result<()> {
        for (link, base, token) in [
            ("https://w.example/account/sign-in#token=aB-_9", Some("https://w.example"), "aB-_9"),
            (" http://127.0.0.1:9725/x/account/activate#token=abc\n", Some("http://127.0.0.1:9725/x"), "abc"),
            ("aB-_9", None, "aB-_9"),
            ("https://w.example/account/sign-in?token=a&b=c", Some("https://w.example"), "a"),
        ] {
            assert_eq!(parts(link)?, (base, token));
        }
        for wrong in ["", "https://w.example/", "https://w.example/account/sign-in#token=", "a b"] {
            assert!(parts(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn a_session_takes_the_place_of_a_key() -> Result<()> {
        let signed_in: SignedIn =
            serde_json::from_value(json!({"token": "t", "user_id": "us03halx8fdhw2fu3txwbd0kdw0",
            "email": "ada@example.com", "name": "Ada", "expires_at": "2026-02-07T09:30:00Z"}))?;
        let key =
            Context { api_key: Some(Secret::from("k".to_owned())), ..Context::new("http://x".to_owned()) };
        let context = key.signed_in(&signed_in)?;
        assert_eq!((context.api_key, context.email.as_deref()), (None, Some("ada@example.com")));
        assert!(Context::new(String::new()).signed_in(&SignedIn { token: None, ..signed_in }).is_err());
        Ok(())
    }
}
