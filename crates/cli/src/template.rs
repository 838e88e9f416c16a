// SPDX-License-Identifier: Apache-2.0
//! `wrenn template`: what sandboxes are created from.

use anyhow::Result;
use comfy_table::{Table, presets};
use wrenn_api::{Template, TemplateKind};
use wrenn_client::Client;

use crate::output::Format;

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
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "KIND", "VCPUS", "MEMORY", "CREATED"]);
    let shown = |number: Option<u32>, unit: &str| number.map_or("-".to_owned(), |n| format!("{n}{unit}"));
    for template in all {
        table.add_row([
            template.name.clone(),
            match template.kind {
                TemplateKind::Base => "base".to_owned(),
                TemplateKind::Snapshot => "snapshot".to_owned(),
            },
            shown(template.vcpus, ""),
            shown(template.memory_mb, " MiB"),
            template.created_at.map_or("-".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%S UTC").to_string()),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}
