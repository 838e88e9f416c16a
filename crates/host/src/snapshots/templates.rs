// SPDX-License-Identifier: Apache-2.0
//! Memory snapshots of templates, so that creating a sandbox is a resume and not a boot.
//!
//! The first sandbox of a *shape* (template, virtual CPUs, memory, disk size) boots, and is captured when its
//! guest is ready, before it is told anything of its user. Later ones of the same shape go on from there. A
//! snapshot that does not load is discarded, and its sandbox boots. A named snapshot that has no memory, or whose memory does not
//! load because the host's VMM was upgraded, is a template of one shape. An image that was made on this host is a template whose shapes
//! go with it.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::spawn_blocking;
use wrenn_disk::Volumes;
use wrenn_memory::{BuildId, Generation, Generations, MemoryError, Part};
use wrenn_vmm::{MemorySource, MicroVm, Snapshot};

use super::{Base, Captured, Snapshots, is_of_template, origin::short_digest};
use crate::error::AgentError;

/// First part of the ids of the snapshots' volumes, which no id of a sandbox has.
const PREFIX: &str = "template.";

/// What is between image and digest in the name of a shape of an image that was made here.
const OF_IMAGE: char = ':';

/// Snapshots of templates on this host.
pub(crate) struct TemplateSnapshots {
    snapshots: Arc<Snapshots>,
    /// Maximum number of bytes on the disk; 0 if no snapshots are made.
    budget: u64,
    volumes: Arc<dyn Volumes>,
    /// Directory of captures, which outlive the sandbox that they were made of.
    captures: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ready: HashMap<String, Kept>,
    /// Shapes that are being captured, or read at the start.
    making: HashSet<String>,
    /// Number of uses so far, the clock of `Kept::used`.
    uses: u64,
}

struct Kept {
    snapshot: Arc<TemplateSnapshot>,
    bytes: u64,
    used: u64,
}

/// A snapshot from which new sandboxes go on.
#[derive(Debug)]
pub(crate) struct TemplateSnapshot {
    /// Name of its shape, unless a user named it. It is made anew when it does not load.
    pub(crate) shape: Option<String>,
    pub(crate) build: BuildId,
    /// Access token of its guest's envd, if it was told one.
    pub(crate) token: Option<String>,
    /// Whether it has memory to go on from. Sandboxes boot from the disk of a named one that has none.
    pub(crate) has_memory: bool,
    volume: String,
    state: PathBuf,
    memory: PathBuf,
}

/// Permission to capture a sandbox of a shape, which one at a time has.
pub(crate) struct Ticket {
    all: Arc<TemplateSnapshots>,
    shape: String,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.all.state().making.remove(&self.shape);
    }
}

/// Id of the volume of a snapshot: its own, so that no memory ever meets another disk.
fn volume_of(build: BuildId) -> String {
    format!("{PREFIX}{build}")
}

/// Image of a shape, if that was made here.
fn image_of(shape: &str) -> Option<&str> {
    shape.split_once(OF_IMAGE).map(|(image, _)| image)
}

impl TemplateSnapshot {
    /// Snapshot that a user named.
    pub(super) fn named(build: BuildId, token: String, volume: String, files: [PathBuf; 2]) -> Self {
        let [state, memory] = files;
        Self { shape: None, build, token: Some(token), has_memory: true, volume, state, memory }
    }

    /// Id of its disk's volume.
    pub(crate) fn volume(&self) -> &str {
        &self.volume
    }

    /// Whether a user named it. Its memory is checked at each use, before the guest goes on.
    pub(crate) fn is_named(&self) -> bool {
        self.shape.is_none()
    }

    /// What a VMM restores.
    pub(crate) fn source(&self) -> Snapshot {
        let memory = MemorySource::Shared(self.memory.clone());
        Snapshot { state: self.state.clone(), memory, run: !self.is_named() }
    }
}

/// Names the volumes of the templates' snapshots in `dir`, so that nobody takes them for those of sandboxes that
/// are gone.
pub(crate) fn volumes(dir: &Path) -> Result<Vec<String>, MemoryError> {
    Ok(Generations::new(dir)?.list()?.into_iter().map(volume_of).collect())
}

impl TemplateSnapshots {
    /// Opens the templates' snapshots among these. [`TemplateSnapshots::load`] makes them available. Removes what former
    /// agents left in `captures`.
    pub(crate) fn open(
        snapshots: Arc<Snapshots>,
        budget_mb: u64,
        volumes: Arc<dyn Volumes>,
        captures: PathBuf,
    ) -> Result<Arc<Self>, MemoryError> {
        match fs::remove_dir_all(&captures) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%error, "cannot remove what is left of templates' captures");
            }
            _ => {}
        }
        let all = snapshots.generations.list()?;
        let loaded = all.into_iter().filter_map(|build| snapshots.generations.load(build).ok());
        let labels = loaded.map(|generation| generation.manifest.label);
        // Until they are read, nobody captures their shapes.
        let making = labels.filter(|label| is_of_template(label)).collect();
        let state = Mutex::new(State { making, ..State::default() });
        Ok(Arc::new(Self { snapshots, budget: budget_mb << 20, volumes, captures, state }))
    }

    /// Reads the snapshots on the disk, every byte of them: makes those available that this host can load, the
    /// newest of each shape, and removes the others.
    pub(crate) async fn load(self: Arc<Self>) -> anyhow::Result<()> {
        let shapes = self.state().making.clone();
        let loaded = self.clone().load_all().await;
        self.state().making.retain(|shape| !shapes.contains(shape));
        loaded
    }

    async fn load_all(self: Arc<Self>) -> anyhow::Result<()> {
        let (present, images) = (self.volumes.list().await?, self.volumes.images().await?);
        let all = self.clone();
        let disks = present.clone();
        spawn_blocking(move || all.read(&disks, &images)).await??;
        let used: HashSet<String> =
            self.state().ready.values().map(|kept| kept.snapshot.volume().to_owned()).collect();
        for volume in present.iter().filter(|volume| volume.starts_with(PREFIX) && !used.contains(*volume)) {
            self.volumes.remove(volume).await?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the sound snapshots available whose disk and image are present; removes the others.
    fn read(&self, disks: &[String], images: &[String]) -> Result<(), MemoryError> {
        let generations = &self.snapshots.generations;
        // The newest first.
        for build in generations.list()?.into_iter().rev() {
            // What cannot be loaded was removed when the agent started.
            let Ok(generation) = generations.load(build) else { continue };
            if !is_of_template(&generation.manifest.label) {
                continue;
            }
            let of_image = image_of(&generation.manifest.label);
            let has_image = of_image.is_none_or(|of_image| images.iter().any(|image| image == of_image));
            let usable = self.budget > 0 && has_image && disks.contains(&volume_of(build));
            match self.check(&generation) {
                Ok(bytes) if usable && self.get(&generation.manifest.label).is_none() => {
                    self.add(&generation, bytes);
                    continue;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "a template's memory is made anew"),
            }
            self.snapshots.release([build])?;
        }
        Ok(())
    }

    /// Checks that a snapshot is sound and fits this host; returns the number of bytes that it occupies.
    fn check(&self, generation: &Generation) -> Result<u64, MemoryError> {
        let (build, generations) = (generation.manifest.build, &self.snapshots.generations);
        generation.manifest.origin.check(build, &self.snapshots.origin)?;
        generations.verify(generation)?;
        Ok(fs::metadata(generations.path(build, Part::Data)).map_or(0, |meta| meta.blocks() * 512))
    }

    fn add(&self, generation: &Generation, bytes: u64) {
        let build = generation.manifest.build;
        let path = |part| self.snapshots.generations.path(build, part);
        let shape = generation.manifest.label.clone();
        let snapshot = TemplateSnapshot {
            shape: Some(shape.clone()),
            build,
            token: None,
            has_memory: true,
            volume: volume_of(build),
            state: path(Part::State),
            memory: path(Part::Data),
        };
        let mut state = self.state();
        let used = state.uses;
        state.ready.insert(shape, Kept { snapshot: Arc::new(snapshot), bytes, used });
    }

    /// Name of the shape of sandboxes of a template with this size: virtual CPUs, memory and disk in MiB. None if
    /// sandboxes do not go on from snapshots here.
    pub(crate) async fn shape(&self, template: &str, size: (u32, u64, u64)) -> Option<String> {
        if self.budget == 0 {
            return None;
        }
        let (image, (vcpus, memory_mb, disk_mb)) = (self.volumes.image(template).await.ok()?, size);
        let text = format!("{} {vcpus} {memory_mb} {disk_mb}", image.hash);
        Some(short_digest(&text))
    }

    /// Name of the shape of sandboxes that boot from this image, which was made here. It has the image's name, too, because
    /// their memory goes with it.
    pub(crate) async fn shape_of_image(&self, image: &str, size: (u32, u64, u64)) -> Option<String> {
        let of_content = self.shape(image, size).await?;
        Some(format!("{image}{OF_IMAGE}{of_content}"))
    }

    /// Name of the shape of sandboxes that boot from the disk of a named snapshot whose memory does not load. None if sandboxes
    /// do not go on from snapshots here.
    pub(crate) fn shape_of_named(&self, build: BuildId) -> Option<String> {
        (self.budget > 0).then(|| short_digest(&format!("snapshot {build}")))
    }

    /// Removes the memory of sandboxes that booted from the disk of a named snapshot, if there is one.
    pub(crate) async fn discard_of_named(&self, build: BuildId) {
        let of_boot = self.shape_of_named(build).and_then(|shape| self.get(&shape));
        if let Some(snapshot) = of_boot {
            self.discard(&snapshot).await;
        }
    }

    /// Removes the memory of sandboxes that booted from this image, which was made here: their disks depend on it.
    pub(crate) async fn discard_of_image(&self, image: &str) {
        let of_image: Vec<_> = {
            let state = self.state();
            let of_image = state.ready.iter().filter(|(shape, _)| image_of(shape) == Some(image));
            of_image.map(|(_, kept)| kept.snapshot.clone()).collect()
        };
        for snapshot in of_image {
            self.discard(&snapshot).await;
        }
    }

    /// Finds the snapshot of a shape.
    pub(crate) fn get(&self, shape: &str) -> Option<Arc<TemplateSnapshot>> {
        let mut state = self.state();
        state.uses += 1;
        let now = state.uses;
        let kept = state.ready.get_mut(shape)?;
        kept.used = now;
        Some(kept.snapshot.clone())
    }

    /// Returns the ticket for capturing a sandbox of this shape, if there is no snapshot and no one captures one.
    pub(crate) fn ticket(self: &Arc<Self>, shape: &str) -> Option<Ticket> {
        let mut state = self.state();
        let free = !state.ready.contains_key(shape) && state.making.insert(shape.to_owned());
        free.then(|| Ticket { all: self.clone(), shape: shape.to_owned() })
    }

    /// Removes a template's snapshot, because it does not load or to make room. Sandboxes that went on from it do not need
    /// it any more.
    pub(crate) async fn discard(&self, snapshot: &TemplateSnapshot) {
        {
            let mut state = self.state();
            let Some(shape) = &snapshot.shape else { return };
            if state.ready.get(shape).is_none_or(|kept| kept.snapshot.build != snapshot.build) {
                return;
            }
            state.ready.remove(shape);
        }
        self.snapshots.remove(snapshot.build).await;
        self.remove_disk(snapshot.build).await;
    }

    /// Removes the snapshots that were not used for longest, until the others are within the budget.
    async fn make_room(&self) {
        loop {
            let oldest = {
                let state = self.state();
                let bytes: u64 = state.ready.values().map(|kept| kept.bytes).sum();
                let oldest = state.ready.values().min_by_key(|kept| kept.used);
                oldest.filter(|_| bytes > self.budget).map(|kept| kept.snapshot.clone())
            };
            let Some(oldest) = oldest else { return };
            tracing::info!(shape = ?oldest.shape, "removing a template's memory to make room");
            self.discard(&oldest).await;
        }
    }

    /// Keeps a captured guest, whose disk was copied, and makes it available.
    async fn keep(&self, captured: Captured) -> Result<(), AgentError> {
        let kept = self.snapshots.keep(captured, None).await?;
        self.add(&kept.generation, kept.bytes);
        self.make_room().await;
        Ok(())
    }

    async fn remove_disk(&self, build: BuildId) {
        if let Err(error) = self.volumes.remove(&volume_of(build)).await {
            tracing::warn!(%error, "cannot remove a template's disk; the next start removes it");
        }
    }
}

impl Ticket {
    /// Captures the sandbox `id`, which was booted with its changes tracked, and whose guest is ready. The guest stands
    /// still meanwhile. Returns what its memory is based on afterwards. Fails only if it does not go on.
    pub(crate) async fn capture(self, vm: &dyn MicroVm, id: &str) -> Result<Base, AgentError> {
        let captured = self.write(vm, id).await;
        vm.resume().await?;
        let after = self.all.snapshots.base_after(Base::Zero);
        let captured = match captured {
            Ok(captured) => captured,
            Err(error) => {
                tracing::warn!(id, %error, "cannot capture a template's memory; its sandboxes boot");
                return Ok(after);
            }
        };
        let build = captured.build;
        tokio::spawn(async move {
            if let Err(error) = self.all.keep(captured).await {
                tracing::warn!(%error, "cannot keep a template's memory; its sandboxes boot");
                self.all.remove_disk(build).await;
            }
        });
        // Should it not be kept, it is not found when it is needed.
        Ok(if after == Base::Unknown { Base::Generation(build) } else { after })
    }

    /// Pauses the guest, and writes memory, state and disk of this instant.
    async fn write(&self, vm: &dyn MicroVm, id: &str) -> Result<Captured, AgentError> {
        vm.pause().await?;
        // Since its boot, which is all that is not zero.
        let captured =
            self.all.snapshots.capture(vm, self.all.captures.clone(), Base::Zero, &self.shape).await?;
        self.all.volumes.copy(id, &volume_of(captured.build)).await?;
        Ok(captured)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _};

    use tempfile::TempDir;
    use wrenn_disk::{Backend, StoreConfig};
    use wrenn_memory::Origin;
    use wrenn_vmm::Diffs;

    use super::*;

    struct Place {
        dir: TempDir,
        volumes: Arc<dyn Volumes>,
    }

    impl Place {
        async fn new() -> anyhow::Result<Self> {
            let dir = tempfile::tempdir()?;
            let volumes =
                wrenn_disk::open(StoreConfig::new(dir.path().join("disks"), Backend::Copy, "t")).await?;
            let image = dir.path().join("image");
            File::create(&image)?.set_len(1 << 20)?;
            volumes.prepare("minimal", &image).await?;
            Ok(Self { dir, volumes })
        }

        fn captures(&self) -> PathBuf {
            self.dir.path().join("captures")
        }

        fn snapshots(&self, vmm: &str) -> anyhow::Result<Arc<Snapshots>> {
            let origin = Origin { vmm: vmm.to_owned(), ..Origin::default() };
            Ok(Snapshots::open(&self.dir.path().join("memory"), origin, Diffs::SinceStart, |_| false)?)
        }

        async fn open(&self, vmm: &str, room_mb: u64) -> anyhow::Result<Arc<TemplateSnapshots>> {
            let all = TemplateSnapshots::open(
                self.snapshots(vmm)?,
                room_mb,
                self.volumes.clone(),
                self.captures(),
            )?;
            all.clone().load().await?;
            Ok(all)
        }

        /// Keeps a snapshot of 1 MiB; returns the id of its volume.
        async fn keep(&self, all: &Arc<TemplateSnapshots>, shape: &str) -> anyhow::Result<String> {
            let captured = Captured::new(&self.captures(), Base::Zero, shape)?;
            let volume = volume_of(captured.build);
            self.volumes.clone_image("minimal", &volume, 1, 0).await?;
            let files = captured.files();
            File::create(files.memory)?.write_all_at(&vec![1; 1 << 20], 0)?;
            fs::write(files.state, "state")?;
            all.keep(captured).await?;
            Ok(volume)
        }
    }

    #[tokio::test]
    async fn one_at_a_time_captures_a_shape() -> anyhow::Result<()> {
        let place = Place::new().await?;
        let all = place.open("a", 64).await?;
        let shape = all.shape("minimal", (1, 256, 1024)).await.unwrap_or_default();
        assert_ne!(all.shape("minimal", (1, 512, 1024)).await.as_ref(), Some(&shape), "another size");
        assert_eq!(all.shape("absent", (1, 256, 1024)).await, None);
        let ticket = all.ticket(&shape).expect("the first one");
        assert!(all.ticket(&shape).is_none() && all.ticket("other").is_some());
        drop(ticket);
        drop(all.ticket(&shape).expect("the first one failed"));
        place.keep(&all, &shape).await?;
        assert!(all.ticket(&shape).is_none(), "there is one");
        assert!(all.get(&shape).is_some());
        Ok(())
    }

    /// Two images with the same content have disks of their own, which go with them.
    #[tokio::test]
    async fn shapes_of_an_image_go_with_it() -> anyhow::Result<()> {
        let place = Place::new().await?;
        let all = place.open("a", 64).await?;
        let (size, larger) = ((1, 256, 1024), (2, 256, 1024));
        for image in ["image.1", "image.10"] {
            place.volumes.prepare(image, &place.dir.path().join("image")).await?;
        }
        let mut kept = Vec::new();
        for (image, size) in [
            ("minimal", size),
            ("image.1", size),
            ("image.1", larger),
            ("image.10", size),
            ("image.10", larger),
        ] {
            let shape = match image {
                "minimal" => all.shape(image, size).await,
                made_here => all.shape_of_image(made_here, size).await,
            };
            let shape = shape.unwrap_or_default();
            place.keep(&all, &shape).await?;
            kept.push(shape);
        }
        let present = |all: &Arc<TemplateSnapshots>| -> Vec<bool> {
            kept.iter().map(|shape| all.get(shape).is_some()).collect()
        };
        assert_eq!(present(&all), [true; 5], "all have names of their own");
        all.discard_of_image("image.1").await;
        assert_eq!(present(&all), [true, false, false, true, true]);
        assert_eq!((place.volumes.list().await?.len(), all.snapshots.generations.list()?.len()), (3, 3));
        all.discard_of_image("image.absent").await;
        // An agent that died before it removed them.
        place.volumes.remove_image("image.10").await?;
        let next = place.open("a", 64).await?;
        assert_eq!(present(&next), [true, false, false, false, false]);
        assert_eq!(place.volumes.list().await?.len(), 1);
        Ok(())
    }

    #[tokio::test]
    async fn what_was_not_used_for_longest_makes_room() -> anyhow::Result<()> {
        let place = Place::new().await?;
        let all = place.open("a", 2).await?;
        let first = place.keep(&all, "1").await?;
        place.keep(&all, "2").await?;
        assert!(all.get("1").is_some());
        let third = place.keep(&all, "3").await?;
        assert_eq!(["1", "2", "3"].map(|shape| all.get(shape).is_some()), [true, false, true]);
        assert_eq!(place.volumes.list().await?, [first, third]);
        assert_eq!(all.snapshots.generations.list()?.len(), 2);
        Ok(())
    }

    #[tokio::test]
    async fn the_next_agent_has_what_it_can_load_and_nothing_else() -> anyhow::Result<()> {
        let place = Place::new().await?;
        let all = place.open("a", 64).await?;
        // An older one of the same shape, as if its removal had failed.
        place.keep(&all, "1").await?;
        let first = place.keep(&all, "1").await?;
        let second = place.keep(&all, "2").await?;
        place.volumes.remove(&second).await?;
        place.volumes.clone_image("minimal", "template.stray", 1, 0).await?;
        place.volumes.clone_image("minimal", "sandbox", 1, 0).await?;
        let dir = place.dir.path().join("memory");
        assert_eq!(volumes(&dir)?.len(), 3);
        let next =
            TemplateSnapshots::open(place.snapshots("a")?, 64, place.volumes.clone(), place.captures())?;
        assert!(next.get("1").is_none() && next.ticket("1").is_none(), "it is not read yet");
        next.clone().load().await?;
        assert_eq!(next.get("1").map(|snapshot| snapshot.volume().to_owned()), Some(first.clone()));
        assert!(next.get("2").is_none() && next.ticket("2").is_some(), "its disk is gone");
        assert_eq!(place.volumes.list().await?, ["sandbox".to_owned(), first]);
        let upgraded = place.open("b", 64).await?;
        assert!(upgraded.get("1").is_none(), "made with another VMM");
        assert_eq!(
            (place.volumes.list().await?, upgraded.snapshots.generations.list()?.len()),
            (vec!["sandbox".to_owned()], 0)
        );
        Ok(())
    }
}
