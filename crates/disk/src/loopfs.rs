//! An XFS in a file, for hosts whose own file system shares no extents.
//!
//! The loop device frees itself with the unmount, so that nothing but the file is left.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    process::Command,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::DiskError;

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Others may take the free loop device first; so often it is tried again.
const ATTEMPTS: u32 = 64;

/// `struct loop_info64` (linux/loop.h).
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` (linux/loop.h).
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

fn failed(action: &str, source: io::Error) -> DiskError {
    match source.raw_os_error() {
        Some(libc::ENOSPC) => DiskError::Full,
        _ => DiskError::Io { action: action.to_owned(), source },
    }
}

/// Whether something is mounted on `dir`.
fn is_mounted(dir: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    dir.parent().is_some_and(|parent| dir.exists() && device(dir) != device(parent))
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

/// Attaches `path` to a free loop device that vanishes with its last user.
fn attach(path: &Path) -> io::Result<(String, File)> {
    let backing = File::options().read(true).write(true).open(path)?;
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        // SAFETY: the call takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let name = format!("/dev/loop{number}");
        let device = File::options().read(true).write(true).open(&name)?;
        // SAFETY: plain data for which all zeros is valid.
        let mut config: LoopConfig = unsafe { std::mem::zeroed() };
        config.fd = backing.as_raw_fd() as u32;
        config.info.flags = LO_FLAGS_AUTOCLEAR;
        // SAFETY: `config` has the kernel's layout and outlives the call.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) } == 0 {
            return Ok((name, device));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "other programs took every free loop device"))
}

/// Mounts the XFS in `file` on `dir`, made with `size` bytes (sparse) when it is missing. Does nothing when
/// it is mounted. Blocks; needs root and mkfs.xfs.
pub fn mount_store(file: &Path, dir: &Path, size: u64) -> Result<(), DiskError> {
    fs::create_dir_all(dir).map_err(|e| failed("make the mount point", e))?;
    if is_mounted(dir) {
        return Ok(());
    }
    make_file(file, size).map_err(|e| failed("make an XFS for volumes", e))?;
    // The device must stay open until it is mounted, or it frees itself.
    let (name, _device) = attach(file).map_err(|e| failed("attach the volumes' XFS to a loop device", e))?;
    let flags = MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID;
    mount(name, dir, "xfs", flags, None).map_err(|e| failed("mount the volumes' XFS", e.into()))
}

/// Unmounts what [`mount_store`] mounted; does nothing when it is not mounted.
pub fn unmount_store(dir: &Path) -> Result<(), DiskError> {
    if !is_mounted(dir) {
        return Ok(());
    }
    unmount(dir, UnmountFlags::empty()).map_err(|e| failed("unmount the volumes' XFS", e.into()))
}
