// SPDX-License-Identifier: Apache-2.0
//! Paths in the agent's state directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use wrenn_api::HostId;
use wrenn_os::atomic_file;

/// Directory with one directory per sandbox.
pub(crate) fn sandboxes(state_dir: &Path) -> PathBuf {
    state_dir.join("sandboxes")
}

/// Run directory of the VMM that probes KVM.
pub(crate) fn probe(state_dir: &Path) -> PathBuf {
    state_dir.join("probe")
}

/// Journal and namespace mount points of network slots.
pub(crate) fn network(state_dir: &Path) -> PathBuf {
    state_dir.join("network")
}

/// Memory snapshots of templates and of paused sandboxes: on the file system of the disks, which may share extents.
pub(crate) fn snapshots(state_dir: &Path) -> PathBuf {
    volumes(state_dir).join("snapshots")
}

/// Captures of guests for templates, on the file system of the VMMs' directories. They outlive the sandbox of which they
/// were made.
pub(crate) fn captures(state_dir: &Path) -> PathBuf {
    state_dir.join("captures")
}

/// Records of named snapshots.
pub(crate) fn named_snapshots(state_dir: &Path) -> PathBuf {
    state_dir.join("named_snapshots")
}

/// Records of images that were made of snapshots, or imported.
pub(crate) fn images(state_dir: &Path) -> PathBuf {
    state_dir.join("images")
}

/// Working directories of imports.
pub(crate) fn imports(state_dir: &Path) -> PathBuf {
    state_dir.join("imports")
}

/// Artifacts that are being imported: on the file system of the store, so that they become a part of it without a copy.
pub(crate) fn artifacts(state_dir: &Path) -> PathBuf {
    volumes(state_dir).join("artifacts")
}

/// Images and volumes; also the mount point of the store.
pub(crate) fn volumes(state_dir: &Path) -> PathBuf {
    state_dir.join("volumes")
}

/// File of the store's file system, if it is loop-mounted.
pub(crate) fn store_file(state_dir: &Path) -> PathBuf {
    state_dir.join("volumes.xfs")
}

/// Returns whether a path exists. Fails if that cannot be seen.
pub(crate) fn exists(path: &Path) -> anyhow::Result<bool> {
    path.try_exists().with_context(|| format!("{} cannot be looked at", path.display()))
}

/// Reads the instance tag, which distinguishes this agent's links and devices from others; `None` if there is
/// none yet.
pub(crate) fn instance(state_dir: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(state_dir.join("instance")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(read?.trim().to_owned())),
    }
}

/// Returns the stored instance tag, or stores a new one: the last characters of the host id.
pub(crate) fn keep_instance(state_dir: &Path, host: HostId) -> io::Result<String> {
    if let Some(present) = instance(state_dir)? {
        return Ok(present);
    }
    let id = host.to_string();
    let tag = id[id.len() - 4..].to_owned();
    // With a truncated tag the agent would not find its kernel resources.
    atomic_file::write(&state_dir.join("instance"), tag.as_bytes(), 0o644, None)?;
    Ok(tag)
}

/// Notes that this boot of the machine has had an agent. Returns whether the machine was restarted since the last
/// one, so that no microVM of that agent can run.
pub(crate) fn note_boot(state_dir: &Path) -> io::Result<bool> {
    let now = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let file = state_dir.join("boot_id");
    let before = match fs::read_to_string(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        read => Some(read?),
    };
    if before.as_ref() != Some(&now) {
        atomic_file::write(&file, now.as_bytes(), 0o644, None)?;
    }
    Ok(before.is_some_and(|before| before != now))
}
