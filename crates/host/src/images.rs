// SPDX-License-Identifier: Apache-2.0
//! Images that were made on this host of the disks of snapshots, or imported from registries, from which sandboxes are booted as from a template.
//!
//! One exists when its record does, which is written when its content would survive a power failure.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;
use tracing::Instrument as _;
use wrenn_api::ErrorCode;
use wrenn_disk::{DiskError, Volumes};

use crate::{
    error::{AgentError, of_files},
    records,
    snapshots::{
        named::{self, NamedSnapshot, NamedSnapshots},
        templates::TemplateSnapshots,
    },
};

/// First part of the images' names in the store.
const PREFIX: &str = "image.";
/// Room in MiB that the smallest disk has for what a guest writes when it boots.
const ROOM_MB: u64 = 64;
/// What is not done when this fails.
const MAKING: &str = "making the image";
const REMOVING: &str = "removing the image";

/// Record of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    /// Id that the control plane gave it.
    pub(crate) id: String,
    /// Default user of commands, if a create names none.
    pub(crate) default_user: String,
    /// Smallest disk of a sandbox from it, in MiB.
    pub(crate) size_mb: u64,
    /// SHA-256 of its content.
    pub(crate) sha256: String,
    /// Where it comes from, if it was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) imported: Option<Imported>,
}

/// Where an image comes from that was imported: a part of its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Imported {
    /// Digest of the manifest.
    pub(crate) digest: String,
    /// Number of entries and attributes that were left out, and the first of them.
    pub(crate) skipped: u64,
    pub(crate) first_skipped: Vec<String>,
}

/// Images on this host.
pub(crate) struct Images {
    dir: PathBuf,
    volumes: Arc<dyn Volumes>,
    /// Snapshots of sandboxes that were booted from images, whose disks depend on them.
    shapes: Arc<TemplateSnapshots>,
    known: Mutex<HashMap<String, Arc<Image>>>,
    /// Held while an image is made or removed: two of one id have the same files, and each takes a processor and the disk.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Name of an image in the store.
pub(crate) fn name_of(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// Returns whether this name in the store is one of an image that was made here, and not of a template.
fn is_name(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Error for an image that is not on this host.
pub(crate) fn missing() -> AgentError {
    let message = "the template's image is not on its host any more: build the template again";
    AgentError::new(ErrorCode::NotFound, message).of_template()
}

/// Removes the images that have none of these records, which are those that were not completed. A failure is only logged.
pub(crate) async fn remove_incomplete(records: &[Image], volumes: &dyn Volumes) {
    let names = match volumes.images().await {
        Ok(names) => names,
        Err(error) => {
            tracing::error!(%error, "the images cannot be listed; the next start removes incomplete ones");
            return;
        }
    };
    let known = |name: &str| records.iter().any(|record| name_of(&record.id) == name);
    for name in names.iter().filter(|name| is_name(name) && !known(name.as_str())) {
        match volumes.remove_image(name).await {
            Ok(()) => tracing::info!(image = name, "removed an image that was not completed"),
            Err(error) => {
                tracing::error!(%error, image = name, "cannot remove an incomplete image; the next start will");
            }
        }
    }
}

impl Images {
    /// Images with these records in this directory.
    pub(crate) fn new(
        dir: &Path,
        records: Vec<Image>,
        volumes: Arc<dyn Volumes>,
        shapes: Arc<TemplateSnapshots>,
    ) -> Arc<Self> {
        let known = records.into_iter().map(|record| (record.id.clone(), Arc::new(record))).collect();
        let (known, turn) = (Mutex::new(known), Arc::default());
        Arc::new(Self { dir: dir.to_owned(), volumes, shapes, known, turn })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Image>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no image is made or removed. None is, as long as this is held.
    pub(crate) async fn turn(&self) -> OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    /// Finds an image.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Image>, AgentError> {
        self.known().get(id).cloned().ok_or_else(missing)
    }

    /// Returns the ids of those that were imported.
    pub(crate) fn imported(&self) -> Vec<String> {
        self.known().values().filter(|image| image.imported.is_some()).map(|image| image.id.clone()).collect()
    }

    /// Makes an image of the disk of a snapshot, which is not needed afterwards. Does nothing if there is one with this id.
    pub(crate) async fn make(
        self: &Arc<Self>,
        id: &str,
        snapshot: &str,
        snapshots: &NamedSnapshots,
    ) -> Result<Arc<Image>, AgentError> {
        let turn = self.turn().await;
        if let Ok(present) = self.get(id) {
            return Ok(present);
        }
        let (all, id, snapshot) = (self.clone(), id.to_owned(), snapshots.get(snapshot)?);
        let making = async move {
            let made = all.make_now(id, &snapshot).await;
            drop(turn);
            made
        };
        // It goes on without its caller, who may ask again: the programs that work on the files cannot be stopped.
        let made = tokio::spawn(making.in_current_span()).await;
        made.unwrap_or_else(|error| Err(AgentError::fault(MAKING, &error)))
    }

    async fn make_now(&self, id: String, snapshot: &NamedSnapshot) -> Result<Arc<Image>, AgentError> {
        // No guest writes to the disk of a snapshot.
        let made = self.volumes.flatten(&named::volume_of(snapshot.build), &name_of(&id)).await;
        let made = made.map_err(not_made)?;
        let image = Image {
            default_user: snapshot.default_user.clone(),
            size_mb: smallest_disk_mb(made.size, snapshot.disk_size_mb),
            sha256: made.hash,
            id: id.clone(),
            imported: None,
        };
        self.keep(image).await
    }

    /// Keeps an image that was brought from another host, of a file in the store's file system, which is moved. Does nothing if
    /// there is one with its id.
    pub(crate) async fn take(&self, image: Image, content: &Path) -> Result<Arc<Image>, AgentError> {
        let _turn = self.turn.lock().await;
        if let Ok(present) = self.get(&image.id) {
            return Ok(present);
        }
        let name = name_of(&image.id);
        let taken = self.volumes.take_image(&name, content).await.map_err(|error| match error {
            DiskError::Full => error.into(),
            other => AgentError::fault(MAKING, &other),
        })?;
        if taken.hash == image.sha256 {
            return self.keep(image).await;
        }
        if let Err(left) = self.volumes.remove_image(&name).await {
            tracing::error!(%left, id = image.id, "cannot remove an image that is damaged; the next start will");
        }
        let message = "the image is not the one that its record describes: send it again from another copy";
        Err(AgentError::new(ErrorCode::ImageDamaged, message))
    }

    /// Keeps an image whose content is in the store under its name.
    pub(crate) async fn keep(&self, image: Image) -> Result<Arc<Image>, AgentError> {
        let written = records::write(&self.dir, &image.id, &image).await;
        if let Err(error) = written {
            // Without a record nobody could remove it before the next start.
            if let Err(left) = self.volumes.remove_image(&name_of(&image.id)).await {
                tracing::error!(%left, id = image.id, "cannot remove an image without a record; the next start will");
            }
            return Err(of_files(MAKING, &error));
        }
        let image = Arc::new(image);
        self.known().insert(image.id.clone(), image.clone());
        Ok(image)
    }

    /// Removes an image. Does nothing if there is none. Fails while disks depend on it, which are as they were.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), AgentError> {
        let _turn = self.turn.lock().await;
        if self.get(id).is_err() {
            return Ok(());
        }
        let name = name_of(id);
        // They are only kept for further sandboxes from it.
        self.shapes.discard_of_image(&name).await;
        self.volumes.remove_image(&name).await.map_err(|error| match error {
            DiskError::ImageInUse { .. } => AgentError::from(error),
            other => AgentError::fault(REMOVING, &other),
        })?;
        // At last, so that a removal that was interrupted can be repeated.
        let removed = records::remove(&self.dir, id).await;
        removed.map_err(|error| of_files(REMOVING, &error))?;
        self.known().remove(id);
        Ok(())
    }
}

/// Smallest disk for an image with this many bytes of content, which was made of a disk of this size.
fn smallest_disk_mb(bytes: u64, made_of_mb: u64) -> u64 {
    let content_mb = bytes.div_ceil(1 << 20);
    // The disk that it was made of is always enough.
    (content_mb + ROOM_MB).min(made_of_mb).max(content_mb)
}

/// Error for a disk of which no image could be made.
fn not_made(error: DiskError) -> AgentError {
    match error {
        DiskError::UnknownVolume(_) => named::missing(),
        DiskError::BadFileSystem { reason, .. } => {
            let message = format!(
                "the disk of the snapshot has no sound ext4 file system, so no image can be made of it: {reason}"
            );
            AgentError::new(ErrorCode::SnapshotDamaged, message)
        }
        DiskError::Full | DiskError::Invalidated(_) | DiskError::CowMissing(_) => error.into(),
        other => AgentError::fault(MAKING, &other),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs::File, process::Command};

    use tempfile::TempDir;
    use wrenn_disk::{Backend, StoreConfig};
    use wrenn_memory::{BuildId, Origin};
    use wrenn_vmm::Diffs;

    use super::*;
    use crate::snapshots::Snapshots;

    const MIB: u64 = 1 << 20;

    struct Place {
        dir: TempDir,
        volumes: Arc<dyn Volumes>,
        snapshots: Arc<Snapshots>,
    }

    impl Place {
        async fn new() -> anyhow::Result<Self> {
            let dir = tempfile::tempdir()?;
            let volumes =
                wrenn_disk::open(StoreConfig::new(dir.path().join("disks"), Backend::Copy, "t")).await?;
            let memory = dir.path().join("memory");
            let snapshots = Snapshots::open(&memory, Origin::default(), Diffs::SinceStart, |_| false)?;
            Ok(Self { dir, volumes, snapshots })
        }

        fn records(&self) -> PathBuf {
            self.dir.path().join("images")
        }

        /// Images as an agent finds them when it starts.
        async fn start(&self) -> anyhow::Result<Arc<Images>> {
            let records: Vec<Image> = records::read(&self.records())?;
            remove_incomplete(&records, &*self.volumes).await;
            let captures = self.dir.path().join("captures");
            let shapes = TemplateSnapshots::open(self.snapshots.clone(), 64, self.volumes.clone(), captures)?;
            Ok(Images::new(&self.records(), records, self.volumes.clone(), shapes))
        }

        /// Puts an image into the store.
        async fn prepare(&self, name: &str) -> anyhow::Result<()> {
            let source = self.dir.path().join("source");
            File::create(&source)?.set_len(MIB)?;
            Ok(self.volumes.prepare(name, &source).await?)
        }

        /// Snapshots of which there is one, `s`, whose disk is a copy of this file.
        async fn with_snapshot(&self, disk: &Path) -> anyhow::Result<NamedSnapshots> {
            let build = BuildId::new();
            self.volumes.prepare("minimal", disk).await?;
            self.volumes.clone_image("minimal", &named::volume_of(build), 16, 0).await?;
            let record = NamedSnapshot {
                without_memory: false,
                id: "s".to_owned(),
                build,
                template: "minimal".to_owned(),
                vcpus: 1,
                memory_mb: 256,
                disk_size_mb: 16,
                default_user: "app".to_owned(),
                default_workdir: String::new(),
                access_token: "t".to_owned(),
                envs: BTreeMap::new(),
            };
            let dir = self.dir.path().join("named");
            Ok(NamedSnapshots::new(&dir, vec![record], self.snapshots.clone(), self.volumes.clone()))
        }
    }

    fn image(id: &str) -> Image {
        Image {
            id: id.to_owned(),
            default_user: "app".to_owned(),
            size_mb: 5,
            sha256: "aa".to_owned(),
            imported: None,
        }
    }

    #[tokio::test]
    async fn an_image_is_there_with_its_record_and_one_without_goes() -> anyhow::Result<()> {
        let place = Place::new().await?;
        for name in ["minimal", "image.whole", "image.half"] {
            place.prepare(name).await?;
        }
        assert!(records::read::<Image>(&place.records())?.is_empty());
        records::write(&place.records(), "whole", &image("whole")).await?;
        let images = place.start().await?;
        assert_eq!(place.volumes.images().await?, ["image.whole", "minimal"]);
        assert_eq!(*images.get("whole")?, image("whole"));
        assert_eq!(images.get("half").map_err(|error| error.code), Err(ErrorCode::NotFound));
        Ok(())
    }

    #[tokio::test]
    async fn a_removal_can_be_repeated_whatever_was_done_before() -> anyhow::Result<()> {
        let place = Place::new().await?;
        place.prepare("image.a").await?;
        for id in ["a", "b"] {
            assert!(records::read::<Image>(&place.records())?.is_empty());
            records::write(&place.records(), id, &image(id)).await?;
            // The store has no image b: an agent died while it removed it.
            let images = place.start().await?;
            images.remove("unknown").await?;
            for _ in 0..2 {
                images.remove(id).await?;
                assert!(images.get(id).is_err());
            }
            assert!(place.start().await?.get(id).is_err());
        }
        assert!(place.volumes.images().await?.is_empty());
        Ok(())
    }

    #[tokio::test]
    async fn requests_for_one_image_at_once_make_one() -> anyhow::Result<()> {
        // Only root can confine the programs that read file systems.
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let place = Place::new().await?;
        let disk = place.dir.path().join("root.ext4");
        File::create(&disk)?.set_len(8 * MIB)?;
        let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk).status()?;
        assert!(made.success());
        let snapshots = place.with_snapshot(&disk).await?;
        let images = place.start().await?;
        let (one, other) = tokio::join!(images.make("i", "s", &snapshots), images.make("i", "s", &snapshots));
        let (one, other) = (one?, other?);
        assert!(Arc::ptr_eq(&one, &other));
        assert_eq!(place.volumes.image("image.i").await?.hash, one.sha256);
        assert_eq!((one.default_user.as_str(), one.size_mb), ("app", 16), "its disk has no more");
        // Without its snapshot it is still there, also for the next agent.
        snapshots.remove("s").await?;
        assert_eq!(*images.make("i", "s", &snapshots).await?, *one);
        let next = place.start().await?;
        assert_eq!(*next.make("i", "s", &snapshots).await?, *one);
        let refused = next.make("j", "s", &snapshots).await;
        assert_eq!(refused.map_err(|error| error.code), Err(ErrorCode::SnapshotMissing));
        next.remove("i").await?;
        assert_eq!(place.volumes.images().await?, ["minimal"]);
        Ok(())
    }

    #[tokio::test]
    async fn a_disk_without_a_file_system_becomes_no_image() -> anyhow::Result<()> {
        let place = Place::new().await?;
        let disk = place.dir.path().join("zeros");
        File::create(&disk)?.set_len(MIB)?;
        let snapshots = place.with_snapshot(&disk).await?;
        let images = place.start().await?;
        let refused = images.make("i", "s", &snapshots).await;
        assert_eq!(refused.map_err(|error| error.code), Err(ErrorCode::SnapshotDamaged));
        assert_eq!(place.volumes.images().await?, ["minimal"]);
        assert!(records::read::<Image>(&place.records())?.is_empty());
        Ok(())
    }

    #[test]
    fn the_smallest_disk_has_room_unless_its_own_had_none() {
        for (bytes, made_of_mb, expected) in
            [(MIB, 1024, 65), (MIB + 1, 1024, 66), (1000 * MIB, 1024, 1024), (1024 * MIB, 1024, 1024)]
        {
            assert_eq!(smallest_disk_mb(bytes, made_of_mb), expected, "{bytes}");
        }
    }

    #[test]
    fn a_disk_that_cannot_become_an_image_says_why() {
        let bad = DiskError::BadFileSystem { what: "volume \"x\"".into(), reason: "it is odd".into() };
        let error = not_made(bad);
        assert!(error.code == ErrorCode::SnapshotDamaged && error.message.contains("it is odd"), "{error}");
        assert_eq!(not_made(DiskError::Full).code, ErrorCode::InsufficientStorage);
        let in_use = DiskError::ImageInUse { image: "image.x".into(), volumes: 3 };
        let error = AgentError::from(in_use);
        assert!(error.code == ErrorCode::Conflict && error.message.contains('3'), "{error}");
    }
}
