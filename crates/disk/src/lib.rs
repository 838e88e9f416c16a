// SPDX-License-Identifier: Apache-2.0
//! Root file systems: images and the copy-on-write volumes made from them.
//!
//! A store keeps images under a name and content hash and clones them; a clone is one sandbox's disk.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

mod cloning;
mod confined;
mod dm;
mod ext4;
mod files;
mod free_space;
mod images;
mod loopdev;
pub mod loopfs;
mod open;
mod partial_file;

pub use dm::store::{DmStore, cleanup};
pub use files::FileStore;
pub use open::{Backend, StoreConfig, is_of_device_mapper, open};

/// Errors of volumes and images.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No image of this name has been prepared.
    #[error("no image named {0:?} on this host")]
    UnknownImage(String),
    /// There is no such volume.
    #[error("no volume {0:?} on this host")]
    UnknownVolume(String),
    /// The name is not `[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}`.
    #[error("{0:?} is not a valid name: use letters, digits, '.', '_' and '-'")]
    InvalidName(String),
    /// The requested size is smaller than the image.
    #[error("a disk of {asked_mb} MiB is smaller than its image of {image_mb} MiB")]
    TooSmall {
        /// Requested size in MiB.
        asked_mb: u64,
        /// Size of the image in MiB.
        image_mb: u64,
    },
    /// The host's disk is full.
    #[error("the host's disk is full: free space or remove sandboxes")]
    Full,
    /// An image was modified after its import.
    #[error("image {0:?} was modified after its import: prepare it again")]
    ImageChanged(String),
    /// Volumes depend on the image.
    #[error("image {image:?} is used by {volumes} volume(s): remove them first")]
    ImageInUse {
        /// Name of the image.
        image: String,
        /// Number of volumes.
        volumes: usize,
    },
    /// The record of a volume cannot be read, so its image is unknown.
    #[error(
        "the record of volume {volume:?} cannot be read, so no image can be removed: remove the volume ({source})"
    )]
    Unreadable {
        /// Name of the volume.
        volume: String,
        /// Cause.
        source: Box<DiskError>,
    },
    /// The copy-on-write file of a volume was deleted or replaced.
    #[error("the file with the changes of volume {0:?} is gone: the volume is lost, remove it")]
    CowMissing(String),
    /// The volume lost changes because the store was full.
    #[error("volume {0:?} lost changes when the store was full: remove it, and give the store more room")]
    Invalidated(String),
    /// The device is in use.
    #[error("device {device} is busy (open {open_count} times): end what uses it and try again")]
    Busy {
        /// Name of the device.
        device: String,
        /// Number of open handles.
        open_count: u32,
    },
    /// The volume has no valid file system.
    #[error("{what} holds no sound ext4: {reason}")]
    BadFileSystem {
        /// Name of the volume.
        what: String,
        /// Output of a tool, shortened.
        reason: String,
    },
    /// The backend does not work on this machine.
    #[error("volumes by {backend} do not work here: {reason}")]
    Unsupported {
        /// Name of the backend.
        backend: &'static str,
        /// Cause and remedy.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// Failed action.
        action: String,
        /// Cause.
        source: io::Error,
    },
}

/// Converts an I/O error into an error with the failed action.
fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> DiskError {
    let action = action.into();
    move |source| match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskError::Full,
        _ => DiskError::Io { action, source },
    }
}

/// Checks a name, which becomes a file name: no separators and no leading dot.
fn checked(name: &str) -> Result<&str, DiskError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let valid = name.len() <= 64
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(inner);
    if valid { Ok(name) } else { Err(DiskError::InvalidName(name.to_owned())) }
}

/// Runs blocking work on a thread outside the async runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
) -> Result<T, DiskError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| failed("finish disk work")(error.into()))?
}

/// Volume that a VMM can open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Path of a raw image file, or of a block device node that belongs to the owner.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Major and minor number of a block device, to create its node in a jail.
    pub numbers: Option<(u32, u32)>,
}

/// Prepared image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Name of the image.
    pub name: String,
    /// SHA-256 of the content.
    pub hash: String,
    /// Length in bytes; it may occupy less space.
    pub size: u64,
}

/// State of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The volume works.
    Ok,
    /// The volume works, but the store is almost full: writers should be paused.
    Low {
        /// Bytes free in the store.
        free: u64,
        /// Bytes that should stay free.
        reserve: u64,
    },
    /// The volume lost changes; reads and writes fail.
    Invalid,
    /// The copy-on-write file is gone.
    CowMissing,
}

/// Free space of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Size of the file system in bytes.
    pub total: u64,
    /// Free bytes.
    pub free: u64,
    /// Bytes written by guests that may still need space on writeback.
    pub unwritten: u64,
    /// Bytes that should stay free; below it clones fail and guests should be paused.
    pub reserve: u64,
}

impl Pressure {
    /// Returns the free bytes after writeback.
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.unwritten)
    }

    /// Returns whether less than the reserve is available.
    pub fn is_low(&self) -> bool {
        self.available() < self.reserve
    }
}

/// Result of a reclaim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Removed volumes that were not in `keep`.
    pub volumes: Vec<String>,
    /// Volumes that were not in `keep` but are in use; they are unchanged.
    pub busy: Vec<String>,
    /// Volumes that were not in `keep` and could not be removed for another reason, which is logged.
    pub failed: Vec<String>,
    /// Number of removed unused image contents and temporary files.
    pub images: usize,
}

/// Store of images and the volumes cloned from them.
#[async_trait]
pub trait Volumes: Send + Sync {
    /// Name of the backend: `dm-snapshot`, `reflink` or `copy`.
    fn backend(&self) -> &'static str;
    /// Returns whether volumes depend on their image, so that it cannot be removed.
    fn shares_images(&self) -> bool;
    /// Imports the image file `source` as `name`. It is immutable from then on. Unchanged content takes
    /// microseconds; other content replaces it only for later clones.
    async fn prepare(&self, name: &str, source: &Path) -> Result<(), DiskError>;
    /// Lists the names of the prepared images.
    async fn images(&self) -> Result<Vec<String>, DiskError>;
    /// Returns the current content of an image.
    async fn image(&self, name: &str) -> Result<Image, DiskError>;
    /// Opens the current content of an image for reading. It can be read to its end if the image is removed meanwhile.
    async fn open_image(&self, name: &str) -> Result<File, DiskError>;
    /// Makes a finished file in the store's file system the content of image `name`, without a copy. It is immutable from
    /// then on, and gone at its former place. One call at a time for each name.
    async fn take_image(&self, name: &str, file: &Path) -> Result<Image, DiskError>;
    /// Removes an image unless volumes depend on it. Does nothing if there is none.
    async fn remove_image(&self, name: &str) -> Result<(), DiskError>;
    /// Clones volume `id` of `size_mb` MiB from an image; replaces a volume with the same id unless it is in
    /// use. Content after the image reads as zeros and takes no space; the guest grows its file system.
    /// `owner` is the user id that may open the volume.
    async fn clone_image(
        &self,
        image: &str,
        id: &str,
        size_mb: u64,
        owner: u32,
    ) -> Result<BlockDevice, DiskError>;
    /// Makes an existing volume usable with its content, also after a reboot.
    async fn attach(&self, id: &str, owner: u32) -> Result<BlockDevice, DiskError>;
    /// Writes the content of a volume to the disk, so that it survives a power failure. It may be attached.
    async fn sync(&self, id: &str) -> Result<(), DiskError>;
    /// Releases the kernel resources of a volume; its content stays, and is written to the disk.
    async fn detach(&self, id: &str) -> Result<(), DiskError>;
    /// Creates image `name` from the content of volume `id`: sparse, checked and shrunk. Nothing may write to
    /// the volume meanwhile. The file system is only read by confined programs, never mounted.
    async fn flatten(&self, id: &str, name: &str) -> Result<Image, DiskError>;
    /// Copies volume `from` as volume `to`, with its content of this instant and its size; replaces a volume `to`
    /// unless it is in use. Nothing may write to `from` meanwhile, so its guest is paused. The copy is detached.
    /// With dm-snapshot and shared extents, the time depends on what was written since the clone at most.
    async fn copy(&self, from: &str, to: &str) -> Result<(), DiskError>;
    /// Returns the number of bytes that volume `id` occupies.
    async fn usage(&self, id: &str) -> Result<u64, DiskError>;
    /// Returns the state of volume `id`.
    async fn health(&self, id: &str) -> Result<Health, DiskError>;
    /// Returns the free space of the store.
    async fn pressure(&self) -> Result<Pressure, DiskError>;
    /// Lists the ids of all volumes.
    async fn list(&self) -> Result<Vec<String>, DiskError>;
    /// Removes volume `id`. Does nothing if there is none.
    async fn remove(&self, id: &str) -> Result<(), DiskError>;
    /// Removes all volumes, devices and temporary files of this store that are not in `keep`. For use at the
    /// start, before anything is created. Does not touch devices of other instances or programs.
    async fn reclaim(&self, keep: &[String]) -> Result<Reclaimed, DiskError>;
    /// Returns total and free bytes of the store.
    async fn space(&self) -> Result<(u64, u64), DiskError> {
        let pressure = self.pressure().await?;
        Ok((pressure.total, pressure.free))
    }
}
