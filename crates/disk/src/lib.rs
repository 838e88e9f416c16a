//! Root file systems: images and the copy-on-write volumes made from them.
//!
//! A store keeps images under a name and content hash and clones them; a clone is one sandbox's disk.

use std::{
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

mod beside;
mod cloning;
mod confined;
mod dm;
mod ext4;
mod files;
mod images;
mod loopdev;
pub mod loopfs;
mod open;
mod room;

pub use dm::store::{DmStore, cleanup};
pub use files::FileStore;
pub use open::{Backend, StoreConfig, is_of_device_mapper, open};

/// Why a volume could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No image of this name was prepared.
    #[error("no image named {0:?} on this host")]
    UnknownImage(String),
    /// There is no such volume.
    #[error("no volume {0:?} on this host")]
    UnknownVolume(String),
    /// The name is not `[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}`.
    #[error("{0:?} is not a valid name: use letters, digits, '.', '_' and '-'")]
    InvalidName(String),
    /// The size asked for is smaller than the image.
    #[error("a disk of {asked_mb} MiB is smaller than its image of {image_mb} MiB")]
    TooSmall {
        /// What was asked for.
        asked_mb: u64,
        /// What the image needs.
        image_mb: u64,
    },
    /// The host's disk is full.
    #[error("the host's disk is full: free space or remove sandboxes")]
    Full,
    /// Somebody wrote to an image after it was taken in.
    #[error("image {0:?} was changed after it was taken in: prepare it again")]
    ImageChanged(String),
    /// Volumes read the image.
    #[error("image {image:?} is used by {volumes} volume(s): remove them first")]
    ImageInUse {
        /// Which image.
        image: String,
        /// How many volumes.
        volumes: usize,
    },
    /// The file with a volume's changes was deleted or replaced underneath.
    #[error("the file with the changes of volume {0:?} is gone: the volume is lost, remove it")]
    CowMissing(String),
    /// The volume lost changes because the store had no room for them.
    #[error("volume {0:?} lost changes when the store was full: remove it, and give the store more room")]
    Invalidated(String),
    /// Something still holds the device.
    #[error("device {device} is busy (open {open_count} times): end what uses it and try again")]
    Busy {
        /// Its name in device-mapper.
        device: String,
        /// How often it is open.
        open_count: u32,
    },
    /// What a guest wrote is not a file system that can be made an image.
    #[error("{what} holds no sound ext4: {reason}")]
    BadFileSystem {
        /// Which volume.
        what: String,
        /// What a tool said, shortened.
        reason: String,
    },
    /// This backend does not work here.
    #[error("volumes by {backend} do not work here: {reason}")]
    Unsupported {
        /// Which one.
        backend: &'static str,
        /// Why, and what to do.
        reason: String,
    },
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Turns a kernel's refusal into an error that says what was being done.
fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> DiskError {
    let action = action.into();
    move |source| match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskError::Full,
        _ => DiskError::Io { action, source },
    }
}

/// Names become file names: no separators, no leading dot, no surprises.
fn checked(name: &str) -> Result<&str, DiskError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let valid = name.len() <= 64
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(inner);
    if valid { Ok(name) } else { Err(DiskError::InvalidName(name.to_owned())) }
}

/// Runs what waits for the kernel off the runtime's own threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
) -> Result<T, DiskError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| failed("finish disk work")(error.into()))?
}

/// A volume that a VMM can open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// A raw image file, or the node of a block device that belongs to the owner.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Major and minor number where it is a block device: what to make a node of inside a jail.
    pub numbers: Option<(u32, u32)>,
}

/// A prepared image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The name that it is cloned by.
    pub name: String,
    /// SHA-256 of its content.
    pub hash: String,
    /// Its length in bytes; what it occupies may be less.
    pub size: u64,
}

/// How a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It works.
    Ok,
    /// It works, and the store has so little room left that it may soon not: pause what writes to it.
    Low {
        /// Bytes free in the store.
        free: u64,
        /// Bytes that should stay free.
        reserve: u64,
    },
    /// It lost changes; reads and writes fail.
    Invalid,
    /// The file with its changes is gone.
    CowMissing,
}

/// How much room a store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Bytes of its file system.
    pub total: u64,
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that guests wrote and that may still take room.
    pub unwritten: u64,
    /// Bytes that should stay free: below, nothing is cloned, and what runs should be paused.
    pub reserve: u64,
}

impl Pressure {
    /// Bytes that are free and will be.
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.unwritten)
    }

    /// Whether less is available than should be.
    pub fn is_low(&self) -> bool {
        self.available() < self.reserve
    }
}

/// What a reclaim found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Volumes that nobody claimed and that are gone now.
    pub volumes: Vec<String>,
    /// Volumes that nobody claimed and that something still holds; they are whole.
    pub busy: Vec<String>,
    /// Contents of images that nothing referred to any more, and files that nobody finished.
    pub images: usize,
}

/// Images and the volumes cloned from them.
#[async_trait]
pub trait Volumes: Send + Sync {
    /// `dm-snapshot`, `reflink` or `copy`.
    fn backend(&self) -> &'static str;
    /// Whether volumes read their image as long as they live, so that it cannot be removed.
    fn shares_images(&self) -> bool;
    /// Takes in the image file `source` under `name`. Immutable from then on; the same content again is
    /// a matter of microseconds, other content replaces it for later clones only.
    async fn prepare(&self, name: &str, source: &Path) -> Result<(), DiskError>;
    /// Names of the prepared images.
    async fn images(&self) -> Result<Vec<String>, DiskError>;
    /// Removes an image, unless volumes depend on it; a missing one is fine.
    async fn remove_image(&self, name: &str) -> Result<(), DiskError>;
    /// Makes volume `id` of `size_mb` MiB from an image; one of that id is replaced unless it is in use.
    /// Content beyond the image reads as zeros and takes no space; the guest grows its file system.
    /// `owner` is the user that opens it.
    async fn clone_image(
        &self,
        image: &str,
        id: &str,
        size_mb: u64,
        owner: u32,
    ) -> Result<BlockDevice, DiskError>;
    /// Makes an existing volume usable, also after a restart of the machine, with all that was written.
    async fn attach(&self, id: &str, owner: u32) -> Result<BlockDevice, DiskError>;
    /// Gives back what a volume takes of the kernel; its content stays.
    async fn detach(&self, id: &str) -> Result<(), DiskError>;
    /// Makes image `name` of what volume `id` holds: sparse, checked and as small as its file system can
    /// be. Nothing may write to the volume meanwhile. What a guest wrote is only ever read by confined
    /// programs, never mounted.
    async fn flatten(&self, id: &str, name: &str) -> Result<Image, DiskError>;
    /// Bytes that volume `id` occupies.
    async fn usage(&self, id: &str) -> Result<u64, DiskError>;
    /// How volume `id` is.
    async fn health(&self, id: &str) -> Result<Health, DiskError>;
    /// How much room the store has.
    async fn pressure(&self) -> Result<Pressure, DiskError>;
    /// Ids of all volumes.
    async fn list(&self) -> Result<Vec<String>, DiskError>;
    /// Removes volume `id`; a missing one is fine.
    async fn remove(&self, id: &str) -> Result<(), DiskError>;
    /// Removes every volume, device and unfinished file of this store that `keep` does not list. For the
    /// start, before anything is made: what another instance or program made is never touched.
    async fn reclaim(&self, keep: &[String]) -> Result<Reclaimed, DiskError>;
    /// Total and free bytes of the store.
    async fn space(&self) -> Result<(u64, u64), DiskError> {
        let pressure = self.pressure().await?;
        Ok((pressure.total, pressure.free))
    }
}
