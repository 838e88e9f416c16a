// SPDX-License-Identifier: Apache-2.0
//! `wrenn snapshot`: named snapshots of sandboxes.

use anyhow::Result;
use serde_json::json;
use wrenn_api::{CreateSnapshot, SandboxRef, Snapshot};
use wrenn_client::Client;

use crate::{
    output::{self, Format, time},
    progress::during,
    sandbox::find,
};

/// Subcommands of `wrenn snapshot`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a snapshot of a sandbox and print its name; create sandboxes from it by `sandbox create --template NAME`
    Create {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
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
            let new = CreateSnapshot { sandbox_id: find(client, id).await?, name: name.clone() };
            let snapshot = during("making the snapshot", client.create_snapshot(&new)).await?;
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
    let rows = all.iter().map(|snapshot| {
        [
            snapshot.name.clone(),
            snapshot.template.clone(),
            snapshot.vcpus.to_string(),
            format!("{} MiB", snapshot.memory_mb),
            format!("{} MiB", snapshot.disk_size_mb),
            time(snapshot.created_at),
        ]
    });
    output::table(["NAME", "TEMPLATE", "VCPUS", "MEMORY", "DISK", "CREATED"], rows)
}
