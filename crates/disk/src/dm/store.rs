//! The store whose volumes are snapshots of device-mapper.
//!
//! `volumes/ID.json` says what a volume was cloned from, `volumes/ID.cow` keeps what was changed since, and
//! `nodes/ID` is its block device while it is mapped. The record comes first and goes last, so that whatever
//! an interrupted step left is found by its id.

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
use serde::{Deserialize, Serialize};

use super::{
    ioctl::Numbers,
    mapper::{Mapper, PATIENCE},
    table::{SnapshotStatus, cow_size},
};
use crate::{
    BlockDevice, DiskError, Health, Image, Pressure, Reclaimed, StoreConfig, Volumes,
    beside::Beside,
    blocking, checked,
    cloning::copy_without_zeros,
    ext4, failed,
    images::{Images, names, remove_file},
    room::Room,
};

const BACKEND: &str = "dm-snapshot";
/// The directory of the volumes' block devices.
pub(crate) const NODES: &str = "nodes";
/// Of a volume that nobody claims; what holds it does not go away by waiting.
const SHORT: Duration = Duration::from_millis(500);
/// Not a valid id, so no volume's devices have this name.
const PROBE: &str = "@probe";
/// The kernel's mark in the first bytes of a file of changes, `SnAp`.
const COW_MAGIC: u32 = 0x7041_6e53;

/// What a volume was cloned from.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    image: String,
    hash: String,
    size: u64,
}

/// Images, and snapshots of them, in one directory.
#[derive(Debug, Clone)]
pub struct DmStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    mapper: Mapper,
    images: Images,
    room: Room,
    /// Held while a record is written or an image goes: no volume may lose its image in between.
    records: Mutex<()>,
}

fn unsupported(reason: impl Into<String>) -> DiskError {
    DiskError::Unsupported { backend: BACKEND, reason: reason.into() }
}

/// Puts a block device's node at `path`, for `owner` alone.
fn make_node(path: &Path, numbers: Numbers, owner: u32) -> Result<(), DiskError> {
    let fail = || failed(format!("make the node {}", path.display()));
    remove_file(path)?;
    let device = makedev(numbers.major, numbers.minor);
    mknodat(CWD, path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, device)
        .map_err(|e| fail()(e.into()))?;
    chown(path, Some(owner), Some(owner)).map_err(fail())
}

impl Inner {
    fn record_path(&self, id: &str) -> Result<PathBuf, DiskError> {
        Ok(self.dir.join("volumes").join(format!("{}.json", checked(id)?)))
    }

    fn cow_path(&self, id: &str) -> Result<PathBuf, DiskError> {
        Ok(self.dir.join("volumes").join(format!("{}.cow", checked(id)?)))
    }

    fn node_path(&self, id: &str) -> PathBuf {
        self.dir.join(NODES).join(id)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, id: &str) -> Result<Record, DiskError> {
        let path = self.record_path(id)?;
        let text = fs::read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DiskError::UnknownVolume(id.to_owned()),
            _ => failed("read the volume's record")(error),
        })?;
        serde_json::from_slice(&text).map_err(|error| failed("read the volume's record")(error.into()))
    }

    /// The file with a volume's changes; it must be one that the kernel has begun and not given up.
    fn cow(&self, id: &str) -> Result<File, DiskError> {
        let opened = File::options().read(true).write(true).open(self.cow_path(id)?);
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DiskError::CowMissing(id.to_owned()),
            _ => failed("open the volume's changes")(error),
        })?;
        let mut header = [0; 8];
        file.read_exact_at(&mut header, 0).map_err(|_| DiskError::CowMissing(id.to_owned()))?;
        let [a, b, c, d, valid @ ..] = header;
        // Without the mark the kernel would begin anew, and the guest would find its changes gone.
        if u32::from_le_bytes([a, b, c, d]) != COW_MAGIC || u32::from_le_bytes(valid) != 1 {
            return Err(DiskError::Invalidated(id.to_owned()));
        }
        Ok(file)
    }

    /// Fails where the mapped volume does not work any more.
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
        let fail = || failed(format!("make volume {id:?}"));
        let size = size_mb << 20;
        let source = {
            let _lock = self.lock();
            let source = self.images.open(image)?;
            if size < source.size {
                let image_mb = source.size.div_ceil(1 << 20);
                return Err(DiskError::TooSmall { asked_mb: size_mb, image_mb });
            }
            self.room.check()?;
            self.remove_now(id, PATIENCE)?;
            let record = Record { image: image.to_owned(), hash: source.hash.clone(), size };
            let text = serde_json::to_vec(&record).map_err(|error| fail()(error.into()))?;
            let beside = Beside::new(&self.record_path(id)?, 0o600).map_err(fail())?;
            io::Write::write_all(&mut &beside.file, &text).and_then(|()| beside.rename()).map_err(fail())?;
            source
        };
        self.begin(id, &source.file, size, owner).inspect_err(|_| {
            if let Err(left) = self.remove_now(id, SHORT) {
                tracing::warn!(%left, volume = id, "a volume that failed is not all gone");
            }
        })
    }

    /// Makes the file of changes and the devices.
    fn begin(&self, id: &str, image: &File, size: u64, owner: u32) -> Result<BlockDevice, DiskError> {
        let beside = Beside::new(&self.cow_path(id)?, 0o600).map_err(failed("make the file of changes"))?;
        beside.file.set_len(cow_size(size)).map_err(failed("make the file of changes"))?;
        let cow = beside.file.try_clone().map_err(failed("make the file of changes"))?;
        // Not synced: a volume whose host lost power before it was detached belongs to a microVM that is gone.
        beside.rename().map_err(failed("make the file of changes"))?;
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
        let record = self.record(id)?;
        if let Some(info) = self.mapper.mapped(id)? {
            self.check_mapped(id)?;
            return self.handed_over(id, info.numbers, record.size, owner);
        }
        let cow = self.cow(id)?;
        let image = self.images.open_hash(&record.image, &record.hash)?;
        let numbers = self.mapper.map(id, &image.file, &cow, record.size)?;
        self.handed_over(id, numbers, record.size, owner)
    }

    fn detach_now(&self, id: &str) -> Result<(), DiskError> {
        checked(id)?;
        let fail = || failed(format!("keep volume {id:?}"));
        self.mapper.unmap(id, PATIENCE)?;
        remove_file(&self.node_path(id))?;
        // From here on it may be needed after a loss of power.
        for path in [self.cow_path(id)?, self.record_path(id)?, self.dir.join("volumes")] {
            match File::open(path) {
                Ok(file) => file.sync_all().map_err(fail())?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(fail()(error)),
            }
        }
        Ok(())
    }

    fn remove_now(&self, id: &str, patience: Duration) -> Result<(), DiskError> {
        // The devices first: while one is busy, everything stays as it is.
        self.mapper.unmap(id, patience)?;
        remove_file(&self.node_path(id))?;
        // What belongs to no valid id has no files.
        let (Ok(cow), Ok(record)) = (self.cow_path(id), self.record_path(id)) else { return Ok(()) };
        remove_file(&cow)?;
        remove_file(&record)
    }

    fn flatten_now(&self, id: &str, name: &str) -> Result<Image, DiskError> {
        let record = self.record(id)?;
        let mapped = self.mapper.mapped(id)?.is_some();
        let (path, owner) = (self.node_path(id), 0);
        // That the volume is lost says more than that the store is full.
        if mapped {
            self.check_mapped(id)?;
        } else {
            self.cow(id)?;
        }
        self.room.check()?;
        let made = self.images.begin(name, id)?;
        if !mapped {
            self.attach_now(id, owner)?;
        }
        let copied = File::open(path)
            .and_then(|source| {
                copy_without_zeros(&source, &made.file, record.size, || self.room.check_piece())
            })
            .map_err(failed(format!("read volume {id:?}")));
        // A snapshot that broke on the way may have given anything.
        let sound = self.check_mapped(id);
        if !mapped {
            self.detach_now(id)?;
        }
        sound.and(copied)?;
        ext4::shrink(&made, &format!("volume {id:?}"))?;
        self.images.adopt(name, made, "flattened")
    }

    fn health_now(&self, id: &str) -> Result<Health, DiskError> {
        checked(id)?;
        let sound = if self.mapper.mapped(id)?.is_some() {
            self.check_mapped(id)
        } else {
            self.record(id).and_then(|_| self.cow(id)).map(drop)
        };
        match sound {
            Err(DiskError::CowMissing(_) | DiskError::UnknownVolume(_)) => return Ok(Health::CowMissing),
            Err(DiskError::Invalidated(_)) => return Ok(Health::Invalid),
            other => other?,
        }
        // The file of changes itself has room for every block: only the file system below can run out.
        self.room.health()
    }

    fn records(&self) -> Result<Vec<(String, Record)>, DiskError> {
        let ids = names(&self.dir.join("volumes"), ".json")?;
        Ok(ids.into_iter().filter_map(|id| Some((id.clone(), self.record(&id).ok()?))).collect())
    }

    fn remove_image_now(&self, name: &str) -> Result<(), DiskError> {
        checked(name)?;
        let _lock = self.lock();
        let volumes = self.records()?.iter().filter(|(_, record)| record.image == name).count();
        if volumes > 0 {
            return Err(DiskError::ImageInUse { image: name.to_owned(), volumes });
        }
        self.images.remove(name)
    }

    fn reclaim_now(&self, keep: &[String]) -> Result<Reclaimed, DiskError> {
        let volumes = self.dir.join("volumes");
        let mut found = Reclaimed::default();
        for partial in names(&volumes, Beside::SUFFIX)? {
            remove_file(&volumes.join(format!("{partial}{}", Beside::SUFFIX)))?;
            found.images += 1;
        }
        let mut ids: BTreeSet<String> = self.mapper.ids()?;
        ids.extend(names(&volumes, ".json")?);
        ids.extend(names(&volumes, ".cow")?);
        ids.extend(names(&self.dir.join(NODES), "")?);
        for id in ids.into_iter().filter(|id| !keep.contains(id)) {
            match self.remove_now(&id, SHORT) {
                Ok(()) => found.volumes.push(id),
                Err(DiskError::Busy { .. }) => found.busy.push(id),
                Err(error) => return Err(error),
            }
        }
        let _lock = self.lock();
        let records = self.records()?;
        let used = |name: &str, hash: &str| records.iter().any(|(_, r)| r.image == name && r.hash == hash);
        found.images += self.images.sweep(used)?;
        Ok(found)
    }

    fn any_mapped(&self) -> Result<bool, DiskError> {
        let ids = self.mapper.ids()?;
        let mut states = ids.iter().filter(|id| *id != PROBE).map(|id| self.mapper.mapped(id));
        states.try_fold(false, |any, state| Ok(any || state?.is_some()))
    }

    /// Makes a real tiny volume, reads it, and removes it.
    fn probe(&self) -> Result<(), DiskError> {
        let fail = || failed("try device-mapper");
        let file = |name: &str, size: u64| {
            let beside = Beside::new(&self.dir.join(name), 0o600)?;
            beside.file.set_len(size)?;
            Ok(beside)
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
    /// Opens the store, having tried whether device-mapper really works. `nodes` stays as the sign that it did.
    pub(crate) fn new(config: &StoreConfig, reflink: bool) -> Result<Self, DiskError> {
        let nodes = config.dir.join(NODES);
        let known = nodes.exists();
        Self::tried(config, reflink, &nodes).inspect_err(|_| {
            if !known {
                // Where it is not empty, something of it was made.
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
        let room = config.room(true);
        let inner = Inner {
            images: Images::new(room.clone(), reflink),
            dir: config.dir.clone(),
            mapper,
            room,
            records: Mutex::default(),
        };
        // One that is mapped proves it, also where the store is too full to try.
        if !inner.any_mapped()? {
            match inner.probe() {
                // Too full to try: nothing is cloned either, and only an open store can be emptied.
                Err(DiskError::Full) => {}
                Err(error @ DiskError::Io { .. }) => {
                    return Err(unsupported(format!("{error}; load dm-snapshot, dm-zero and loop")));
                }
                other => other?,
            }
        }
        Ok(Self { inner: Arc::new(inner) })
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
        let (image, id) = (image.to_owned(), id.to_owned());
        self.work(move |inner| inner.clone_now(&image, &id, size_mb, owner)).await
    }

    async fn attach(&self, id: &str, owner: u32) -> Result<BlockDevice, DiskError> {
        let id = id.to_owned();
        self.work(move |inner| inner.attach_now(&id, owner)).await
    }

    async fn detach(&self, id: &str) -> Result<(), DiskError> {
        let id = id.to_owned();
        self.work(move |inner| inner.detach_now(&id)).await
    }

    async fn flatten(&self, id: &str, name: &str) -> Result<Image, DiskError> {
        let (id, name) = (id.to_owned(), name.to_owned());
        self.work(move |inner| inner.flatten_now(&id, &name)).await
    }

    async fn usage(&self, id: &str) -> Result<u64, DiskError> {
        let id = id.to_owned();
        self.work(move |inner| {
            inner.record(&id)?;
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
        self.work(|inner| inner.room.pressure()).await
    }

    async fn list(&self) -> Result<Vec<String>, DiskError> {
        self.work(|inner| names(&inner.dir.join("volumes"), ".json")).await
    }

    async fn remove(&self, id: &str) -> Result<(), DiskError> {
        let id = checked(id)?.to_owned();
        self.work(move |inner| inner.remove_now(&id, PATIENCE)).await
    }

    async fn reclaim(&self, keep: &[String]) -> Result<Reclaimed, DiskError> {
        let keep = keep.to_vec();
        self.work(move |inner| inner.reclaim_now(&keep)).await
    }
}

/// Takes back everything that the instance has in the kernel, and the files of the volumes `ids`, whatever
/// the backend. For the end, when no agent runs: the store need not work any more.
pub async fn cleanup(dir: &Path, instance: &str, ids: &[String]) -> Result<(), DiskError> {
    StoreConfig::check_instance(instance)?;
    let (dir, instance, ids) = (dir.to_owned(), instance.to_owned(), ids.to_vec());
    blocking(move || {
        // Where device-mapper does not answer, there is nothing in it.
        if let Ok(mapper) = Mapper::new(&instance) {
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
