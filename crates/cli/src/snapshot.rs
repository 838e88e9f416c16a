// SPDX-License-Identifier: Apache-2.0
//! `wrenn snapshot`: named snapshots of sandboxes.

use anyhow::Result;
use comfy_table::{Table, presets};
use serde_json::json;
use wrenn_api::{CreateSnapshot, SandboxId, Snapshot};
use wrenn_client::Client;

use crate::output::Format;

/// Subcommands of `wrenn snapshot`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a snapshot of a sandbox and print its name; create sandboxes from it by `sandbox create --template NAME`
    Create {
        /// The sandbox's id
        id: SandboxId,
        /// Name of the snapshot [default: made up]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// List the snapshots
    #[command(visible_alias = "list")]
    Ls,
    /// Remove snapshots; sandboxes that were created from them stay
    #[command(visible_alias = "delete")]
    Rm {
        /// The snapshots' names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Runs `wrenn snapshot`.
pub(crate) async fn run(client: &Client, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Create { id, name } => {
            let new = CreateSnapshot { sandbox_id: *id, name: name.clone() };
            let snapshot = client.create_snapshot(&new).await?;
            format.print(&snapshot, || snapshot.name.clone())?;
        }
        Command::Ls => {
            let all = client.list_snapshots().await?;
            format.print(&all, || table(&all))?;
        }
        Command::Rm { names } => {
            for name in names {
                client.delete_snapshot(name).await?;
            }
            format.print(&json!({ "removed": names }), || names.join("\n"))?;
        }
    }
    Ok(0)
}

fn table(all: &[Snapshot]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "TEMPLATE", "VCPUS", "MEMORY", "DISK", "CREATED"]);
    for snapshot in all {
        table.add_row([
            snapshot.name.clone(),
            snapshot.template.clone(),
            snapshot.vcpus.to_string(),
            format!("{} MiB", snapshot.memory_mb),
            format!("{} MiB", snapshot.disk_size_mb),
            snapshot.created_at.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}
