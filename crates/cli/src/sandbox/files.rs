// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox files`: directories and entries of a sandbox's file system.

use anyhow::Result;
use futures::TryStreamExt as _;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use wrenn_api::{FileEntry, FileKind, SandboxRef};
use wrenn_client::Client;

use super::find;
use crate::output::{self, Format, time};

/// Subcommands of `wrenn sandbox files`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List a directory
    #[command(visible_alias = "list")]
    Ls {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// The directory; relative to the home directory
        #[arg(default_value = ".")]
        path: String,
        /// How many levels to list
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
        depth: u32,
    },
    /// Describe a file, a directory or a link
    Stat {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// Its path
        path: String,
    },
    /// Write a file to standard output
    Cat {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// Its path
        path: String,
    },
    /// Make a directory and its parents
    Mkdir {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// Its path
        path: String,
    },
    /// Move a file or directory
    Mv {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// Its path
        source: String,
        /// Its new path, and not the directory for it
        destination: String,
    },
    /// Remove a file, a link, or a directory with its content
    #[command(visible_alias = "delete")]
    Rm {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// Its path
        path: String,
    },
}

/// Runs `wrenn sandbox files`.
pub(crate) async fn run(client: &Client, what: &Command, format: Format) -> Result<()> {
    match what {
        Command::Ls { id, path, depth } => {
            let entries = client.list_files(find(client, id).await?, path, *depth).await?;
            format.print(&entries, || table(&entries))
        }
        Command::Stat { id, path } => {
            let entry = client.stat_file(find(client, id).await?, path).await?;
            format.print(&entry, || table(std::slice::from_ref(&entry)))
        }
        Command::Cat { id, path } => {
            let mut content = std::pin::pin!(client.read_file(find(client, id).await?, path).await?);
            let mut stdout = tokio::io::stdout();
            while let Some(piece) = content.try_next().await? {
                stdout.write_all(&piece).await?;
            }
            Ok(stdout.flush().await?)
        }
        Command::Mkdir { id, path } => {
            let entry = client.make_directory(find(client, id).await?, path).await?;
            format.print(&entry, String::new)
        }
        Command::Mv { id, source, destination } => {
            let entry = client.move_file(find(client, id).await?, source, destination).await?;
            format.print(&entry, String::new)
        }
        Command::Rm { id, path } => {
            client.remove_file(find(client, id).await?, path).await?;
            format.print(&json!({ "removed": path }), String::new)
        }
    }
}

fn table(entries: &[FileEntry]) -> String {
    let rows = entries.iter().map(|entry| {
        let leads = entry.symlink_target.as_ref().map(|target| format!(" -> {target}")).unwrap_or_default();
        let ends = if entry.kind == FileKind::Directory { "/" } else { "" };
        [
            entry.permissions.clone(),
            entry.owner.clone(),
            entry.group.clone(),
            entry.size.to_string(),
            chrono::DateTime::from_timestamp(entry.modified_at, 0).map(time).unwrap_or_default(),
            // A name may have any character, also those that a terminal acts on.
            format!("{}{ends}{leads}", entry.path).escape_debug().to_string(),
        ]
    });
    output::table(["MODE", "OWNER", "GROUP", "SIZE", "MODIFIED", "PATH"], rows)
}
