// SPDX-License-Identifier: Apache-2.0
//! Completion on Tab: the shell asks this program, which knows its own words, and asks the API for sandboxes, templates and builds.

use std::{ffi::OsStr, time::Duration};

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::{
    Shell,
    engine::{ArgValueCompleter, CompletionCandidate},
    env::{CompleteEnv, Shells},
};
use wrenn_client::{Client, SandboxFilter};

use crate::{
    config::{Config, Request},
    output::line,
    sandbox::client,
};

/// Text after the help of `completion`.
pub(crate) const EXAMPLES: &str = "\
Examples:
  source <(wrenn completion bash)                                   in ~/.bashrc
  source <(wrenn completion zsh)                                    in ~/.zshrc
  wrenn completion fish > ~/.config/fish/completions/wrenn.fish";

/// Variable by which the shell asks for a completion.
const VARIABLE: &str = "WRENN_COMPLETE";
/// Time limit for the answer of the API: without one there is nothing to complete.
const LIMIT: Duration = Duration::from_secs(2);
/// Maximum number of sandboxes and of builds that are offered, the newest.
const OFFERED: u32 = 100;

/// Answers the shell, and ends the program, if it asks for a completion.
pub(crate) fn answer(command: impl Fn() -> Command) {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// Prints the script that makes a shell ask.
pub(crate) fn print(shell: Shell) -> Result<u8> {
    let (shells, name) = (Shells::builtins(), shell.to_string());
    let script = shells.completer(&name).with_context(|| format!("there is no completion for {name}"))?;
    let mut text = Vec::new();
    script.write_registration(VARIABLE, "wrenn", "wrenn", "wrenn", &mut text)?;
    line(String::from_utf8_lossy(&text).trim_end()).map(|()| 0)
}

/// Adds what values of arguments may be, to all commands: arguments that are called `id` or `ids` are sandboxes, `template` is
/// a template, and `build` a build; those of teams, members, channels, API keys and contexts are called so too.
pub(crate) fn with_values(command: Command) -> Command {
    let command = command.mut_args(|argument| match argument.get_id().as_str() {
        "id" | "ids" => argument.add(ArgValueCompleter::new(sandboxes)),
        "template" => argument.add(ArgValueCompleter::new(templates)),
        "build" => argument.add(ArgValueCompleter::new(builds)),
        "use_context" | "known_context" | "known_contexts" => argument.add(ArgValueCompleter::new(contexts)),
        "of_team" | "team" => argument.add(ArgValueCompleter::new(teams)),
        "member" => argument.add(ArgValueCompleter::new(members)),
        "channel" | "channels" => argument.add(ArgValueCompleter::new(channels)),
        "key_id" | "key_ids" => argument.add(ArgValueCompleter::new(keys)),
        _ => argument,
    });
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, with_values))
}

/// Offers names and ids of sandboxes.
fn sandboxes(begun: &OsStr) -> Vec<CompletionCandidate> {
    let found = asked(async |client| Ok(client.list(&SandboxFilter::default(), OFFERED, None).await?.0));
    let all = found.into_iter().flatten().flat_map(|sandbox| {
        let status = sandbox.status.as_str();
        let id = (sandbox.id.to_string(), format!("{status}, {}", sandbox.template));
        sandbox.name.map(|name| (name, status.to_owned())).into_iter().chain([id])
    });
    offered(begun, all)
}

/// Offers names of templates and snapshots.
fn templates(begun: &OsStr) -> Vec<CompletionCandidate> {
    let found = asked(async |client| Ok(client.list_templates().await?));
    let all = found.into_iter().flatten().map(|template| {
        let kind = match template.kind {
            wrenn_api::TemplateKind::Base => "base",
            wrenn_api::TemplateKind::Snapshot => "snapshot",
        };
        (template.name, kind.to_owned())
    });
    offered(begun, all)
}

/// Offers ids of builds.
fn builds(begun: &OsStr) -> Vec<CompletionCandidate> {
    let found = asked(async |client| Ok(client.list_builds(None, OFFERED).await?));
    let all = found.into_iter().flatten().map(|build| {
        let help = format!("{}, {}:{}", build.status, build.name, build.tag);
        (build.id.to_string(), help)
    });
    offered(begun, all)
}

/// Offers the servers that the client knows.
fn contexts(begun: &OsStr) -> Vec<CompletionCandidate> {
    let found = Config::load(Request::default()).and_then(|config| crate::contexts::names(&config));
    offered(begun, found.into_iter().flatten())
}

/// Offers slugs and ids of teams.
fn teams(begun: &OsStr) -> Vec<CompletionCandidate> {
    let found = asked(async |client| Ok(client.list_teams().await?));
    let all = found.into_iter().flatten().flat_map(|team| {
        let id = (team.id.to_string(), team.name.clone());
        team.slug.map(|slug| (slug, team.name)).into_iter().chain([id])
    });
    offered(begun, all)
}

/// Offers addresses of members of the team that the user acts for.
fn members(begun: &OsStr) -> Vec<CompletionCandidate> {
    let found = asked(async |client| {
        let team = crate::team::of_caller(&client).await?;
        Ok(client.list_members(team).await?)
    });
    let all =
        found.into_iter().flatten().map(|member| (member.email, format!("{}, {}", member.name, member.role)));
    offered(begun, all)
}

/// Offers names of channels.
fn channels(begun: &OsStr) -> Vec<CompletionCandidate> {
    let found = asked(async |client| Ok(client.list_channels().await?));
    let all = found.into_iter().flatten().map(|channel| (channel.name, channel.provider.to_string()));
    offered(begun, all)
}

/// Offers ids of API keys.
fn keys(begun: &OsStr) -> Vec<CompletionCandidate> {
    let found = asked(async |client| Ok(client.list_api_keys().await?));
    let all =
        found.into_iter().flatten().map(|key| (key.id.to_string(), format!("{}, {}…", key.name, key.prefix)));
    offered(begun, all)
}

fn offered(begun: &OsStr, all: impl Iterator<Item = (String, String)>) -> Vec<CompletionCandidate> {
    let begun = begun.to_string_lossy();
    let fitting = all.filter(|(value, _)| value.starts_with(&*begun));
    fitting.map(|(value, help)| CompletionCandidate::new(value).help(Some(help.into()))).collect()
}

/// Asks the API. A completion has nowhere to tell an error, and offers nothing then.
fn asked<T>(ask: impl AsyncFnOnce(Client) -> Result<T>) -> Option<T> {
    let config = Config::load(Request::default()).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let client = client(&config).ok()?;
    runtime.block_on(async { tokio::time::timeout(LIMIT, ask(client)).await }).ok()?.ok()
}
