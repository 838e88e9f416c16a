// SPDX-License-Identifier: Apache-2.0
//! `wrenn context`: the servers that the client knows, and which of them it uses.

mod file;
mod target;

use anyhow::Result;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use wrenn_api::Secret;

pub(crate) use self::{
    file::{Context, Contexts, DEFAULT},
    target::{Credential, Place, Target, used},
};
use crate::{
    config::{Config, same_url},
    output::{self, Format, note, time},
};

/// Text after the help.
pub(crate) const EXAMPLES: &str = "\
A context is a server with what you signed in by. `wrenn login` makes it; the one named default is that of the configuration file, which
`wrenn up` writes. WRENN_CONTEXT and --use-context choose another one for a command. WRENN_URL and WRENN_API_KEY are stronger than a
context, unless --use-context names it.

Examples:
  wrenn login --url https://wrenn.example --email ada@example.com
  wrenn context use default
  wrenn ls --use-context wrenn.example";

/// Subcommands of `wrenn context`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the servers that the client knows; * marks the one that it uses
    #[command(visible_alias = "list")]
    Ls,
    /// Use another server from now on
    Use {
        /// Name of the context
        #[arg(value_name = "NAME")]
        known_context: String,
    },
    /// Forget servers and what you signed in by; sessions go on there: `wrenn logout` ends one
    #[command(visible_alias = "delete")]
    Rm {
        /// Names of the contexts
        #[arg(required = true, value_name = "NAME")]
        known_contexts: Vec<String>,
    },
}

/// A context as it is listed.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Listed {
    name: String,
    url: String,
    current: bool,
    /// By what the client signs in: `token`, `api_key` or nothing.
    sign_in: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<DateTime<Utc>>,
}

/// Runs `wrenn context`.
pub(crate) fn run(config: &Config, what: &Command, format: Format) -> Result<u8> {
    let mut contexts = Contexts::load(config.file())?;
    match what {
        Command::Ls => {
            let all = listed(config, &contexts);
            format.print(&all, || table(&all))?;
        }
        Command::Use { known_context } => {
            known(known_context, &contexts)?;
            contexts.current = Some(known_context.clone());
            contexts.save(config.file())?;
            if let Some(stronger) = config.context().filter(|name| name != known_context) {
                note(&format!(
                    "wrenn: the configuration says context {stronger} (WRENN_CONTEXT), which is stronger"
                ));
            }
            format.print(&json!({ "current": known_context }), || known_context.clone())?;
        }
        Command::Rm { known_contexts } => {
            for name in known_contexts {
                known(name, &contexts)?;
            }
            let before = contexts.current.clone();
            for name in known_contexts {
                contexts.contexts.remove(name);
                contexts.current.take_if(|current| *current == *name);
            }
            contexts.save(config.file())?;
            if let Some(name) = before.filter(|name| contexts.current.is_none() && name != DEFAULT) {
                note(&format!("wrenn: {name} was in use: the context {DEFAULT} is used from now on"));
            }
            format.print(&json!({ "removed": known_contexts }), || known_contexts.join("\n"))?;
        }
    }
    Ok(0)
}

/// Names of the contexts, for completion.
pub(crate) fn names(config: &Config) -> Result<Vec<(String, String)>> {
    let all = listed(config, &Contexts::load(config.file())?);
    Ok(all.into_iter().map(|context| (context.name, context.url)).collect())
}

/// Fails if there is no context of this name.
fn known(name: &str, contexts: &Contexts) -> Result<()> {
    if name == DEFAULT || contexts.get(name).is_some() {
        Ok(())
    } else {
        Err(target::unknown(name, contexts))
    }
}

fn listed(config: &Config, contexts: &Contexts) -> Vec<Listed> {
    let current = used(config, contexts).map(|(name, _)| name).ok();
    let of = |name: &str, context: &Context| Listed {
        name: name.to_owned(),
        url: context.url.clone(),
        current: current.as_deref() == Some(name),
        sign_in: match (&context.token, &context.api_key) {
            (Some(_), _) => Some("token"),
            (None, Some(_)) => Some("api_key"),
            (None, None) => None,
        },
        email: context.email.clone(),
        expires_at: context.expires_at,
    };
    let file_url = config.file_url();
    let login = contexts.get(DEFAULT).filter(|login| same_url(&login.url, &file_url)).cloned();
    let default = login.unwrap_or_else(|| Context {
        api_key: config.api_key_for(&file_url).ok().map(|key| Secret::from(key.to_owned())),
        ..Context::new(file_url)
    });
    let others = contexts.contexts.iter().filter(|(name, _)| *name != DEFAULT);
    let others = others.map(|(name, context)| of(name, context));
    [of(DEFAULT, &default)].into_iter().chain(others).collect()
}

fn table(all: &[Listed]) -> String {
    let rows = all.iter().map(|context| {
        let sign_in = context.email.clone().or_else(|| context.sign_in.map(str::to_owned));
        [
            if context.current { "*" } else { "" }.to_owned(),
            context.name.clone(),
            context.url.clone(),
            sign_in.unwrap_or_else(|| "-".to_owned()),
            context.expires_at.map_or_else(|| "-".to_owned(), time),
        ]
    });
    output::table(["", "NAME", "URL", "SIGNED IN BY", "UNTIL"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_one_is_first_and_the_used_one_is_marked() -> Result<()> {
        let config = Config::of_test("url = \"http://home:1\"\napi_key = \"k\"\n", &[])?;
        let prod = Context {
            email: Some("ada@example.com".to_owned()),
            token: Some(Secret::from("hunter2".to_owned())),
            ..Context::new("https://prod.example".to_owned())
        };
        let contexts =
            Contexts { current: Some("prod".to_owned()), contexts: [("prod".to_owned(), prod)].into() };
        let all = listed(&config, &contexts);
        let told: Vec<_> = all.iter().map(|one| (one.name.as_str(), one.current, one.sign_in)).collect();
        assert_eq!(told, [("default", false, Some("api_key")), ("prod", true, Some("token"))]);
        let text = table(&all);
        assert!(text.lines().any(|line| line.starts_with('*') && line.contains("ada@example.com")), "{text}");
        assert!(!text.contains("hunter2") && !serde_json::to_string(&all)?.contains("hunter2"), "{text}");
        Ok(())
    }
}
