// SPDX-License-Identifier: Apache-2.0
//! Read-only disk with the files that a lab is given; labs with the same files share it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use super::files;

/// Number of payload disks kept for reuse.
const KEPT: usize = 3;

/// Returns the disk with these files; builds it unless one with unchanged files exists.
pub(super) fn build(given: &[(PathBuf, PathBuf)]) -> Result<PathBuf> {
    let base = files::base().join("payload");
    fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
    let lock = files::create(&base.join(".lock"))?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the labs' payloads")?;

    let mut size = 0;
    let mut hash = Sha256::new();
    for (local, remote) in given {
        hash.update(remote.as_os_str().as_encoded_bytes());
        measure(local, &mut hash, &mut size)?;
    }
    let name: String = hash.finalize()[..12].iter().map(|byte| format!("{byte:02x}")).collect();
    let disk = base.join(format!("{name}.ext4"));
    if disk.exists() {
        touch(&disk)?;
        return Ok(disk);
    }

    let staged = tempfile::Builder::new().prefix(".stage").tempdir_in(&base).context("cannot stage files")?;
    let root = staged.path().join("tree/root");
    fs::create_dir_all(&root)?;
    for (local, remote) in given {
        place(local, &root.join(remote.strip_prefix("/").unwrap_or(remote)))?;
    }
    let unfinished = staged.path().join("disk");
    // Add space for file system metadata.
    let mebibytes = size / 1024 / 1024 * 11 / 10 + 32;
    let output = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-L", "payload", "-d"])
        .arg(staged.path().join("tree"))
        .arg(&unfinished)
        .arg(format!("{mebibytes}M"))
        .output()
        .context("cannot run mke2fs: install e2fsprogs")?;
    ensure!(
        output.status.success(),
        "cannot write the lab's payload: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    fs::rename(&unfinished, &disk).with_context(|| format!("cannot name {}", disk.display()))?;
    forget_old(&base)?;
    Ok(disk)
}

/// Hashes the metadata that identifies the version of a file, without reading its content.
fn measure(path: &Path, hash: &mut Sha256, size: &mut u64) -> Result<()> {
    let meta =
        fs::metadata(path).with_context(|| format!("cannot read {}, a file for the lab", path.display()))?;
    if meta.is_dir() {
        for entry in sorted(path)? {
            hash.update(entry.as_os_str().as_encoded_bytes());
            measure(&entry, hash, size)?;
        }
        return Ok(());
    }
    for part in [meta.dev(), meta.ino(), meta.size(), meta.mode().into()] {
        hash.update(part.to_le_bytes());
    }
    for part in [meta.mtime(), meta.mtime_nsec()] {
        hash.update(part.to_le_bytes());
    }
    *size += meta.size();
    Ok(())
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut entries = read.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

/// Adds a file or directory to the tree from which the disk is built, as hard links if possible.
fn place(local: &Path, staged: &Path) -> Result<()> {
    let failed = || format!("cannot stage {} for the lab", local.display());
    if local.is_dir() {
        fs::create_dir_all(staged).with_context(failed)?;
        for entry in sorted(local)? {
            place(&entry, &staged.join(entry.file_name().unwrap_or_default()))?;
        }
        return Ok(());
    }
    if let Some(parent) = staged.parent() {
        fs::create_dir_all(parent).with_context(failed)?;
    }
    let file = local.canonicalize().with_context(failed)?;
    // Hard links suffice because the disk is built at once; copy only across file systems.
    fs::hard_link(&file, staged).or_else(|_| fs::copy(&file, staged).map(drop)).with_context(failed)
}

fn touch(disk: &Path) -> Result<()> {
    let file = fs::File::options().append(true).open(disk);
    file.and_then(|file| file.set_modified(SystemTime::now()))
        .with_context(|| format!("cannot touch {}", disk.display()))
}

/// Removes the oldest disks. Running labs keep using a removed disk, because they have it open.
fn forget_old(base: &Path) -> Result<()> {
    let mut disks: Vec<_> = sorted(base)?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "ext4"))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    disks.sort();
    let surplus = disks.len().saturating_sub(KEPT);
    for (_, disk) in disks.drain(..surplus) {
        drop(fs::remove_file(disk));
    }
    Ok(())
}
