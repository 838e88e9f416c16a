// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox files`: directories and entries of a sandbox's file system.

use anyhow::Result;
use futures::TryStreamExt as _;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use wrenn_api::{
    ChangeFile, CopyFile, FileEntry, FileKind, FileOperation, FileWatchFrame, SandboxId, SandboxRef, SignFile,
};
use wrenn_client::{Client, ReadOptions};

use super::find;
use crate::{
    creation::seconds,
    output::{self, Format, note, time},
    signals::{Stop, exit_status},
};

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
        /// Only this part: bytes=FIRST-LAST, bytes=FIRST- or bytes=-NUMBER
        #[arg(long, value_name = "PART")]
        range: Option<String>,
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
    /// Copy a file or directory within the sandbox
    Cp {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// Its path
        source: String,
        /// Path of the copy, and not the directory for it; what is there is not replaced
        destination: String,
        /// The user whom the copy belongs to
        #[arg(long, short = 'u', value_name = "USER")]
        user: Option<String>,
    },
    /// Change the permissions of a file or directory
    Chmod {
        /// Include all that is below a directory
        #[arg(long, short = 'R')]
        recursive: bool,
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// Permission bits in octal digits, such as 644
        mode: String,
        /// Its path
        path: String,
    },
    /// Change the owner of a file or directory
    Chown {
        /// Include all that is below a directory
        #[arg(long, short = 'R')]
        recursive: bool,
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// OWNER, OWNER:GROUP or :GROUP, by name or number
        owner: String,
        /// Its path
        path: String,
    },
    /// Print what changes in a directory, until interrupted
    Watch {
        /// Include the directories below
        #[arg(long, short = 'r')]
        recursive: bool,
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// The directory; relative to the home directory
        #[arg(default_value = ".")]
        path: String,
    },
    /// Print a URL with which a file is read or written without an API key
    Sign {
        /// The sandbox: its id, the beginning of it, or its name
        id: SandboxRef,
        /// Its path
        path: String,
        /// For writing, with PUT; else it is for reading, with GET
        #[arg(long, short = 'w')]
        write: bool,
        /// How long it works: seconds, or with a unit, such as 10m; at most a week
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
        expires: u32,
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
pub(crate) async fn run(client: &Client, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Cp { id, source, destination, user } => {
            let (source, destination) = (source.clone(), destination.clone());
            let copied = client
                .copy_file(find(client, id).await?, &CopyFile { source, destination, user: user.clone() })
                .await?;
            format.print(&copied, String::new)?;
        }
        Command::Chmod { recursive, id, mode, path } => {
            let (path, mode) = (path.clone(), Some(mode.clone()));
            let wanted = ChangeFile { path, mode, recursive: *recursive, ..ChangeFile::default() };
            format.print(&client.change_file(find(client, id).await?, &wanted).await?, String::new)?;
        }
        Command::Chown { recursive, id, owner, path } => {
            let (owner, group) = owner.split_once(':').unwrap_or((owner, ""));
            let named = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
            let (path, owner, group) = (path.clone(), named(owner), named(group));
            let wanted = ChangeFile { path, owner, group, recursive: *recursive, ..ChangeFile::default() };
            format.print(&client.change_file(find(client, id).await?, &wanted).await?, String::new)?;
        }
        Command::Watch { recursive, id, path } => {
            let id = find(client, id).await?;
            let mut stop = Stop::new()?;
            return tokio::select! {
                ended = watch(client, id, path, *recursive, format) => ended.map(|()| 0),
                name = stop.received() => Ok(exit_status(name)),
            };
        }
        Command::Sign { id, path, write, expires } => {
            let operation = if *write { FileOperation::Write } else { FileOperation::Read };
            let what = SignFile { path: path.clone(), operation, expires_in_sec: Some(*expires), user: None };
            let signed = client.sign_file(find(client, id).await?, &what).await?;
            format.print(&signed, || signed.url.clone())?;
        }
        Command::Ls { id, path, depth } => {
            let entries = client.list_files(find(client, id).await?, path, *depth).await?;
            format.print(&entries, || table(&entries))?;
        }
        Command::Stat { id, path } => {
            let entry = client.stat_file(find(client, id).await?, path).await?;
            format.print(&entry, || table(std::slice::from_ref(&entry)))?;
        }
        Command::Cat { id, path, range } => {
            let options = ReadOptions { range: range.clone(), ..ReadOptions::default() };
            let mut content = client.read_file(find(client, id).await?, path, &options).await?.pieces;
            let mut stdout = tokio::io::stdout();
            while let Some(piece) = content.try_next().await? {
                stdout.write_all(&piece).await?;
            }
            stdout.flush().await?;
        }
        Command::Mkdir { id, path } => {
            let entry = client.make_directory(find(client, id).await?, path).await?;
            format.print(&entry, String::new)?;
        }
        Command::Mv { id, source, destination } => {
            let entry = client.move_file(find(client, id).await?, source, destination).await?;
            format.print(&entry, String::new)?;
        }
        Command::Rm { id, path } => {
            client.remove_file(find(client, id).await?, path).await?;
            format.print(&json!({ "removed": path }), String::new)?;
        }
    }
    Ok(0)
}

/// Prints changes, one a line.
async fn watch(client: &Client, id: SandboxId, path: &str, recursive: bool, format: Format) -> Result<()> {
    let mut changes = client.watch_files(id, path, recursive).await?;
    loop {
        let change = changes.next().await?;
        let (what, name) = match &change {
            FileWatchFrame::Start => {
                note(&format!("wrenn: watching {path}"));
                continue;
            }
            FileWatchFrame::Create { name } => ("create", name.as_str()),
            FileWatchFrame::Write { name } => ("write", name.as_str()),
            FileWatchFrame::Remove { name } => ("remove", name.as_str()),
            FileWatchFrame::Rename { name } => ("rename", name.as_str()),
            FileWatchFrame::Chmod { name } => ("chmod", name.as_str()),
            FileWatchFrame::Overflow => ("overflow", "changes were lost: list the directory"),
            FileWatchFrame::Error { data, .. } => ("error", data.as_str()),
        };
        match format {
            Format::Json => output::line(&serde_json::to_string(&change)?)?,
            // A name may have any character, also those that a terminal acts on.
            Format::Text => output::line(&format!("{what:<8} {}", output::plain(name)))?,
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
            output::plain(&format!("{}{ends}{leads}", entry.path)),
        ]
    });
    output::table(["MODE", "OWNER", "GROUP", "SIZE", "MODIFIED", "PATH"], rows)
}
