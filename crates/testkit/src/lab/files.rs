// SPDX-License-Identifier: Apache-2.0
//! Paths of a lab's files on this machine.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FlockOperation, flock};

/// File name of the lab's disk for state, in the lab's directory.
pub(super) const SCRATCH: &str = "scratch.xfs";

/// Root of the repository in which this crate was built.
pub(super) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("/")).to_owned()
}

/// Directory of all lab files.
pub(super) fn base() -> PathBuf {
    repository().join("target/lab")
}

/// Directory of the built lab image.
pub(super) fn image() -> Result<PathBuf> {
    let image = base().join("image");
    ensure!(
        image.join("inputs").exists(),
        "the lab's image is not built: {} is missing; run `cargo xtask lab build`",
        image.display()
    );
    Ok(image)
}

/// Creates or truncates a file.
pub(super) fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))
}

/// Creates an empty directory for the lab `name` and locks the name.
pub(super) fn run_dir(name: &str) -> Result<(PathBuf, File)> {
    let runs = base().join("run");
    fs::create_dir_all(&runs).with_context(|| format!("cannot create {}", runs.display()))?;
    let lock = create(&runs.join(format!(".{name}.lock")))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).with_context(|| {
        format!("a lab named {name} is running already: take another name, or wait for it")
    })?;
    let dir = runs.join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok((dir, lock))
}

/// Copies the empty scratch disk. It is sparse, so only a few megabytes are copied.
pub(super) fn scratch(image: &Path, dir: &Path) -> Result<PathBuf> {
    let scratch = dir.join(SCRATCH);
    let status = Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .arg(image.join(SCRATCH))
        .arg(&scratch)
        .status()
        .context("cannot run cp")?;
    ensure!(status.success(), "cannot copy the scratch disk to {}: {status}", scratch.display());
    Ok(scratch)
}
