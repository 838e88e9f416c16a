//! Where in its state directory the agent keeps what.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use wrenn_api::HostId;

/// A directory per sandbox.
pub(crate) fn sandboxes(state_dir: &Path) -> PathBuf {
    state_dir.join("sandboxes")
}

/// The run directory of the VMM with which KVM is tried.
pub(crate) fn probe(state_dir: &Path) -> PathBuf {
    state_dir.join("probe")
}

/// Journal and pins of network slots.
pub(crate) fn network(state_dir: &Path) -> PathBuf {
    state_dir.join("network")
}

/// Images and volumes; the mount point of the store.
pub(crate) fn volumes(state_dir: &Path) -> PathBuf {
    state_dir.join("volumes")
}

/// The file that the store is in, where it is loop-mounted.
pub(crate) fn store_file(state_dir: &Path) -> PathBuf {
    state_dir.join("volumes.xfs")
}

/// What tells this agent's links from another's.
pub(crate) fn instance(state_dir: &Path) -> Option<String> {
    let text = fs::read_to_string(state_dir.join("instance")).ok()?;
    Some(text.trim().to_owned())
}

/// Chooses and keeps the tag: the last digits of the host's id, which differ from host to host.
pub(crate) fn keep_instance(state_dir: &Path, host: HostId) -> io::Result<String> {
    if let Some(present) = instance(state_dir) {
        return Ok(present);
    }
    let id = host.to_string();
    let tag = id[id.len() - 4..].to_owned();
    let beside = state_dir.join("instance.new");
    fs::write(&beside, &tag)?;
    // Half of a tag would be another one, after which nothing in the kernel is known for ours.
    fs::File::open(&beside)?.sync_all()?;
    fs::rename(beside, state_dir.join("instance"))?;
    Ok(tag)
}
