// SPDX-License-Identifier: Apache-2.0
//! `wrenn template`: what sandboxes are created from, and how it is built.

mod build;
mod builds;
mod context;
mod follow;
mod ignore;
mod of;
mod plain;
mod prune;
mod reference;
mod screen;
mod secret;
mod source;
mod versions;
mod view;

use anyhow::Result;
use wrenn_api::BuildId;
use wrenn_client::Client;

use self::{
    of::Of,
    reference::{Reference, name, tag},
};
use crate::output::Format;

/// Subcommands of `wrenn template`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Build a new version of a template from a recipe
    #[command(after_help = build::EXAMPLES)]
    Build(build::Args),
    /// List the platform's templates, the team's snapshots, and what the team has built; create sandboxes by `sandbox create
    /// --template NAME`
    #[command(visible_alias = "list")]
    Ls,
    /// Show a version of a template
    Inspect {
        /// Name of the template, and after a colon a tag, instead of latest
        #[arg(value_name = "NAME[:TAG]")]
        template: Reference,
    },
    /// List the versions of a template
    History {
        /// Name of the template
        #[arg(value_name = "NAME", value_parser = name)]
        template: String,
    },
    /// Let a tag of a template lead to one of its versions, also back to an older one
    Tag {
        /// Name of the template
        #[arg(value_name = "NAME", value_parser = name)]
        template: String,
        /// Number of the version
        #[arg(value_name = "VERSION", value_parser = clap::value_parser!(u32).range(1..))]
        number: u32,
        /// The tag
        #[arg(value_parser = tag)]
        tag: String,
        #[command(flatten)]
        of: Of,
    },
    /// Remove templates that were built, with all their versions; sandboxes that were created from them stay
    #[command(visible_alias = "delete")]
    Rm {
        /// The templates' names
        #[arg(required = true, value_name = "NAME", value_parser = name)]
        template: Vec<String>,
        #[command(flatten)]
        of: Of,
    },
    /// Remove results of steps from the cache of builds
    #[command(after_help = prune::EXAMPLES)]
    Prune(prune::Args),
    /// List the builds
    Builds(builds::ListArgs),
    /// Show the log of a build
    #[command(after_help = builds::LOGS_EXAMPLES)]
    Logs(builds::LogsArgs),
    /// Cancel a build
    Cancel {
        /// The build
        build: BuildId,
        #[command(flatten)]
        of: Of,
    },
    /// Open a terminal in the sandbox of a failed build, as root; it stays for some minutes after the failure
    Debug {
        /// The build
        build: BuildId,
    },
}

/// Runs `wrenn template`.
pub(crate) async fn run(client: &Client, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Build(args) => return build::run(client, args, format).await,
        Command::Ls => versions::list(client, format).await?,
        Command::Inspect { template } => versions::inspect(client, template, format).await?,
        Command::History { template } => versions::history(client, template, format).await?,
        Command::Tag { template, number, tag, of } => {
            versions::tag(&of.client(client), template, *number, tag, format).await?;
        }
        Command::Rm { template, of } => versions::remove(&of.client(client), template, format).await?,
        Command::Prune(args) => return prune::run(client, args, format).await,
        Command::Builds(args) => return builds::list(client, args, format).await,
        Command::Logs(args) => return builds::logs(client, args, format).await,
        Command::Cancel { build, of } => return builds::cancel(&of.client(client), *build, format).await,
        Command::Debug { build } => return builds::debug(client, *build).await,
    }
    Ok(0)
}
