// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox cp`: copies one file into or out of a sandbox as a stream.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tokio::{fs, io::AsyncRead};
use tokio_util::io::ReaderStream;
use wrenn_api::{ExecRequest, SandboxId};
use wrenn_client::{Body, Client};

use super::local::LocalFile;
use crate::progress::Progress;

/// Argument for standard input or output.
const STANDARD: &str = "-";
/// Mode of a file if it is unknown.
const MODE: u32 = 0o644;
/// Smaller files are sent without asking the server for its limit, in bytes.
const SMALL: u64 = 1 << 20;
/// Time limit of `stat` in the sandbox, in seconds.
const STAT_SECONDS: u32 = 15;
/// User that can access every file; the API also reads and writes files as root.
const ROOT: &str = "root";

/// Arguments of `wrenn sandbox cp`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file to copy: PATH, ID:PATH in a sandbox, or - for standard input
    source: String,
    /// The file or directory to copy to: PATH, ID:PATH in a sandbox, or - for standard output
    destination: String,
    #[arg(long, short = 'r', hide = true)]
    #[allow(dead_code, reason = "the error for a directory is the same without it")]
    recursive: bool,
}

impl Args {
    /// Returns whether the file goes to standard output.
    pub(super) fn to_stdout(&self) -> bool {
        self.destination == STANDARD
    }
}

/// Location of a file.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Standard,
    Here(PathBuf),
    There(SandboxId, String),
}

fn place(text: &str) -> Place {
    if text == STANDARD {
        return Place::Standard;
    }
    // Only an id before the colon means a sandbox, because local names may contain a colon.
    match text.split_once(':').map(|(id, path)| (id.parse(), path)) {
        Some((Ok(id), path)) => Place::There(id, path.to_owned()),
        _ => Place::Here(text.into()),
    }
}

/// Metadata of a file in a sandbox.
#[derive(Debug, Clone, Copy)]
struct Remote {
    mode: u32,
    size: u64,
}

impl Remote {
    fn is_dir(self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    /// Parses the output of `stat -c %f:%s`.
    fn parse(text: &str) -> Option<Self> {
        let (mode, size) = text.trim().split_once(':')?;
        Some(Self { mode: u32::from_str_radix(mode, 16).ok()?, size: size.parse().ok()? })
    }
}

/// Copies a file and returns what was copied.
pub(super) async fn run(client: &Client, args: &Args) -> Result<Value> {
    let (source, destination) = (args.source.as_str(), args.destination.as_str());
    let bytes = match (place(source), place(destination)) {
        (Place::Standard, Place::There(id, path)) => {
            upload(client, Box::new(tokio::io::stdin()), None, id, &path).await?
        }
        (Place::Here(from), Place::There(id, path)) => upload_file(client, &from, id, &path).await?,
        (Place::There(id, path), to @ (Place::Here(_) | Place::Standard)) => {
            download(client, id, &path, &to).await?
        }
        (Place::There(..), Place::There(..)) => bail!("both are in sandboxes: copy to a local file first"),
        _ => bail!("neither {source} nor {destination} is in a sandbox: write one as ID:PATH"),
    };
    Ok(json!({ "source": source, "destination": destination, "bytes": bytes }))
}

/// Reads the metadata of a file in a sandbox; `None` if that fails or the file does not exist.
async fn stat(client: &Client, id: SandboxId, path: &str) -> Option<Remote> {
    let args = ["-L", "-c", "%f:%s", "--", path].map(str::to_owned).to_vec();
    // A relative path starts at the default user's home.
    let user = path.starts_with('/').then(|| ROOT.to_owned());
    let cmd = "stat".to_owned();
    let request = ExecRequest { cmd, args, user, timeout_sec: Some(STAT_SECONDS), ..ExecRequest::default() };
    let ran = client.exec(id, &request).await.ok().filter(|ran| ran.exit_code == 0)?;
    Remote::parse(&ran.stdout)
}

async fn upload_file(client: &Client, from: &Path, id: SandboxId, to: &str) -> Result<u64> {
    let shown = || from.display();
    let file = fs::File::open(from).await.with_context(|| format!("cannot open {}", shown()))?;
    let meta = file.metadata().await.with_context(|| format!("cannot read the metadata of {}", shown()))?;
    ensure!(
        !meta.is_dir(),
        "{from} is a directory, and cp copies single files: tar cz -C {from} . | wrenn sandbox cp - {id}:/tmp/tree.tgz; \
         wrenn sandbox exec {id} -- tar xz -f /tmp/tree.tgz",
        from = shown()
    );
    if meta.is_file() {
        check_size(client, from, meta.len()).await?;
    }
    let name = file_name(from)?;
    let local = Local { name, mode: meta.mode() & 0o777, size: meta.is_file().then_some(meta.len()) };
    upload(client, Box::new(file), Some(local), id, to).await
}

/// Rejects a file that the server would reject after the transfer.
async fn check_size(client: &Client, from: &Path, size: u64) -> Result<()> {
    if size < SMALL {
        return Ok(());
    }
    let max = client.health().await?.max_upload_bytes.unwrap_or(u64::MAX);
    ensure!(
        size <= max,
        "{} has {size} bytes, and the server accepts files of at most {max} bytes; its operator can raise \
         server.upload_body",
        from.display()
    );
    Ok(())
}

/// Metadata of a local file.
struct Local<'a> {
    name: &'a str,
    mode: u32,
    /// Size in bytes; `None` for a pipe or a device.
    size: Option<u64>,
}

async fn upload(
    client: &Client,
    input: Box<dyn AsyncRead + Send + Sync + Unpin>,
    local: Option<Local<'_>>,
    id: SandboxId,
    to: &str,
) -> Result<u64> {
    let old = if names_directory(to) { None } else { stat(client, id, to).await };
    let path = match &local {
        _ if !names_directory(to) && !old.is_some_and(Remote::is_dir) => to.to_owned(),
        Some(local) => within(to, local.name),
        None => bail!("{id}:{to} is a directory: name the file that standard input is copied to"),
    };
    let size = local.as_ref().and_then(|local| local.size);
    let progress = Arc::new(Mutex::new(Progress::new(size)));
    let counted = progress.clone();
    let pieces = ReaderStream::with_capacity(input, 64 << 10).inspect_ok(move |piece| {
        counted.lock().unwrap_or_else(PoisonError::into_inner).add(piece.len());
    });
    client.write_file(id, &path, Body::wrap_stream(pieces), size).await?;
    let bytes = progress.lock().unwrap_or_else(PoisonError::into_inner).bytes();
    if let Some(local) = local.filter(|local| local.mode != MODE)
        && old.is_none_or(Remote::is_dir)
    {
        change_mode(client, id, &path, local.mode).await?;
    }
    Ok(bytes)
}

/// Sets the mode of a new file to that of the local file.
async fn change_mode(client: &Client, id: SandboxId, path: &str, mode: u32) -> Result<()> {
    let args = vec![format!("{mode:o}"), "--".to_owned(), path.to_owned()];
    let user = path.starts_with('/').then(|| ROOT.to_owned());
    let cmd = "chmod".to_owned();
    let request = ExecRequest { cmd, args, user, timeout_sec: Some(STAT_SECONDS), ..ExecRequest::default() };
    let failed = || format!("{path} was copied, but its mode could not be set to {mode:o}");
    let ran = client.exec(id, &request).await.with_context(failed)?;
    ensure!(ran.exit_code == 0, "{}: {}", failed(), ran.stderr.trim());
    Ok(())
}

/// Returns whether a path can only be a directory.
fn names_directory(path: &str) -> bool {
    matches!(path.rsplit('/').next().unwrap_or_default(), "" | "." | "..")
}

fn within(dir: &str, name: &str) -> String {
    if dir.is_empty() || dir.ends_with('/') { format!("{dir}{name}") } else { format!("{dir}/{name}") }
}

fn file_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} has no name", path.display()))
}

async fn download(client: &Client, id: SandboxId, path: &str, to: &Place) -> Result<u64> {
    let remote = stat(client, id, path).await;
    ensure!(
        !names_directory(path) && !remote.is_some_and(Remote::is_dir),
        "{id}:{path} is a directory, and cp copies single files: wrenn sandbox exec {id} -- tar cz -C {dir} . | tar xz",
        dir = if path.is_empty() { "." } else { path }
    );
    let mut pieces = client.read_file(id, path).await?;
    // Files generated by the kernel have no size.
    let size = remote.map(|remote| remote.size).filter(|&size| size > 0);
    let mut progress = Progress::new(size);
    let copied = async {
        let mut file = match to {
            Place::Here(to) => {
                let mode = remote.map_or(MODE, |remote| remote.mode);
                LocalFile::open(to, file_name(Path::new(path))?, mode).await?
            }
            _ => LocalFile::stdout(),
        };
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            file.write(&piece).await?;
            progress.add(piece.len());
        }
        file.commit().await?;
        anyhow::Ok(progress.bytes())
    };
    copied.await.with_context(|| match to {
        Place::Here(to) => format!("cannot copy to {}", to.display()),
        _ => "cannot copy to standard output".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_id_before_the_colon_means_a_sandbox() {
        let id = SandboxId::new();
        assert_eq!(place(&format!("{id}:/a:b")), Place::There(id, "/a:b".to_owned()));
        assert_eq!(place(&format!("{id}:")), Place::There(id, String::new()));
        assert_eq!(place("-"), Place::Standard);
        for local in ["a", "./a:b", "C:/x", "sb1:x", id.to_string().as_str()] {
            assert_eq!(place(local), Place::Here(local.into()));
        }
    }

    #[test]
    fn directories_are_known_by_their_ends() {
        for (dir, path) in [("", "f"), ("/tmp/", "/tmp/f"), (".", "./f"), ("a/..", "a/../f"), ("/", "/f")] {
            assert!(names_directory(dir), "{dir}");
            assert_eq!(within(dir, "f"), path);
        }
        assert!(!names_directory("/tmp") && !names_directory("a/.b"));
    }

    #[test]
    fn what_stat_prints_is_understood() {
        assert!(Remote::parse("41ed:4096\n").is_some_and(Remote::is_dir));
        let file = Remote::parse("81ed:12\n").map(|file| (file.mode & 0o777, file.size, file.is_dir()));
        assert_eq!(file, Some((0o755, 12, false)));
        assert!(Remote::parse("stat: nothing").is_none());
    }

    #[tokio::test]
    async fn one_side_must_be_a_sandbox() -> Result<()> {
        let client = Client::new("http://127.0.0.1:1", None)?;
        let there = format!("{}:x", SandboxId::new());
        for (source, destination) in [("a", "b"), ("-", "-"), (there.as_str(), there.as_str())] {
            let (source, destination) = (source.to_owned(), destination.to_owned());
            assert!(run(&client, &Args { source, destination, recursive: false }).await.is_err());
        }
        Ok(())
    }
}
