// SPDX-License-Identifier: Apache-2.0
//! Paths in the agent's state directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use wrenn_api::HostId;

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

/// Images and volumes; also the mount point of the store.
pub(crate) fn volumes(state_dir: &Path) -> PathBuf {
    state_dir.join("volumes")
}

/// File of the store's file system, if it is loop-mounted.
pub(crate) fn store_file(state_dir: &Path) -> PathBuf {
    state_dir.join("volumes.xfs")
}

/// Reads the instance tag, which distinguishes this agent's links and devices from others.
pub(crate) fn instance(state_dir: &Path) -> Option<String> {
    let text = fs::read_to_string(state_dir.join("instance")).ok()?;
    Some(text.trim().to_owned())
}

/// Returns the stored instance tag, or stores a new one: the last characters of the host id.
pub(crate) fn keep_instance(state_dir: &Path, host: HostId) -> io::Result<String> {
    if let Some(present) = instance(state_dir) {
        return Ok(present);
    }
    let id = host.to_string();
    let tag = id[id.len() - 4..].to_owned();
    let beside = state_dir.join("instance.new");
    fs::write(&beside, &tag)?;
    // Sync, because with a truncated tag the agent would not find its kernel resources.
    fs::File::open(&beside)?.sync_all()?;
    fs::rename(beside, state_dir.join("instance"))?;
    Ok(tag)
}
