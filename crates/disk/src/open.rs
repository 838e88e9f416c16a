// SPDX-License-Identifier: Apache-2.0
//! Selection of the store's backend.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    DiskError, DmStore, FileStore, Volumes, blocking, cloning::can_reflink, dm::store::NODES, failed,
    free_space::FreeSpace, images::names,
};

/// Backend of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The best that works: device-mapper, else reflinks, else copies.
    Auto,
    /// Device-mapper snapshots over read-only loop devices.
    Dm,
    /// Shared extents (XFS, Btrfs).
    Reflink,
    /// Sparse copies.
    Copy,
}

/// Configuration of a store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Directory of images and volumes.
    pub dir: PathBuf,
    /// Backend of new stores.
    pub backend: Backend,
    /// Instance tag in device names, which distinguishes this agent's devices from others: 1 to 16 letters
    /// and digits.
    pub instance: String,
    /// Bytes that should stay free. Default: 5 % of the file system, at most 2 GiB, but at least 1 GiB or 25
    /// %.
    pub reserve: Option<u64>,
    /// Directory with the file from which the store is mounted, if any; its free space counts too.
    pub below: Option<PathBuf>,
}

impl StoreConfig {
    /// Creates a configuration with the default reserve.
    pub fn new(dir: impl Into<PathBuf>, backend: Backend, instance: impl Into<String>) -> Self {
        Self { dir: dir.into(), backend, instance: instance.into(), reserve: None, below: None }
    }

    pub(crate) fn free_space(&self, devices: bool) -> FreeSpace {
        FreeSpace { dir: self.dir.clone(), below: self.below.clone(), reserve: self.reserve, devices }
    }

    pub(crate) fn check_instance(instance: &str) -> Result<(), DiskError> {
        let valid = (1..=16).contains(&instance.len()) && instance.bytes().all(|b| b.is_ascii_alphanumeric());
        if valid { Ok(()) } else { Err(DiskError::InvalidName(instance.to_owned())) }
    }
}

/// Returns whether `dir` is or was a device-mapper store.
pub fn is_of_device_mapper(dir: &Path) -> Result<bool, DiskError> {
    dir.join(NODES).try_exists().map_err(failed("look for a store of device-mapper"))
}

/// Opens the store; creates it if it is missing.
pub async fn open(config: StoreConfig) -> Result<Arc<dyn Volumes>, DiskError> {
    blocking(move || open_now(&config)).await
}

fn open_now(config: &StoreConfig) -> Result<Arc<dyn Volumes>, DiskError> {
    StoreConfig::check_instance(&config.instance)?;
    for part in ["images", "volumes"] {
        fs::create_dir_all(config.dir.join(part)).map_err(failed("make the volume store"))?;
    }
    // A full store cannot be tested; clones fail in it anyway.
    let possible = match can_reflink(&config.dir).map_err(failed("try the volume store")) {
        Err(DiskError::Full) => false,
        tried => tried?,
    };
    // Keep the backend of existing volumes: another one would not find them and treat them as lost.
    let volumes = config.dir.join("volumes");
    if !names(&volumes, ".json")?.is_empty() {
        return Ok(Arc::new(DmStore::new(config, possible)?));
    }
    if !names(&volumes, ".img")?.is_empty() {
        return Ok(Arc::new(FileStore::new(config, possible && config.backend != Backend::Copy)));
    }
    match config.backend {
        Backend::Copy => Ok(Arc::new(FileStore::new(config, false))),
        Backend::Reflink if possible => Ok(Arc::new(FileStore::new(config, true))),
        Backend::Reflink => Err(DiskError::Unsupported {
            backend: "reflink",
            reason: "the store's file system shares no extents: use XFS or Btrfs, or another backend".into(),
        }),
        Backend::Dm => Ok(Arc::new(DmStore::new(config, possible)?)),
        Backend::Auto => match DmStore::new(config, possible) {
            Ok(store) => Ok(Arc::new(store)),
            Err(error) => {
                tracing::info!(%error, "device-mapper is not used");
                Ok(Arc::new(FileStore::new(config, possible)))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_with_volumes_becomes_no_other() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("volumes")).unwrap();
        fs::write(dir.path().join("volumes/one.json"), "{}").unwrap();
        for backend in [Backend::Auto, Backend::Copy] {
            match open(StoreConfig::new(dir.path(), backend, "unit")).await {
                Ok(store) => assert_eq!(store.backend(), "dm-snapshot"),
                Err(error) => assert!(matches!(error, DiskError::Unsupported { .. }), "{error}"),
            }
        }
        fs::rename(dir.path().join("volumes/one.json"), dir.path().join("volumes/one.img")).unwrap();
        for backend in [Backend::Auto, Backend::Dm] {
            let store = open(StoreConfig::new(dir.path(), backend, "unit")).await.unwrap();
            assert_eq!(store.list().await.unwrap(), ["one"]);
        }
    }
}
