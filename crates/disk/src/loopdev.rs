// SPDX-License-Identifier: Apache-2.0
//! Loop devices that the kernel frees when their last user closes them.
//!
//! Devices are attached with the autoclear flag, so the kernel counts their users: open handles, mounts and
//! device-mapper tables. A process that dies at any point leaves no loop device behind.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Number of attempts, because other programs may take the free loop device first.
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

/// Mode of attaching a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Read-only, through the page cache: all sandboxes of an image share its cached pages.
    Shared,
    /// Writable, bypassing the page cache if the file system allows it, because the pages would be cached
    /// twice.
    Private,
    /// Writable, through the page cache.
    Cached,
}

/// Attached loop device. It stays while this handle is open or something else uses it.
#[derive(Debug)]
pub(crate) struct Loop {
    device: File,
    /// Path of the device node.
    pub(crate) path: PathBuf,
}

impl Loop {
    /// Returns major and minor number.
    pub(crate) fn numbers(&self) -> io::Result<(u32, u32)> {
        let device = self.device.metadata()?.rdev();
        Ok((libc::major(device), libc::minor(device)))
    }

    /// Returns the kernel's status, or `None` if nothing is attached.
    fn status(&self) -> io::Result<Option<LoopInfo>> {
        // SAFETY: plain data for which all zeros is valid.
        let mut info: LoopInfo = unsafe { std::mem::zeroed() };
        // SAFETY: `info` has the kernel's layout and outlives the call.
        if unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) } == 0 {
            return Ok(Some(info));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
    }

    fn opened(path: PathBuf, writable: bool) -> io::Result<Self> {
        let device = File::options().read(true).write(writable).open(&path)?;
        if !device.metadata()?.file_type().is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a block device"));
        }
        Ok(Self { device, path })
    }
}

/// Attaches `backing` to a free loop device.
pub(crate) fn attach(backing: &File, how: Use) -> io::Result<Loop> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        // SAFETY: the call takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let found = match Loop::opened(PathBuf::from(format!("/dev/loop{number}")), true) {
            // The device was freed a moment ago and is not usable yet.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => continue,
            other => other?,
        };
        // SAFETY: plain data for which all zeros is valid.
        let mut config: LoopConfig = unsafe { std::mem::zeroed() };
        config.fd = backing.as_raw_fd() as u32;
        config.info.flags = LO_FLAGS_AUTOCLEAR
            | match how {
                Use::Shared => LO_FLAGS_READ_ONLY,
                Use::Private => LO_FLAGS_DIRECT_IO,
                Use::Cached => 0,
            };
        // SAFETY: `config` has the kernel's layout and outlives the call.
        if unsafe { libc::ioctl(found.device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) } == 0 {
            return Ok(found);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "other programs took every free loop device"))
}

/// Opens the loop device at `path` if all of `backing` is attached to it as by [`Use::Shared`].
pub(crate) fn held(path: PathBuf, backing: &File) -> io::Result<Option<Loop>> {
    let meta = backing.metadata()?;
    let Ok(found) = Loop::opened(path, false) else { return Ok(None) };
    // Check after opening: while the device is open, it cannot be freed and reused for another file.
    let flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
    let shared = found.status()?.is_some_and(|info| {
        (info.device, info.inode) == (meta.dev(), meta.ino())
            && info.flags & flags == flags
            && (info.offset, info.size_limit) == (0, 0)
    });
    Ok(shared.then_some(found))
}

/// Returns whether `file` is attached to the loop device at `path`.
pub(crate) fn backs(path: &Path, file: &File) -> io::Result<bool> {
    let meta = file.metadata()?;
    let info = Loop::opened(path.to_owned(), false)?.status()?;
    Ok(info.is_some_and(|info| (info.device, info.inode) == (meta.dev(), meta.ino())))
}

/// Finds a read-only loop device to which `backing` is attached, and opens it.
pub(crate) fn find(backing: &File) -> io::Result<Option<Loop>> {
    for entry in fs::read_dir("/sys/block")?.flatten() {
        // Only attached devices have the directory `loop`. Writable ones are not ours.
        let read_only = fs::read_to_string(entry.path().join("ro")).is_ok_and(|text| text.trim() == "1");
        if !read_only || !entry.path().join("loop").try_exists()? {
            continue;
        }
        if let Some(found) = held(PathBuf::from("/dev").join(entry.file_name()), backing)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::FileExt as _,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn a_file_is_found_again_and_freed_with_its_last_user() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"here", 4096).unwrap();
        assert!(find(&file).unwrap().is_none());
        let device = attach(&file, Use::Shared).unwrap();
        assert_eq!(device.numbers().unwrap().0, 7);
        let mut bytes = [0; 4];
        device.device.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"here");
        assert!(device.device.write_all_at(b"no", 0).is_err(), "a shared one can be written");
        let again = find(&file).unwrap().unwrap();
        assert_eq!(again.path, device.path);
        drop(device);
        assert!(find(&file).unwrap().is_some(), "its second user does not hold it");
        drop(again);
        // A child that another test is starting has copies of all descriptors until its exec.
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Some(still) = find(&file).unwrap() {
            drop(still);
            assert!(Instant::now() < deadline, "nobody uses it and it is still there");
            thread::yield_now();
        }
    }
}
