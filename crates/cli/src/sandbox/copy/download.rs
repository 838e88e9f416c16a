// SPDX-License-Identifier: Apache-2.0
//! Copies out of a sandbox. Names and content come from it, and are input.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use wrenn_api::{FileEntry, SandboxId};
use wrenn_client::ReadOptions;

use super::{
    Copying, archive, glob, is_directory,
    local::LocalFile,
    place::{Place, file_name, names_content, names_directory, within},
};

/// Mode of a file if it is unknown.
const MODE: u32 = 0o644;

/// Copies all sources.
pub(super) async fn all(copying: &Copying<'_>, sources: Vec<(SandboxId, String)>, to: &Place) -> Result<()> {
    let mut found = Vec::new();
    for (id, path) in sources {
        found.extend(expanded(copying, id, path).await?);
    }
    if let (Place::Here(path), 2..) = (to, found.len()) {
        ensure!(
            path.is_dir(),
            "{} is not a directory, which several sources need: make it first",
            path.display()
        );
    }
    for (id, path, entry) in found {
        one(copying, id, &path, entry.as_ref(), to).await?;
    }
    Ok(())
}

/// Returns what a path stands for: itself, or what matches it if it is a pattern and there is nothing of its name.
async fn expanded(
    copying: &Copying<'_>,
    id: SandboxId,
    path: String,
) -> Result<Vec<(SandboxId, String, Option<FileEntry>)>> {
    let entry = copying.stat(id, &path).await?;
    let (dir, pattern) = path.rsplit_once('/').unwrap_or((".", &path));
    if entry.is_some() || !glob::is_pattern(pattern) {
        return Ok(vec![(id, path, entry)]);
    }
    let dir = if path.starts_with('/') && dir.is_empty() { "/" } else { dir };
    // Its whole path, wherever the user's home is.
    let directory =
        copying.stat(id, dir).await?.with_context(|| format!("there is no directory {id}:{dir}"))?;
    let dir = directory.path.as_str();
    let mut found = Vec::new();
    for entry in copying.client.list_files(id, dir, 1).await? {
        // A name is one, whatever the sandbox says.
        let sound = !entry.name.contains('/') && !matches!(entry.name.as_str(), "" | "." | "..");
        if sound && glob::matches(pattern, &entry.name) {
            found.push((id, within(dir, &entry.name), Some(entry)));
        }
    }
    ensure!(!found.is_empty(), "nothing in {id}:{dir} matches {pattern}");
    Ok(found)
}

async fn one(
    copying: &Copying<'_>,
    id: SandboxId,
    path: &str,
    entry: Option<&FileEntry>,
    to: &Place,
) -> Result<()> {
    if is_directory(entry) {
        return directory(copying, id, path, to).await;
    }
    ensure!(!names_directory(path), "there is no directory {id}:{path}");
    let options = ReadOptions { user: copying.user.map(str::to_owned), ..ReadOptions::default() };
    let mut content = copying.client.read_file(id, path, &options).await?;
    let copied = async {
        let mut file = match to {
            Place::Here(to) => {
                let mode = entry.map_or(MODE, |entry| entry.mode);
                LocalFile::open(to, file_name(Path::new(path))?, mode).await?
            }
            _ => LocalFile::stdout(),
        };
        while let Some(piece) = content.pieces.next().await {
            let piece = piece?;
            file.write(&piece).await?;
            copying.progress.add(piece.len());
        }
        file.commit().await?;
        anyhow::Ok(())
    };
    copied.await.with_context(|| match to {
        Place::Here(to) => format!("cannot copy to {}", to.display()),
        _ => "cannot copy to standard output".to_owned(),
    })
}

/// Copies a directory; to standard output as an archive.
async fn directory(copying: &Copying<'_>, id: SandboxId, path: &str, to: &Place) -> Result<()> {
    let source = if path.is_empty() { "." } else { path };
    let mut content = copying.client.read_archive(id, source, copying.user).await?;
    let Place::Here(to) = to else {
        let mut output = LocalFile::stdout();
        while let Some(piece) = content.pieces.next().await {
            let piece = piece?;
            output.write(&piece).await?;
            copying.progress.add(piece.len());
        }
        return Ok(output.commit().await?);
    };
    let mut target = to.clone();
    if to.is_dir() && !names_content(path) {
        target.push(file_name(Path::new(path))?);
    }
    ensure!(
        target.is_dir() || !target.exists(),
        "{} is not a directory, and a directory does not replace it",
        target.display()
    );
    archive::unpack(content.pieces, &target, &copying.progress).await
}
