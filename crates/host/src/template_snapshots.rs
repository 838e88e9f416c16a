// SPDX-License-Identifier: Apache-2.0
//! Memory snapshots of templates, so that creating a sandbox is a resume and not a boot.
//!
//! The first sandbox of a *shape* (template, virtual CPUs, memory, disk size) boots, and is captured when its
//! guest is ready, before it is told anything of its user. Later ones of the same shape go on from there. A
//! snapshot that does not load is discarded, and its sandbox boots.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{getegid, geteuid};
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;
use wrenn_disk::Volumes;
use wrenn_memory::{
    BLOCK_SIZE, BuildId, Generation, Generations, Header, Layout, Manifest, MemoryError, Origin, Part,
    Partial, mapping_of_flat,
};
use wrenn_vmm::{MemorySource, MicroVm, Snapshot, SnapshotFiles, SnapshotKind};

use crate::error::AgentError;

/// First part of the ids of the snapshots' volumes, which no id of a sandbox has.
const PREFIX: &str = "template.";

/// Snapshots of templates on this host.
pub(crate) struct TemplateSnapshots {
    generations: Generations,
    origin: Origin,
    /// Maximum number of bytes on the disk; 0 if no snapshots are made.
    budget: u64,
    volumes: Arc<dyn Volumes>,
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

/// A snapshot from which sandboxes of its shape go on.
#[derive(Debug)]
pub(crate) struct TemplateSnapshot {
    /// Name of its shape.
    pub(crate) shape: String,
    build: BuildId,
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

impl TemplateSnapshot {
    /// Id of its disk's volume.
    pub(crate) fn volume(&self) -> String {
        volume_of(self.build)
    }

    /// What a VMM restores.
    pub(crate) fn source(&self) -> Snapshot {
        Snapshot { state: self.state.clone(), memory: MemorySource::Shared(self.memory.clone()), run: true }
    }
}

impl From<MemoryError> for AgentError {
    fn from(error: MemoryError) -> Self {
        Self::fault("keeping a template's memory", &error)
    }
}

/// Names the volumes of the snapshots in `dir`, so that nobody takes them for those of sandboxes that are gone.
pub(crate) fn volumes(dir: &Path) -> Result<Vec<String>, MemoryError> {
    Ok(Generations::new(dir)?.list()?.into_iter().map(volume_of).collect())
}

impl TemplateSnapshots {
    /// Opens the snapshots in `dir`. [`TemplateSnapshots::load`] makes them available.
    pub(crate) fn open(
        dir: &Path,
        origin: Origin,
        budget_mb: u64,
        volumes: Arc<dyn Volumes>,
    ) -> Result<Arc<Self>, MemoryError> {
        let generations = Generations::new(dir)?;
        generations.clean()?;
        let loaded = generations.list()?.into_iter().filter_map(|build| generations.load(build).ok());
        // Until they are read, nobody captures their shapes.
        let making = loaded.map(|generation| generation.manifest.label).collect();
        let state = Mutex::new(State { making, ..State::default() });
        Ok(Arc::new(Self { generations, origin, budget: budget_mb << 20, volumes, state }))
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
        let present = self.volumes.list().await?;
        let all = self.clone();
        let disks = present.clone();
        spawn_blocking(move || all.read(&disks)).await??;
        let used: HashSet<String> = self.state().ready.values().map(|kept| kept.snapshot.volume()).collect();
        for volume in present.iter().filter(|volume| volume.starts_with(PREFIX) && !used.contains(*volume)) {
            self.volumes.remove(volume).await?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the sound snapshots available whose disk is present; removes the others.
    fn read(&self, disks: &[String]) -> Result<(), MemoryError> {
        // The newest first.
        for build in self.generations.list()?.into_iter().rev() {
            let usable = self.budget > 0 && disks.contains(&volume_of(build));
            match self.check(build) {
                Ok((generation, bytes)) if usable && self.get(&generation.manifest.label).is_none() => {
                    self.add(&generation, bytes);
                    continue;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "a template's memory is made anew"),
            }
            self.generations.remove(build)?;
        }
        Ok(())
    }

    fn check(&self, build: BuildId) -> Result<(Generation, u64), MemoryError> {
        let generation = self.generations.load(build)?;
        generation.manifest.origin.check(build, &self.origin)?;
        self.generations.verify(&generation)?;
        let bytes =
            fs::metadata(self.generations.path(build, Part::Data)).map_or(0, |meta| meta.blocks() * 512);
        Ok((generation, bytes))
    }

    fn add(&self, generation: &Generation, bytes: u64) {
        let build = generation.manifest.build;
        let path = |part| self.generations.path(build, part);
        let shape = generation.manifest.label.clone();
        let snapshot = TemplateSnapshot {
            shape: shape.clone(),
            build,
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
        Some(digest(text.as_bytes())[..SHORT].to_owned())
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

    /// Removes a snapshot, because it does not load or to make room. Sandboxes that went on from it do not need
    /// it any more.
    pub(crate) async fn discard(&self, snapshot: &TemplateSnapshot) {
        {
            let mut state = self.state();
            if state.ready.get(&snapshot.shape).is_none_or(|kept| kept.snapshot.build != snapshot.build) {
                return;
            }
            state.ready.remove(&snapshot.shape);
        }
        let (generations, build) = (self.generations.clone(), snapshot.build);
        let removed = spawn_blocking(move || generations.remove(build)).await;
        if let Err(error) = removed.map_err(io::Error::other).and_then(|done| done.map_err(io::Error::other))
        {
            tracing::warn!(%error, "cannot remove a template's memory; the next start removes it");
        }
        if let Err(error) = self.volumes.remove(&snapshot.volume()).await {
            tracing::warn!(%error, "cannot remove a template's disk; the next start removes it");
        }
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
            tracing::info!(shape = oldest.shape, "removing a template's memory to make room");
            self.discard(&oldest).await;
        }
    }

    /// Writes the rest of a captured snapshot, and makes it available.
    async fn keep(self: Arc<Self>, partial: Partial, shape: String) -> Result<(), AgentError> {
        let all = self.clone();
        let kept = spawn_blocking(move || {
            let (build, data) = (partial.build, File::open(partial.path(Part::Data))?);
            for part in [Part::Data, Part::State] {
                // The VMM wrote some of them as its user, which another sandbox may have later. Jails show them to
                // VMMs of other users.
                let agent = (geteuid().as_raw(), getegid().as_raw());
                chown(partial.path(part), Some(agent.0), Some(agent.1))?;
                fs::set_permissions(partial.path(part), Permissions::from_mode(0o444))?;
            }
            let meta = data.metadata()?;
            let mapping = mapping_of_flat(&data, build)?;
            let (block_size, memory_size) = (BLOCK_SIZE, meta.len());
            let header = Header { block_size, memory_size, generation: 0, build, parent: None, mapping };
            let manifest = Manifest::new(build, &shape, Layout::Flat, all.origin.clone());
            let generation = partial.keep(&header, manifest).map_err(io::Error::other)?;
            all.add(&generation, meta.blocks() * 512);
            Ok::<_, io::Error>(())
        });
        let fault = |error: &dyn std::fmt::Display| AgentError::fault("keeping a template's memory", error);
        kept.await.map_err(|error| fault(&error))?.map_err(|error| fault(&error))?;
        self.make_room().await;
        Ok(())
    }
}

impl Ticket {
    /// Captures the sandbox `id`, which was booted with its changes tracked, and whose guest is ready. The guest
    /// stands still meanwhile. Fails only if it does not go on.
    pub(crate) async fn capture(self, vm: &dyn MicroVm, id: &str) -> Result<(), AgentError> {
        let captured = self.write(vm, id).await;
        vm.resume().await?;
        let partial = match captured {
            Ok(partial) => partial,
            Err(error) => {
                tracing::warn!(id, %error, "cannot capture a template's memory; its sandboxes boot");
                return Ok(());
            }
        };
        tokio::spawn(async move {
            let volume = volume_of(partial.build);
            if let Err(error) = self.all.clone().keep(partial, self.shape.clone()).await {
                tracing::warn!(%error, "cannot keep a template's memory; its sandboxes boot");
                if let Err(error) = self.all.volumes.remove(&volume).await {
                    tracing::warn!(%error, "cannot remove a template's disk; the next start removes it");
                }
            }
        });
        Ok(())
    }

    /// Pauses the guest, and writes memory, state and disk of this instant.
    async fn write(&self, vm: &dyn MicroVm, id: &str) -> Result<Partial, AgentError> {
        let generations = self.all.generations.clone();
        let begun = spawn_blocking(move || generations.begin()).await;
        let partial = begun.map_err(|error| AgentError::fault("keeping a template's memory", &error))??;
        let files = SnapshotFiles { state: partial.path(Part::State), memory: partial.path(Part::Data) };
        vm.pause().await?;
        // Since its boot, which is all that is not zero.
        vm.snapshot(SnapshotKind::Diff, &files).await?;
        self.all.volumes.copy(id, &volume_of(partial.build)).await?;
        Ok(partial)
    }
}

/// Number of digits of a digest that tell shapes and processors apart.
const SHORT: usize = 32;

/// SHA-256 of this content, in hexadecimal digits.
fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What snapshots are made with here: only the same can load them.
pub(crate) fn origin(vmm: &dyn wrenn_vmm::Vmm, kernel: &Path, initrd: &Path) -> io::Result<Origin> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let features: Vec<_> = cpuinfo
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| {
            ["vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU "]
                .iter()
                .any(|name| line.starts_with(name))
        })
        .collect();
    let accelerated = if vmm.capabilities().accelerated { "" } else { ", emulated" };
    Ok(Origin {
        vmm: format!("{} {}{accelerated}", vmm.name(), vmm.version()),
        kernel: digest(&fs::read(kernel)?),
        envd: digest(&fs::read(initrd)?),
        cpu: digest(features.join("\n").as_bytes())[..SHORT].to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use tempfile::TempDir;
    use wrenn_disk::{Backend, StoreConfig};

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

        async fn open(&self, vmm: &str, room_mb: u64) -> anyhow::Result<Arc<TemplateSnapshots>> {
            let origin = Origin { vmm: vmm.to_owned(), ..Origin::default() };
            let dir = self.dir.path().join("memory");
            let all = TemplateSnapshots::open(&dir, origin, room_mb, self.volumes.clone())?;
            all.clone().load().await?;
            Ok(all)
        }

        /// Keeps a snapshot of 1 MiB; returns the id of its volume.
        async fn keep(&self, all: &Arc<TemplateSnapshots>, shape: &str) -> anyhow::Result<String> {
            let partial = all.generations.begin()?;
            let volume = volume_of(partial.build);
            self.volumes.clone_image("minimal", &volume, 1, 0).await?;
            File::create(partial.path(Part::Data))?.write_all_at(&vec![1; 1 << 20], 0)?;
            fs::write(partial.path(Part::State), "state")?;
            all.clone().keep(partial, shape.to_owned()).await?;
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
        assert_eq!(all.generations.list()?.len(), 2);
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
        let next = TemplateSnapshots::open(&dir, all.origin.clone(), 64, place.volumes.clone())?;
        assert!(next.get("1").is_none() && next.ticket("1").is_none(), "it is not read yet");
        next.clone().load().await?;
        assert_eq!(next.get("1").map(|snapshot| snapshot.volume()), Some(first.clone()));
        assert!(next.get("2").is_none() && next.ticket("2").is_some(), "its disk is gone");
        assert_eq!(place.volumes.list().await?, ["sandbox".to_owned(), first]);
        let upgraded = place.open("b", 64).await?;
        assert!(upgraded.get("1").is_none(), "made with another VMM");
        assert_eq!(
            (place.volumes.list().await?, upgraded.generations.list()?.len()),
            (vec!["sandbox".to_owned()], 0)
        );
        Ok(())
    }
}
