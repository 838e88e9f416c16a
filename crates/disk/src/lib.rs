//! Root file systems: images and the copy-on-write volumes made from them.
//!
//! A store keeps images under a name and content hash and clones them; a clone is one sandbox's disk.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

mod cloning;
pub mod loopfs;
mod store;

pub use store::{Backend, Store};

/// Why a volume could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No image of this name was prepared.
    #[error("no image named {0:?} on this host")]
    UnknownImage(String),
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
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// A volume that a VMM can open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// A raw image file or a block device.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

/// Images and the volumes cloned from them.
#[async_trait]
pub trait Volumes: Send + Sync {
    /// `reflink` or `copy`.
    fn backend(&self) -> &'static str;
    /// Takes in the image file `source` under `name`. Immutable from then on; the same content again is
    /// a matter of microseconds, other content replaces it for later clones only.
    async fn prepare(&self, name: &str, source: &Path) -> Result<(), DiskError>;
    /// Names of the prepared images.
    async fn images(&self) -> Result<Vec<String>, DiskError>;
    /// Makes volume `id` of `size_mb` MiB from an image. Content beyond the image reads as zeros and
    /// takes no space; the guest grows its file system. `owner` is the user that opens it.
    async fn clone_image(
        &self,
        image: &str,
        id: &str,
        size_mb: u64,
        owner: u32,
    ) -> Result<BlockDevice, DiskError>;
    /// Bytes that volume `id` occupies.
    async fn usage(&self, id: &str) -> Result<u64, DiskError>;
    /// Ids of all volumes.
    async fn list(&self) -> Result<Vec<String>, DiskError>;
    /// Removes volume `id`; a missing one is fine.
    async fn remove(&self, id: &str) -> Result<(), DiskError>;
    /// Total and free bytes of the store.
    async fn space(&self) -> Result<(u64, u64), DiskError>;
}
