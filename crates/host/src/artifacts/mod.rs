// SPDX-License-Identifier: Apache-2.0
//! Artifacts: what a version of a template is on a host, an image or a named snapshot, and how it comes to another host.
//!
//! An export is a stream of pieces of its files, each with a digest, and ends with a record. An import writes them beside what is
//! there, and keeps them when every digest is right. The disk of a snapshot comes as its whole content, whatever
//! kind of store it is from, so that memory and disk still fit. The memory comes flat, and needs no other
//! generation. Whether a host can load it is checked when it does: where it cannot, sandboxes boot from the disk.

mod export;
mod format;
mod import;
mod record;
mod source;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::{sync::Semaphore, task::spawn_blocking};
use wrenn_disk::{DiskError, Volumes};

pub(crate) use format::{Kind, Message};

use self::format::Head;
use crate::{
    config::Limits,
    error::{AgentError, of_files},
    images::{self, Images},
    snapshots::{
        Snapshots,
        named::{self, NamedSnapshots},
    },
};

/// Maximum number of exports, and of imports, that are in work at once. Each holds up to 32 MiB.
const TRANSFERS: usize = 4;

/// Imports of one artifact wait for each other by this.
type Alone = tokio::sync::Mutex<()>;

/// Artifacts of this host.
pub(crate) struct Artifacts {
    /// Directory of what is being imported, in the file system of the store.
    dir: PathBuf,
    limits: Limits,
    volumes: Arc<dyn Volumes>,
    snapshots: Arc<Snapshots>,
    named: Arc<NamedSnapshots>,
    images: Arc<Images>,
    exports: Arc<Semaphore>,
    imports: Arc<Semaphore>,
    running: Mutex<HashMap<(Kind, String), Weak<Alone>>>,
}

impl Artifacts {
    /// Begins with an empty directory for imports. Removes what a former agent left in it.
    pub(crate) async fn open(
        dir: PathBuf,
        limits: Limits,
        volumes: Arc<dyn Volumes>,
        snapshots: Arc<Snapshots>,
        named: Arc<NamedSnapshots>,
        images: Arc<Images>,
    ) -> io::Result<Arc<Self>> {
        let begun = dir.clone();
        spawn_blocking(move || begin(&begun)).await.unwrap_or_else(|error| Err(error.into()))?;
        let [exports, imports] = [(); 2].map(|()| Arc::new(Semaphore::new(TRANSFERS)));
        let running = Mutex::default();
        Ok(Arc::new(Self { dir, limits, volumes, snapshots, named, images, exports, imports, running }))
    }

    /// What imports of one artifact lock.
    fn lock_of(&self, head: &Head) -> Arc<Alone> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, lock| lock.strong_count() > 0);
        let key = (head.kind, head.id.clone());
        if let Some(lock) = running.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(Alone::default());
        running.insert(key, Arc::downgrade(&lock));
        lock
    }

    /// Bytes that an artifact occupies on this host; none if it is not here.
    async fn occupied(&self, kind: Kind, id: &str) -> Result<Option<u64>, AgentError> {
        match kind {
            Kind::Image if self.images.get(id).is_err() => Ok(None),
            Kind::Image => Ok(Some(self.of_image(&images::name_of(id)).await?)),
            Kind::Snapshot => {
                let Ok(named) = self.named.get(id) else { return Ok(None) };
                let volume = named::volume_of(named.build);
                let disk = self.volumes.usage(&volume).await? + self.of_image(&volume).await?;
                let memory =
                    if named.without_memory { 0 } else { self.snapshots.occupied(named.build).await? };
                Ok(Some(disk + memory))
            }
        }
    }

    /// Bytes that an image of the store occupies; 0 if there is none.
    async fn of_image(&self, name: &str) -> Result<u64, AgentError> {
        match self.volumes.open_image(name).await {
            Err(DiskError::UnknownImage(_)) => Ok(0),
            Err(error) => Err(error.into()),
            Ok(file) => {
                let measured = file.metadata().map_err(|error| of_files("measuring the image", &error))?;
                Ok(measured.blocks() * 512)
            }
        }
    }
}

/// Makes the directory of imports, without any. Blocks.
fn begin(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).recursive(true).create(dir)
}
