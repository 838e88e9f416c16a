// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox cp`: copies files and directories into or out of a sandbox as streams, by the rules of cp(1): into a directory
//! that exists, and else as its destination.

mod archive;
mod download;
mod glob;
mod local;
mod place;
mod upload;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use wrenn_api::{FileEntry, FileKind, SandboxId, SandboxRef};
use wrenn_client::Client;

use self::place::{Place, STANDARD, place};
use super::reference;
use crate::progress::Counter;

/// Arguments of `wrenn sandbox cp`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to copy: PATH, ID:PATH or NAME:PATH in a sandbox, whose last name may have * and ?, or - for
    /// standard input. A local name with a colon is written with a directory: ./a:b
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// The file or directory to copy to: PATH, ID:PATH or NAME:PATH in a sandbox, or - for standard output
    #[arg(required = true)]
    destination: String,
    /// The user whom what is made in the sandbox belongs to, and with whose rights directories are copied; relative paths in
    /// the sandbox begin at this user's home
    #[arg(long, short = 'u', value_name = "USER")]
    user: Option<String>,
    #[arg(long, short = 'r', hide = true)]
    #[allow(dead_code, reason = "directories are copied without it, too")]
    recursive: bool,
}

impl Args {
    /// Returns whether the file goes to standard output.
    pub(super) fn to_stdout(&self) -> bool {
        self.destination == STANDARD
    }
}

/// What all parts of a copy need.
struct Copying<'a> {
    client: &'a Client,
    user: Option<&'a str>,
    /// Bytes of all that is copied.
    progress: Counter,
}

impl Copying<'_> {
    /// Describes an entry in a sandbox; `None` if there is none.
    async fn stat(&self, id: SandboxId, path: &str) -> Result<Option<FileEntry>> {
        let path = if path.is_empty() { "." } else { path };
        match self.client.stat_file_of(id, path, self.user).await {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.code() == Some("not_found") => {
                // The sandbox itself may be what is not found.
                self.client.get(id).await?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn is_directory(entry: Option<&FileEntry>) -> bool {
    entry.is_some_and(|entry| entry.kind == FileKind::Directory)
}

/// Copies and returns what was copied.
pub(super) async fn run(client: &Client, args: &Args) -> Result<Value> {
    let sources: Vec<Place> = args.sources.iter().map(|text| place(text)).collect();
    let copying =
        Copying { client, user: args.user.as_deref(), progress: Counter::new(total(&sources).await) };
    match place(&args.destination) {
        Place::There(sandbox, to) => {
            ensure!(
                !sources.iter().any(|source| matches!(source, Place::There(..))),
                "both are in sandboxes: copy to a local file first"
            );
            upload::all(&copying, &sources, find(client, &sandbox).await?, &to).await?;
        }
        to => {
            let mut from = Vec::new();
            for (source, text) in sources.into_iter().zip(&args.sources) {
                let Place::There(sandbox, path) = source else {
                    bail!("neither {text} nor {} is in a sandbox: write one as ID:PATH", args.destination);
                };
                from.push((find(client, &sandbox).await?, path));
            }
            download::all(&copying, from, &to).await?;
        }
    }
    let bytes = copying.progress.bytes();
    Ok(match args.sources.as_slice() {
        [source] => json!({ "source": source, "destination": args.destination, "bytes": bytes }),
        sources => json!({ "sources": sources, "destination": args.destination, "bytes": bytes }),
    })
}

/// Returns the id of a sandbox before a colon.
async fn find(client: &Client, sandbox: &SandboxRef) -> Result<SandboxId> {
    let hint = || {
        format!(
            "{sandbox} before the colon is taken for a sandbox (a local name with a colon is written ./{sandbox}:…)"
        )
    };
    reference::find(client, sandbox).await.with_context(hint)
}

/// Number of bytes to copy, if it is known: that of local regular files.
async fn total(sources: &[Place]) -> Option<u64> {
    let mut total = 0;
    for source in sources {
        let Place::Here(path) = source else { return None };
        let meta = tokio::fs::metadata(path).await.ok().filter(std::fs::Metadata::is_file)?;
        total += meta.len();
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(sources: &[&str], destination: &str) -> Args {
        let sources = sources.iter().map(|&text| text.to_owned()).collect();
        Args { sources, destination: destination.to_owned(), user: None, recursive: false }
    }

    #[tokio::test]
    async fn one_side_must_be_a_sandbox() -> Result<()> {
        let client = Client::new("http://127.0.0.1:1", None)?;
        let there = format!("{}:x", SandboxId::new());
        for (sources, destination) in [
            (&["a"][..], "b"),
            (&["-"], "-"),
            (&[there.as_str()], there.as_str()),
            (&[there.as_str(), "a"], "b"),
        ] {
            let error = run(&client, &args(sources, destination)).await.err().map(|error| error.to_string());
            assert!(error.is_some_and(|text| text.contains("sandbox")), "{sources:?}");
        }
        Ok(())
    }
}
