// SPDX-License-Identifier: Apache-2.0
//! XFS in a file, for hosts whose file system cannot share extents.
//!
//! The loop device frees itself on unmount, so that only the file is left.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    DiskError, failed,
    loopdev::{self, Use},
};

/// Time limit of an unmount while files are open, and interval between attempts.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// Returns whether something is mounted on `dir`, which need not exist.
fn is_mounted(dir: &Path) -> io::Result<bool> {
    let Some(parent) = dir.parent() else { return Ok(false) };
    match fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        meta => Ok(meta?.dev() != fs::metadata(parent)?.dev()),
    }
}

/// Returns whether the store directory has volumes.
fn holds_volumes(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir.join("volumes")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        entries => Ok(entries?.next().transpose()?.is_some()),
    }
}

/// Error of looking at the store's directory.
fn unseen(error: io::Error) -> DiskError {
    failed("look at the volume store")(error)
}

fn make_file(path: &Path, size: u64) -> io::Result<()> {
    // A file that cannot be seen must not be replaced.
    if path.try_exists()? {
        return Ok(());
    }
    let partial = path.with_extension("partial");
    File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?.set_len(size)?;
    let output = Command::new("mkfs.xfs").args(["-q", "-f", "-m", "reflink=1"]).arg(&partial).output()?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("mkfs.xfs: {reason}")));
    }
    fs::rename(partial, path)
}

/// Mounts the XFS in `file` on `dir`; creates it with `size` bytes (sparse) if it is missing. Does nothing if
/// it is mounted. Blocking; needs root and mkfs.xfs.
pub fn mount_store(file: &Path, dir: &Path, size: u64) -> Result<(), DiskError> {
    fs::create_dir_all(dir).map_err(failed("make the mount point"))?;
    if is_mounted(dir).map_err(unseen)? {
        return Ok(());
    }
    // Existing volumes would be hidden by the mount and treated as lost.
    if holds_volumes(dir).map_err(unseen)? {
        return Err(DiskError::Unsupported {
            backend: "xfs",
            reason: format!("{} has volumes already", dir.display()),
        });
    }
    make_file(file, size).map_err(failed("make an XFS for volumes"))?;
    // Keep the device open until it is mounted, else it frees itself.
    let backing = File::options().read(true).write(true).open(file);
    let device = backing
        .and_then(|backing| loopdev::attach(&backing, Use::Cached))
        .map_err(failed("attach the volumes' XFS to a loop device"))?;
    let flags = MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID;
    // With discard, deleted files free space in the file system of `file`.
    mount(&device.path, dir, "xfs", flags, c"discard").map_err(|e| failed("mount the volumes' XFS")(e.into()))
}

/// Unmounts the file system of [`mount_store`]. Does nothing if it is not mounted.
pub fn unmount_store(dir: &Path) -> Result<(), DiskError> {
    if !is_mounted(dir).map_err(unseen)? {
        return Ok(());
    }
    let begin = Instant::now();
    loop {
        match unmount(dir, UnmountFlags::empty()) {
            // A process that is just exiting or starting may still have a file open in it.
            Err(rustix::io::Errno::BUSY) if begin.elapsed() < PATIENCE => thread::sleep(LOOK),
            done => return done.map_err(|e| failed("unmount the volumes' XFS")(e.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_mounted_over_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let (store, file) = (dir.path().join("store"), dir.path().join("store.xfs"));
        fs::create_dir_all(store.join("volumes")).unwrap();
        fs::write(store.join("volumes/one.cow"), "").unwrap();
        assert!(mount_store(&file, &store, 1 << 30).is_err());
        assert!(!file.exists() && !is_mounted(&store).unwrap());
    }
}
