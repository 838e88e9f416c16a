// SPDX-License-Identifier: Apache-2.0
//! Copies into a sandbox.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use futures::TryStreamExt as _;
use tokio::{fs, io::AsyncRead};
use tokio_util::io::ReaderStream;
use wrenn_api::{FileEntry, SandboxId};
use wrenn_archive::ArchiveError;
use wrenn_client::{Body, WriteOptions};

use super::{
    Copying, archive, is_directory,
    place::{Place, file_name, names_content, names_directory, within},
};

/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// Copies all sources.
pub(super) async fn all(copying: &Copying<'_>, sources: &[Place], id: SandboxId, to: &str) -> Result<()> {
    let old = copying.stat(id, to).await?;
    let several = sources.len() > 1;
    if several {
        ensure!(
            is_directory(old.as_ref()) || old.is_none() && names_directory(to),
            "{id}:{to} is not a directory, which several sources need: make it first"
        );
    }
    for source in sources {
        match source {
            Place::Standard => standard(copying, id, to, old.as_ref()).await?,
            Place::Here(from) => one(copying, from, id, to, (old.as_ref(), several)).await?,
            Place::There(..) => bail!("both are in sandboxes: copy to a local file first"),
        }
    }
    Ok(())
}

async fn standard(copying: &Copying<'_>, id: SandboxId, to: &str, old: Option<&FileEntry>) -> Result<()> {
    ensure!(
        !names_directory(to) && !is_directory(old),
        "{id}:{to} is a directory: name the file that standard input is copied to"
    );
    let options = WriteOptions { user: copying.user.map(str::to_owned), ..WriteOptions::default() };
    content(copying, Box::new(tokio::io::stdin()), id, to, &options).await
}

async fn one(
    copying: &Copying<'_>,
    from: &Path,
    id: SandboxId,
    to: &str,
    (old, into): (Option<&FileEntry>, bool),
) -> Result<()> {
    let shown = || from.display();
    let meta = fs::metadata(from).await.with_context(|| format!("cannot open {}", shown()))?;
    if meta.is_dir() {
        return directory(copying, from, id, to, (old, into)).await;
    }
    let (path, old) = if names_directory(to) || is_directory(old) {
        let path = within(to, file_name(from)?);
        let old = copying.stat(id, &path).await?;
        ensure!(!is_directory(old.as_ref()), "{id}:{path} is a directory, which a file does not replace");
        (path, old)
    } else {
        (to.to_owned(), old.cloned())
    };
    let file = fs::File::open(from).await.with_context(|| format!("cannot open {}", shown()))?;
    let options = WriteOptions {
        user: copying.user.map(str::to_owned),
        // One that is replaced keeps its own.
        mode: old.is_none().then_some(meta.mode() & 0o777),
        size: meta.is_file().then_some(meta.len()),
        ..WriteOptions::default()
    };
    content(copying, Box::new(file), id, &path, &options).await
}

async fn content(
    copying: &Copying<'_>,
    input: Box<dyn AsyncRead + Send + Sync + Unpin>,
    id: SandboxId,
    path: &str,
    options: &WriteOptions,
) -> Result<()> {
    let counter = copying.progress.clone();
    let pieces = ReaderStream::with_capacity(input, PIECE).inspect_ok(move |piece| counter.add(piece.len()));
    copying.client.write_file(id, path, options, Body::wrap_stream(pieces)).await?;
    Ok(())
}

async fn directory(
    copying: &Copying<'_>,
    from: &Path,
    id: SandboxId,
    to: &str,
    (old, into): (Option<&FileEntry>, bool),
) -> Result<()> {
    ensure!(
        old.is_none() || is_directory(old),
        "{id}:{to} is not a directory, and a directory does not replace it"
    );
    let content = from.to_str().is_some_and(names_content);
    let path = match to {
        _ if !content && (old.is_some() || into) => within(to, file_name(from)?),
        "" => ".".to_owned(),
        to => to.to_owned(),
    };
    archive::check(from).await.with_context(|| format!("cannot copy {}", from.display()))?;
    let (pieces, packing) = archive::pack(from.to_owned(), copying.progress.clone());
    let written = copying.client.write_archive(id, &path, copying.user, Body::wrap_stream(pieces)).await;
    match packing.await? {
        // The sandbox takes no more; its error says why.
        Ok(()) | Err(ArchiveError::Stream(_)) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot copy {}", from.display())),
    }
    written?;
    Ok(())
}
