// SPDX-License-Identifier: Apache-2.0
//! `wrenn template`: what sandboxes are created from.

use anyhow::Result;
use wrenn_api::{Template, TemplateKind};
use wrenn_client::Client;

use crate::output::{self, Format, time};

/// Subcommands of `wrenn template`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the platform's templates and the team's snapshots; create sandboxes by `sandbox create --template NAME`
    #[command(visible_alias = "list")]
    Ls,
}

/// Runs `wrenn template`.
pub(crate) async fn run(client: &Client, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Ls => {
            let all = client.list_templates().await?;
            format.print(&all, || table(&all))?;
        }
    }
    Ok(0)
}

fn table(all: &[Template]) -> String {
    let shown = |number: Option<u32>, unit: &str| number.map_or("-".to_owned(), |n| format!("{n}{unit}"));
    let rows = all.iter().map(|template| {
        [
            template.name.clone(),
            match template.kind {
                TemplateKind::Base => "base".to_owned(),
                TemplateKind::Snapshot => "snapshot".to_owned(),
            },
            shown(template.vcpus, ""),
            shown(template.memory_mb, " MiB"),
            template.created_at.map_or("-".to_owned(), time),
        ]
    });
    output::table(["NAME", "KIND", "VCPUS", "MEMORY", "CREATED"], rows)
}
