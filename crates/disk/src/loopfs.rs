//! An XFS in a file, for hosts whose own file system shares no extents.
//!
//! The loop device frees itself with the unmount, so that nothing but the file is left.

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

/// How long an unmount waits for others, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// Whether something is mounted on `dir`.
fn is_mounted(dir: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    dir.parent().is_some_and(|parent| dir.exists() && device(dir) != device(parent))
}

/// Whether there are volumes in the directory of a store.
fn holds_volumes(dir: &Path) -> bool {
    fs::read_dir(dir.join("volumes")).is_ok_and(|mut entries| entries.next().is_some())
}

fn make_file(path: &Path, size: u64) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let beside = path.with_extension("partial");
    File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?.set_len(size)?;
    let output = Command::new("mkfs.xfs").args(["-q", "-f", "-m", "reflink=1"]).arg(&beside).output()?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("mkfs.xfs: {reason}")));
    }
    fs::rename(beside, path)
}

/// Mounts the XFS in `file` on `dir`, made with `size` bytes (sparse) when it is missing. Does nothing when
/// it is mounted. Blocks; needs root and mkfs.xfs.
pub fn mount_store(file: &Path, dir: &Path, size: u64) -> Result<(), DiskError> {
    fs::create_dir_all(dir).map_err(failed("make the mount point"))?;
    if is_mounted(dir) {
        return Ok(());
    }
    // Volumes that were made without it would be hidden, and taken for lost.
    if holds_volumes(dir) {
        return Err(DiskError::Unsupported {
            backend: "xfs",
            reason: format!("{} has volumes already", dir.display()),
        });
    }
    make_file(file, size).map_err(failed("make an XFS for volumes"))?;
    // The device must stay open until it is mounted, or it frees itself.
    let backing = File::options().read(true).write(true).open(file);
    let device = backing
        .and_then(|backing| loopdev::attach(&backing, Use::Cached))
        .map_err(failed("attach the volumes' XFS to a loop device"))?;
    let flags = MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID;
    // What is removed is given back to the file system that the file is in.
    mount(&device.path, dir, "xfs", flags, c"discard").map_err(|e| failed("mount the volumes' XFS")(e.into()))
}

/// Unmounts what [`mount_store`] mounted; does nothing when it is not mounted.
pub fn unmount_store(dir: &Path) -> Result<(), DiskError> {
    if !is_mounted(dir) {
        return Ok(());
    }
    let begin = Instant::now();
    loop {
        match unmount(dir, UnmountFlags::empty()) {
            // A process that was just ended, or is just being started, may still hold a file in it.
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
        assert!(!file.exists() && !is_mounted(&store));
    }
}
