//! Loop devices: a file as a block device, freed by the kernel when its last user closes it.
//!
//! Nobody counts users here. The device is made with the autoclear flag, so the kernel counts: openers,
//! mounts and device-mapper tables. A process that dies at any point leaves no loop device behind.

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

/// How a file is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// For reading, through the page cache: all sandboxes of an image read its pages once.
    Shared,
    /// For writing, past the page cache where the file system allows it: the pages would be kept twice.
    Private,
    /// For writing, through the page cache.
    Cached,
}

/// An attached loop device. It stays while this is open, or something else uses it.
#[derive(Debug)]
pub(crate) struct Loop {
    device: File,
    /// Its node.
    pub(crate) path: PathBuf,
}

impl Loop {
    /// Major and minor number.
    pub(crate) fn numbers(&self) -> io::Result<(u32, u32)> {
        let device = self.device.metadata()?.rdev();
        Ok((libc::major(device), libc::minor(device)))
    }

    /// What the kernel says is attached; `None` where nothing is.
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
            // It was freed a moment ago and the kernel is not through with it.
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

/// The loop device at `path`, held open, if all of `backing` is attached there as [`Use::Shared`] asks.
pub(crate) fn held(path: PathBuf, backing: &File) -> io::Result<Option<Loop>> {
    let meta = backing.metadata()?;
    let Ok(found) = Loop::opened(path, false) else { return Ok(None) };
    // Asked only now: while it is open, nobody frees it and takes it for something else.
    let flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
    let shared = found.status()?.is_some_and(|info| {
        (info.device, info.inode) == (meta.dev(), meta.ino())
            && info.flags & flags == flags
            && (info.offset, info.size_limit) == (0, 0)
    });
    Ok(shared.then_some(found))
}

/// Whether the loop device at `path` keeps its content in `file`.
pub(crate) fn backs(path: &Path, file: &File) -> io::Result<bool> {
    let meta = file.metadata()?;
    let info = Loop::opened(path.to_owned(), false)?.status()?;
    Ok(info.is_some_and(|info| (info.device, info.inode) == (meta.dev(), meta.ino())))
}

/// A loop device that `backing` is attached to already for reading, held open.
pub(crate) fn find(backing: &File) -> io::Result<Option<Loop>> {
    for entry in fs::read_dir("/sys/block")?.flatten() {
        // Only attached ones have this directory; those that can be written belong to others.
        let read_only = fs::read_to_string(entry.path().join("ro")).is_ok_and(|text| text.trim() == "1");
        if !read_only || !entry.path().join("loop").exists() {
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
        // A child that another test is about to start holds copies of all files until it becomes its program.
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Some(still) = find(&file).unwrap() {
            drop(still);
            assert!(Instant::now() < deadline, "nobody uses it and it is still there");
            thread::yield_now();
        }
    }
}
