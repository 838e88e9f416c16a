// SPDX-License-Identifier: Apache-2.0
//! Disks of Debian guests: a dm-snapshot of the root file system for each microVM, as sandboxes have them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use tempfile::TempDir;
use tokio::runtime::Builder;
use wrenn_disk::{Backend, StoreConfig, Volumes};

use crate::rig::share;

const INSTANCE: &str = "vd";
const SIZE_MB: u64 = 2048;

/// Also works inside a runtime.
fn block_on<T: Send>(work: impl Future<Output = T> + Send) -> T {
    let run = || Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// Creates a directory on a disk with search permission for all users.
pub(crate) fn lasting_dir() -> TempDir {
    let dir = TempDir::new_in("/var/lib/wrenn").unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

/// Store of the disks.
struct Store {
    volumes: Arc<dyn Volumes>,
    /// Disks by directory of the microVM.
    made: BTreeMap<PathBuf, PathBuf>,
    _dir: TempDir,
}

impl Store {
    fn open() -> Self {
        let dir = lasting_dir();
        let volumes = block_on(async {
            let volumes =
                wrenn_disk::open(StoreConfig::new(dir.path(), Backend::Dm, INSTANCE)).await.unwrap();
            volumes.prepare("minimal", &share("images/minimal/rootfs.ext4")).await.unwrap();
            volumes
        });
        Self { volumes, made: BTreeMap::new(), _dir: dir }
    }

    fn make(&mut self, number: usize, owner: u32) -> PathBuf {
        let id = format!("disk-{number}");
        let disk = block_on(self.volumes.clone_image("minimal", &id, SIZE_MB, owner)).unwrap();
        assert!(disk.numbers.is_some(), "a block device");
        disk.path
    }
}

/// Disks, created on first use and removed after the last microVM.
#[derive(Default)]
pub(crate) struct Disks(Mutex<Option<Store>>);

impl Disks {
    /// Returns the disk of the microVM with the directory `dir`.
    pub(crate) fn of(&self, dir: &Path, owner: u32) -> PathBuf {
        let mut store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let store = store.get_or_insert_with(Store::open);
        if let Some(disk) = store.made.get(dir) {
            return disk.clone();
        }
        let disk = store.make(store.made.len(), owner);
        store.made.insert(dir.to_owned(), disk.clone());
        disk
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for number in 0..self.made.len() {
            let removed = block_on(self.volumes.remove(&format!("disk-{number}")));
            if !thread::panicking() {
                removed.expect("no microVM holds its disk");
            }
        }
    }
}
