// SPDX-License-Identifier: Apache-2.0
//! Store whose volumes are device-mapper snapshots.
//!
//! `volumes/ID.json` records from which image a volume was cloned, `volumes/ID.cow` has the changes, and
//! `nodes/ID` is the block device while the volume is mapped. The record is created first and removed last,
//! so that the remains of an interrupted operation are found by their id.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt, chown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rustix::fs::{CWD, FileType, Mode, StatVfsMountFlags, makedev, mknodat};

use super::{
    locks::Locks,
    mapper::{Mapper, PATIENCE},
    numbers::Numbers,
    records::{Record, Records},
    table::{SnapshotStatus, cow_size},
};
use crate::{
    BlockDevice, DiskError, Health, Image, Pressure, Reclaimed, StoreConfig, Volumes, blocking, checked,
    cloning::copy_without_zeros,
    ext4, failed,
    free_space::FreeSpace,
    images::{Images, names, remove_file},
    partial_file::PartialFile,
};

const BACKEND: &str = "dm-snapshot";
/// Directory of the volumes' block device nodes.
pub(crate) const NODES: &str = "nodes";
/// Time limit for closing the device of an unclaimed volume; waiting longer would not help.
const SHORT: Duration = Duration::from_millis(500);
/// Id of the probe volume. Not a valid id, so no other volume has it.
const PROBE: &str = "@probe";
/// Magic number of device-mapper at the start of a copy-on-write file, `SnAp`.
const COW_MAGIC: u32 = 0x7041_6e53;

/// Store of images and device-mapper snapshots in one directory.
#[derive(Debug, Clone)]
pub struct DmStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    mapper: Mapper,
    images: Images,
    free_space: FreeSpace,
    records: Records,
    /// Locked while a record is written or an image is removed, so that no volume loses its image. Never locked while
    /// waiting for a device.
    names: Mutex<()>,
    /// Serializes the operations on each volume.
    volumes: Locks,
}

fn unsupported(reason: impl Into<String>) -> DiskError {
    DiskError::Unsupported { backend: BACKEND, reason: reason.into() }
}

/// Creates the node of a block device at `path`, accessible only by `owner`.
fn make_node(path: &Path, numbers: Numbers, owner: u32) -> Result<(), DiskError> {
    let fail = || failed(format!("make the node {}", path.display()));
    remove_file(path)?;
    let device = makedev(numbers.major, numbers.minor);
    mknodat(CWD, path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, device)
        .map_err(|e| fail()(e.into()))?;
    chown(path, Some(owner), Some(owner)).map_err(fail())
}

impl Inner {
    fn cow_path(&self, id: &str) -> Result<PathBuf, DiskError> {
        Ok(self.dir.join("volumes").join(format!("{}.cow", checked(id)?)))
    }

    fn node_path(&self, id: &str) -> PathBuf {
        self.dir.join(NODES).join(id)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a volume's copy-on-write file; fails if its header is missing or invalid.
    fn cow(&self, id: &str) -> Result<File, DiskError> {
        let opened = File::options().read(true).write(true).open(self.cow_path(id)?);
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DiskError::CowMissing(id.to_owned()),
            _ => failed("open the volume's changes")(error),
        })?;
        let mut header = [0; 8];
        file.read_exact_at(&mut header, 0).map_err(|_| DiskError::CowMissing(id.to_owned()))?;
        let [a, b, c, d, valid @ ..] = header;
        // Without the magic number the kernel would start an empty snapshot, and the guest would lose its
        // changes.
        if u32::from_le_bytes([a, b, c, d]) != COW_MAGIC || u32::from_le_bytes(valid) != 1 {
            return Err(DiskError::Invalidated(id.to_owned()));
        }
        Ok(file)
    }

    /// Fails if the mapped volume no longer works.
    fn check_mapped(&self, id: &str) -> Result<(), DiskError> {
        if self.mapper.status(id)? != Some(SnapshotStatus::Invalid) {
            let cow = self.cow(id)?;
            let same = self.mapper.uses(id, &cow)?;
            return if same { Ok(()) } else { Err(DiskError::CowMissing(id.to_owned())) };
        }
        Err(DiskError::Invalidated(id.to_owned()))
    }

    fn clone_now(&self, image: &str, id: &str, size_mb: u64, owner: u32) -> Result<BlockDevice, DiskError> {
        checked(id)?;
        let size = size_mb << 20;
        let source = self.images.open(image)?;
        if size < source.size {
            let image_mb = source.size.div_ceil(1 << 20);
            return Err(DiskError::TooSmall { asked_mb: size_mb, image_mb });
        }
        self.free_space.check()?;
        // May wait for a device that is busy.
        self.remove_now(id, PATIENCE)?;
        {
            let _lock = self.lock();
            // It may have gone meanwhile; from here on the record keeps it.
            self.images.open_hash(image, &source.hash)?;
            let record = Record { image: image.to_owned(), hash: source.hash.clone(), size };
            self.records.write(id, &record)?;
        }
        self.begin(id, &source.file, size, owner).inspect_err(|_| {
            if let Err(left) = self.remove_now(id, SHORT) {
                tracing::warn!(%left, volume = id, "a volume that failed is not all gone");
            }
        })
    }

    /// Creates the copy-on-write file and the devices.
    fn begin(&self, id: &str, image: &File, size: u64, owner: u32) -> Result<BlockDevice, DiskError> {
        let partial =
            PartialFile::new(&self.cow_path(id)?, 0o600).map_err(failed("make the file of changes"))?;
        partial.file.set_len(cow_size(size)).map_err(failed("make the file of changes"))?;
        let cow = partial.file.try_clone().map_err(failed("make the file of changes"))?;
        // Not synced: after a power loss before the volume is detached, its microVM is gone anyway.
        partial.rename().map_err(failed("make the file of changes"))?;
        let numbers = self.mapper.map(id, image, &cow, size)?;
        self.handed_over(id, numbers, size, owner)
    }

    fn handed_over(
        &self,
        id: &str,
        numbers: Numbers,
        size: u64,
        owner: u32,
    ) -> Result<BlockDevice, DiskError> {
        let path = self.node_path(id);
        make_node(&path, numbers, owner)?;
        Ok(BlockDevice { path, size, numbers: Some((numbers.major, numbers.minor)) })
    }

    fn attach_now(&self, id: &str, owner: u32) -> Result<BlockDevice, DiskError> {
        let record = self.records.read(id)?;
        if let Some(info) = self.mapper.mapped(id)? {
            self.check_mapped(id)?;
            return self.handed_over(id, info.numbers, record.size, owner);
        }
        let cow = self.cow(id)?;
        let image = self.images.open_hash(&record.image, &record.hash)?;
        let numbers = self.mapper.map(id, &image.file, &cow, record.size)?;
        self.handed_over(id, numbers, record.size, owner)
    }

    fn sync_now(&self, id: &str) -> Result<(), DiskError> {
        self.records.read(id)?;
        if self.mapper.mapped(id)?.is_some() {
            self.check_mapped(id)?;
            self.write_back(id)?;
        }
        self.sync_files(id)
    }

    /// Writes what the VMM wrote, which is in the cache of the device, to the file of changes.
    fn write_back(&self, id: &str) -> Result<(), DiskError> {
        let written = File::open(self.node_path(id)).and_then(|device| device.sync_all());
        written.map_err(failed(format!("write volume {id:?} back")))
    }

    fn detach_now(&self, id: &str) -> Result<(), DiskError> {
        checked(id)?;
        self.mapper.unmap(id, PATIENCE)?;
        remove_file(&self.node_path(id))?;
        // A detached volume may be needed after a power loss.
        self.sync_files(id)
    }

    fn sync_files(&self, id: &str) -> Result<(), DiskError> {
        let fail = || failed(format!("keep volume {id:?}"));
        for path in [self.cow_path(id)?, self.records.path(id)?, self.dir.join("volumes")] {
            match File::open(path) {
                Ok(file) => file.sync_all().map_err(fail())?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(fail()(error)),
            }
        }
        Ok(())
    }

    fn remove_now(&self, id: &str, patience: Duration) -> Result<(), DiskError> {
        // Remove the devices first: if one is busy, nothing is changed.
        self.mapper.unmap(id, patience)?;
        remove_file(&self.node_path(id))?;
        // Invalid ids have no files.
        let (Ok(cow), Ok(record)) = (self.cow_path(id), self.records.path(id)) else { return Ok(()) };
        remove_file(&cow)?;
        remove_file(&record)
    }

    fn flatten_now(&self, id: &str, name: &str) -> Result<Image, DiskError> {
        let record = self.records.read(id)?;
        let mapped = self.mapper.mapped(id)?.is_some();
        let (path, owner) = (self.node_path(id), 0);
        // Check the volume first: that it is lost is more important than a full store.
        if mapped {
            self.check_mapped(id)?;
        } else {
            self.cow(id)?;
        }
        self.free_space.check()?;
        let made = self.images.begin(name, id)?;
        if !mapped {
            self.attach_now(id, owner)?;
        }
        let copied = File::open(path)
            .and_then(|source| {
                copy_without_zeros(&source, &made.file, record.size, || self.free_space.check_piece())
            })
            .map_err(failed(format!("read volume {id:?}")));
        // If the snapshot failed meanwhile, the copy may have wrong content.
        let sound = self.check_mapped(id);
        if !mapped {
            self.detach_now(id)?;
        }
        sound.and(copied)?;
        ext4::shrink(&made, &format!("volume {id:?}"))?;
        self.images.adopt(name, made, "flattened")
    }

    /// Copies the record and the file of changes.
    fn copy_now(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let record = self.records.read(from)?;
        if self.mapper.mapped(from)?.is_some() {
            self.check_mapped(from)?;
            self.write_back(from)?;
        }
        let changes = self.cow(from)?;
        self.free_space.check()?;
        self.remove_now(to, PATIENCE)?;
        {
            let _lock = self.lock();
            // It may have gone with the last volume that was recorded.
            self.images.open_hash(&record.image, &record.hash)?;
            self.records.write(to, &record)?;
        }
        self.copy_changes(&changes, to).inspect_err(|_| {
            if let Err(left) = self.remove_now(to, SHORT) {
                tracing::warn!(%left, volume = to, "a volume that failed is not all gone");
            }
        })
    }

    fn copy_changes(&self, changes: &File, to: &str) -> Result<(), DiskError> {
        let fail = || failed("copy a volume's changes");
        let partial = PartialFile::new(&self.cow_path(to)?, 0o600).map_err(fail())?;
        self.images.fill(changes, &partial.file).map_err(fail())?;
        partial.rename().map_err(fail())
    }

    fn health_now(&self, id: &str) -> Result<Health, DiskError> {
        checked(id)?;
        let sound = if self.mapper.mapped(id)?.is_some() {
            self.check_mapped(id)
        } else {
            self.records.read(id).and_then(|_| self.cow(id)).map(drop)
        };
        match sound {
            Err(DiskError::CowMissing(_) | DiskError::UnknownVolume(_)) => return Ok(Health::CowMissing),
            Err(DiskError::Invalidated(_)) => return Ok(Health::Invalid),
            other => other?,
        }
        // The copy-on-write file itself has space for every block: only the file system below can be full.
        self.free_space.health()
    }

    fn remove_image_now(&self, name: &str) -> Result<(), DiskError> {
        checked(name)?;
        let _lock = self.lock();
        let volumes = self.records.users_of(name)?;
        if volumes > 0 {
            return Err(DiskError::ImageInUse { image: name.to_owned(), volumes });
        }
        self.images.remove(name)
    }

    fn reclaim_now(&self, keep: &[String]) -> Result<Reclaimed, DiskError> {
        let volumes = self.dir.join("volumes");
        let mut found = Reclaimed::default();
        for partial in names(&volumes, PartialFile::SUFFIX)? {
            remove_file(&volumes.join(format!("{partial}{}", PartialFile::SUFFIX)))?;
            found.images += 1;
        }
        let mut ids: BTreeSet<String> = self.mapper.ids()?;
        ids.extend(self.records.ids()?);
        ids.extend(names(&volumes, ".cow")?);
        ids.extend(names(&self.dir.join(NODES), "")?);
        for id in ids.into_iter().filter(|id| !keep.contains(id)) {
            match self.volumes.with(&id, || self.remove_now(&id, SHORT)) {
                Ok(()) => found.volumes.push(id),
                Err(DiskError::Busy { .. }) => found.busy.push(id),
                // One volume that cannot be removed keeps no other from its owner.
                Err(error) => {
                    tracing::error!(%error, volume = id, "cannot remove a volume without an owner");
                    found.failed.push(id);
                }
            }
        }
        let _lock = self.lock();
        let records = self.records.all()?;
        // One whose record cannot be read may have any of them.
        let used = |name: &str, hash: &str| {
            let reads = |record: &Record| record.image == name && record.hash == hash;
            records.iter().any(|(_, record)| record.as_ref().map_or(true, reads))
        };
        found.images += self.images.sweep(used)?;
        Ok(found)
    }

    fn any_mapped(&self) -> Result<bool, DiskError> {
        let ids = self.mapper.ids()?;
        let mut states = ids.iter().filter(|id| *id != PROBE).map(|id| self.mapper.mapped(id));
        states.try_fold(false, |any, state| Ok(any || state?.is_some()))
    }

    /// Creates a tiny volume, reads it and removes it.
    fn probe(&self) -> Result<(), DiskError> {
        let fail = || failed("try device-mapper");
        let file = |name: &str, size: u64| {
            let partial = PartialFile::new(&self.dir.join(name), 0o600)?;
            partial.file.set_len(size)?;
            Ok(partial)
        };
        let (image, cow) =
            (file("probe-image", 1 << 16).map_err(fail())?, file("probe-cow", 1 << 20).map_err(fail())?);
        image.file.write_all_at(b"probe", 0).map_err(fail())?;
        let numbers = self.mapper.map(PROBE, &image.file, &cow.file, 1 << 17)?;
        let node = self.node_path(PROBE);
        let read = make_node(&node, numbers, 0).and_then(|()| {
            let mut bytes = [0; 5];
            File::open(&node).and_then(|device| device.read_exact_at(&mut bytes, 0)).map_err(fail())?;
            if &bytes == b"probe" { Ok(()) } else { Err(unsupported("a snapshot does not show its image")) }
        });
        read.and(self.remove_now(PROBE, PATIENCE))
    }
}

impl DmStore {
    /// Opens the store after testing device-mapper. The directory `nodes` stays as a sign that it worked.
    pub(crate) fn new(config: &StoreConfig, reflink: bool) -> Result<Self, DiskError> {
        let nodes = config.dir.join(NODES);
        let known = nodes.try_exists().map_err(failed("look at the volume store"))?;
        Self::tried(config, reflink, &nodes).inspect_err(|_| {
            if !known {
                // Fails if it is not empty, because a device was created.
                let _ = fs::remove_dir(&nodes);
            }
        })
    }

    fn tried(config: &StoreConfig, reflink: bool, nodes: &Path) -> Result<Self, DiskError> {
        fs::create_dir_all(nodes).map_err(failed("make the volume store"))?;
        let stat = rustix::fs::statvfs(nodes).map_err(|e| failed("measure the volume store")(e.into()))?;
        if stat.f_flag.contains(StatVfsMountFlags::NODEV) {
            return Err(unsupported(format!(
                "{} is on a file system mounted with nodev: mount it with dev, or use another directory",
                config.dir.display()
            )));
        }
        let mapper = Mapper::new(&config.instance).map_err(|error| {
            unsupported(format!("device-mapper does not answer ({error}): load dm-mod, and run as root"))
        })?;
        let free_space = config.free_space(true);
        let inner = Inner {
            images: Images::new(free_space.clone(), reflink),
            dir: config.dir.clone(),
            mapper,
            free_space,
            records: Records::new(&config.dir.join("volumes")),
            names: Mutex::default(),
            volumes: Locks::default(),
        };
        // A mapped volume proves that it works, even if the store is too full for the test.
        if !inner.any_mapped()? {
            match inner.probe() {
                // Too full for the test. Clones fail too, but only an open store can be emptied.
                Err(DiskError::Full) => {}
                Err(error @ DiskError::Io { .. }) => {
                    return Err(unsupported(format!("{error}; load dm-snapshot, dm-zero and loop")));
                }
                other => other?,
            }
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs an operation on a volume after all others on it have ended.
    async fn change<T: Send + 'static>(
        &self,
        id: &str,
        work: impl FnOnce(&Inner, &str) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, DiskError> {
        let id = id.to_owned();
        self.work(move |inner| inner.volumes.with(&id, || work(inner, &id))).await
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, DiskError> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await
    }
}

#[async_trait]
impl Volumes for DmStore {
    fn backend(&self) -> &'static str {
        BACKEND
    }

    fn shares_images(&self) -> bool {
        true
    }

    async fn prepare(&self, name: &str, source: &Path) -> Result<(), DiskError> {
        let (name, source) = (name.to_owned(), source.to_owned());
        self.work(move |inner| inner.images.prepare(&name, &source)).await
    }

    async fn images(&self) -> Result<Vec<String>, DiskError> {
        self.work(|inner| inner.images.list()).await
    }

    async fn image(&self, name: &str) -> Result<Image, DiskError> {
        let name = name.to_owned();
        self.work(move |inner| inner.images.image(&name)).await
    }

    async fn open_image(&self, name: &str) -> Result<File, DiskError> {
        let name = name.to_owned();
        self.work(move |inner| Ok(inner.images.open(&name)?.file)).await
    }

    async fn take_image(&self, name: &str, file: &Path) -> Result<Image, DiskError> {
        let (name, file) = (name.to_owned(), file.to_owned());
        self.work(move |inner| inner.images.take(&name, &file)).await
    }

    async fn remove_image(&self, name: &str) -> Result<(), DiskError> {
        let name = name.to_owned();
        self.work(move |inner| inner.remove_image_now(&name)).await
    }

    async fn clone_image(
        &self,
        image: &str,
        id: &str,
        size_mb: u64,
        owner: u32,
    ) -> Result<BlockDevice, DiskError> {
        let image = image.to_owned();
        self.change(id, move |inner, id| inner.clone_now(&image, id, size_mb, owner)).await
    }

    async fn attach(&self, id: &str, owner: u32) -> Result<BlockDevice, DiskError> {
        self.change(id, move |inner, id| inner.attach_now(id, owner)).await
    }

    async fn sync(&self, id: &str) -> Result<(), DiskError> {
        self.change(id, Inner::sync_now).await
    }

    async fn detach(&self, id: &str) -> Result<(), DiskError> {
        self.change(id, Inner::detach_now).await
    }

    async fn flatten(&self, id: &str, name: &str) -> Result<Image, DiskError> {
        let name = name.to_owned();
        self.change(id, move |inner, id| inner.flatten_now(id, &name)).await
    }

    async fn copy(&self, from: &str, to: &str) -> Result<(), DiskError> {
        // Only the target is locked: many copy one volume at a time.
        let from = from.to_owned();
        self.change(checked(to)?, move |inner, to| inner.copy_now(&from, to)).await
    }

    async fn usage(&self, id: &str) -> Result<u64, DiskError> {
        let id = id.to_owned();
        self.work(move |inner| {
            inner.records.read(&id)?;
            match fs::metadata(inner.cow_path(&id)?) {
                Ok(meta) => Ok(meta.blocks() * 512),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DiskError::CowMissing(id)),
                Err(error) => Err(failed("measure the volume")(error)),
            }
        })
        .await
    }

    async fn health(&self, id: &str) -> Result<Health, DiskError> {
        let id = id.to_owned();
        self.work(move |inner| inner.health_now(&id)).await
    }

    async fn pressure(&self) -> Result<Pressure, DiskError> {
        self.work(|inner| inner.free_space.pressure()).await
    }

    async fn list(&self) -> Result<Vec<String>, DiskError> {
        self.work(|inner| inner.records.ids()).await
    }

    async fn remove(&self, id: &str) -> Result<(), DiskError> {
        self.change(checked(id)?, |inner, id| inner.remove_now(id, PATIENCE)).await
    }

    async fn reclaim(&self, keep: &[String]) -> Result<Reclaimed, DiskError> {
        let keep = keep.to_vec();
        self.work(move |inner| inner.reclaim_now(&keep)).await
    }
}

/// Removes all kernel resources of the instance, and the files of the volumes `ids` of any backend; the others stay with
/// their content. For use after the agent has stopped; the store need not work.
pub async fn cleanup(dir: &Path, instance: &str, ids: &[String]) -> Result<(), DiskError> {
    StoreConfig::check_instance(instance)?;
    let (dir, instance, ids) = (dir.to_owned(), instance.to_owned(), ids.to_vec());
    blocking(move || {
        // A machine without device-mapper has no devices.
        if let Some(mapper) = Mapper::present(&instance)? {
            for id in mapper.ids()? {
                mapper.unmap(&id, PATIENCE)?;
                remove_file(&dir.join("nodes").join(&id))?;
            }
        }
        for id in &ids {
            let id = checked(id)?;
            for end in ["img", "cow", "json"] {
                remove_file(&dir.join("volumes").join(format!("{id}.{end}")))?;
            }
        }
        Ok(())
    })
    .await
}
