// SPDX-License-Identifier: Apache-2.0
//! Snapshots of guests on this host: captures of their memory and state, kept as generations.
//!
//! A capture has what changed since the guest's memory began, so it takes as long as the changes need to be
//! written. What follows, while the guest may go on, keeps them as a generation, in one of two layouts:
//!
//! - *Flat*: the data is the whole memory, a copy of what the memory began with and the changes. A VMM maps it, and all
//!   that map it share its pages. Where the file system shares extents, the copy takes no time.
//! - *Packed*: the data has the changes only, and the rest stays in the data of other generations. A page server copies
//!   what the guest needs. This is for the memory of one sandbox, where a flat copy would take time and room. When its
//!   generations have become many, they are joined in the background.

pub(crate) mod layout;
mod moved;
pub(crate) mod named;
pub(crate) mod origin;
pub(crate) mod templates;

use std::{
    collections::BTreeSet,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{getegid, geteuid};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, spawn_blocking};
use wrenn_api::SandboxId;
use wrenn_disk::Volumes;
use wrenn_memory::{
    BuildId, Changes, Diff, Generation, Generations, Layers, Layout, MemoryError, Origin, Part, Written,
};
use wrenn_vmm::{Diffs, MemorySource, MicroVm, PagedMemory, Snapshot, SnapshotFiles, SnapshotKind};

use crate::error::{AgentError, of_files};

/// Mode of the files of a sandbox's memory, which has its secrets, and of what VMMs of several users load.
const OWN: u32 = 0o400;
const SHARED: u32 = 0o444;
/// What is kept on the host when this fails, for its error.
const KEEPING: &str = "keeping the sandbox's memory";
/// What is not loaded when this fails.
const READING: &str = "reading the sandbox's memory";

/// What a guest's memory began with. A diff has what changed since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Base {
    /// Zeros: the guest was booted.
    Zero,
    /// This generation.
    Generation(BuildId),
    /// It is not known, so that only the whole memory can be captured.
    #[default]
    Unknown,
}

/// Snapshots of guests on this host.
#[derive(Debug)]
pub(crate) struct Snapshots {
    pub(crate) generations: Generations,
    pub(crate) origin: Origin,
    /// Since when a diff of this host's driver has the changes.
    diffs: Diffs,
    /// Whether the memory of sandboxes is kept in packed generations.
    packs: bool,
    /// Whether copies share extents, so that a flat one takes no time.
    shares: bool,
    /// Held for writing while a generation is replaced by another one with the same memory.
    replacing: RwLock<()>,
    /// Generations that their owners do not need any more, and others still do.
    released: Mutex<BTreeSet<BuildId>>,
}

/// Number of generations that a memory is in when they are joined.
const JOIN_AT: usize = 8;
/// Time limit for a moment in which no generation is being read, and interval between looks.
const ALONE_LIMIT: Duration = Duration::from_secs(60);
const ALONE_PAUSE: Duration = Duration::from_millis(5);

/// Files of a capture, which are removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Captured {
    /// Identity of the generation that it becomes.
    pub(crate) build: BuildId,
    /// Name of the generation's owner.
    label: String,
    dir: PathBuf,
    base: Base,
    /// The generation, if its data was written already.
    written: Option<Written>,
}

/// A kept generation, and the number of bytes that its data occupies.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) generation: Generation,
    pub(crate) bytes: u64,
}

impl Drop for Captured {
    fn drop(&mut self) {
        // The next start of the agent removes what is left.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Captured {
    /// Makes the directory of a capture in `captures`, which is made, too. A sandbox may have several.
    fn new(captures: &Path, base: Base, label: &str) -> io::Result<Self> {
        let build = BuildId::new();
        let dir = captures.join(build.to_string());
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir)?;
        Ok(Self { build, label: label.to_owned(), dir, base, written: None })
    }

    fn files(&self) -> SnapshotFiles {
        SnapshotFiles { state: self.dir.join("state"), memory: self.dir.join("memory") }
    }
}

impl Snapshots {
    /// Snapshots in this directory, which is created if it is missing. Removes what former agents left half
    /// written. `packs` says whether the memory of sandboxes is kept in packed generations if copies share extents
    /// there, or do not.
    pub(crate) fn open(
        dir: &Path,
        origin: Origin,
        diffs: Diffs,
        packs: impl FnOnce(bool) -> bool,
    ) -> Result<Arc<Self>, MemoryError> {
        let generations = Generations::new(dir)?;
        generations.clean()?;
        let shares = layout::shares_extents(dir);
        let (packs, replacing, released) = (packs(shares), RwLock::default(), Mutex::default());
        Ok(Arc::new(Self { generations, origin, diffs, packs, shares, replacing, released }))
    }

    /// Keeps generations from being replaced.
    fn stable(&self) -> RwLockReadGuard<'_, ()> {
        self.replacing.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no generation is being read. Does not make readers wait, and gives up if there are always some.
    fn alone(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        let begin = Instant::now();
        loop {
            match self.replacing.try_write() {
                Ok(alone) => return Some(alone),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if begin.elapsed() > ALONE_LIMIT => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(ALONE_PAUSE),
            }
        }
    }

    fn released(&self) -> MutexGuard<'_, BTreeSet<BuildId>> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes memory and state of the paused guest for the owner of this name: into a new directory in `captures`, on the
    /// file system of the VMM's run directory, or the memory into the generation's own data, if it can be read from
    /// the VMM's process. What the next capture can be based on is given by [`Snapshots::base_after`].
    pub(crate) async fn capture(
        self: &Arc<Self>,
        vm: &dyn MicroVm,
        captures: PathBuf,
        base: Base,
        label: &str,
    ) -> Result<Captured, AgentError> {
        let base = match base {
            Base::Generation(build) if !self.generations.path(build, Part::Data).exists() => Base::Unknown,
            other => other,
        };
        let owner = label.to_owned();
        let captured = spawn_blocking(move || Captured::new(&captures, base, &owner)).await;
        let captured = captured.unwrap_or_else(|error| Err(error.into()));
        let mut captured = captured.map_err(|error| of_files(KEEPING, &error))?;
        if self.writes_at_once(&captured)
            && let Some(changes) = vm.snapshot_state(&captured.files().state).await?
        {
            let all = self.clone();
            let written = spawn_blocking(move || {
                let _stable = all.stable();
                captured.written = Some(all.write(&captured, &*changes)?);
                Ok::<_, AgentError>(captured)
            });
            return written.await.map_err(|error| AgentError::fault(KEEPING, &error))?;
        }
        let kind = if base == Base::Unknown { SnapshotKind::Full } else { SnapshotKind::Diff };
        vm.snapshot(kind, &captured.files()).await?;
        Ok(captured)
    }

    /// Returns whether the data of a generation takes no longer to be written than a copy of the changes would, so that it
    /// can be written while the guest stands still.
    fn writes_at_once(&self, captured: &Captured) -> bool {
        match captured.base {
            Base::Zero => true,
            Base::Generation(_) => self.shares && self.layout(captured) == Layout::Flat,
            Base::Unknown => false,
        }
    }

    /// Layout of the generation that a capture becomes: what many go on from is flat, so that they share it.
    fn layout(&self, captured: &Captured) -> Layout {
        match captured.base {
            Base::Generation(_) if self.packs && is_of_sandbox(&captured.label) => Layout::Packed,
            _ => Layout::Flat,
        }
    }

    /// Writes the data of the generation that a capture becomes. If that is packed, generations must not be replaced until
    /// it is kept: what it refers to would seem to be needed by nobody.
    fn write(&self, captured: &Captured, changes: &dyn Changes) -> Result<Written, MemoryError> {
        self.generations.write(Diff {
            build: captured.build,
            changes,
            parent: match captured.base {
                Base::Generation(parent) => Some(parent),
                Base::Zero | Base::Unknown => None,
            },
            layout: self.layout(captured),
            label: captured.label.clone(),
            origin: self.origin.clone(),
        })
    }

    /// What the memory of a guest is known to be based on after a capture that may not have been kept.
    pub(crate) fn base_after(&self, before: Base) -> Base {
        match self.diffs {
            Diffs::SinceSnapshot => Base::Unknown,
            Diffs::SinceStart => before,
        }
    }

    /// Keeps a capture with its base. Takes the working set from this file, if the generation can use one. On return
    /// it survives a power failure.
    pub(crate) async fn keep(
        self: &Arc<Self>,
        captured: Captured,
        working_set: Option<PathBuf>,
    ) -> Result<Kept, AgentError> {
        let all = self.clone();
        let kept = spawn_blocking(move || all.keep_now(captured, working_set.as_deref()));
        let kept = kept.await.map_err(|error| AgentError::fault(KEEPING, &error))??;
        if kept.generation.header.mapping.builds().len() >= JOIN_AT {
            let (all, build) = (self.clone(), kept.generation.manifest.build);
            spawn_blocking(move || all.join(build));
        }
        Ok(kept)
    }

    fn keep_now(&self, mut captured: Captured, working_set: Option<&Path>) -> Result<Kept, AgentError> {
        let fail = |error: io::Error| of_files(KEEPING, &error);
        let _stable = self.stable();
        let written = match captured.written.take() {
            Some(written) => written,
            None => self.write(&captured, &File::open(captured.files().memory).map_err(fail)?)?,
        };
        if let Some(working_set) = working_set.filter(|_| self.layout(&captured) == Layout::Packed) {
            layout::copy_if_present(working_set, &written.path(Part::WorkingSet)).map_err(fail)?;
        }
        take_over(&written, &captured.files().state, &captured.label).map_err(fail)?;
        let generation = written.keep()?;
        let data = fs::metadata(self.generations.path(captured.build, Part::Data)).map_err(fail)?;
        Ok(Kept { generation, bytes: data.blocks() * 512 })
    }

    /// Copies the memory of a generation as one for many, whose data shares extents with the copy where both are flat and
    /// the file system can.
    pub(crate) async fn copy(
        self: &Arc<Self>,
        from: BuildId,
        build: BuildId,
        label: &str,
    ) -> Result<(), AgentError> {
        let (all, label) = (self.clone(), label.to_owned());
        let copied = spawn_blocking(move || {
            let _stable = all.stable();
            let written = all.generations.write_copy(from, build, &label)?;
            let taken = take_over(&written, &all.generations.path(from, Part::State), &label);
            taken.map_err(|error| of_files(KEEPING, &error))?;
            written.keep()?;
            Ok::<_, AgentError>(())
        });
        copied.await.map_err(|error| AgentError::fault(KEEPING, &error))?
    }

    /// Finds a generation of a sandbox that this host can load, and begins to check every byte of it.
    pub(crate) async fn load(self: &Arc<Self>, build: BuildId) -> Result<Loaded, AgentError> {
        let all = self.clone();
        let loaded = spawn_blocking(move || {
            let _stable = all.stable();
            let generation = all.generations.load(build)?;
            generation.manifest.origin.check_loadable(build, &all.origin)?;
            let layers = match generation.manifest.layout {
                Layout::Flat => None,
                Layout::Packed => Some(all.generations.open(&generation.header)?),
            };
            let verification = all.generations.verification(&generation)?;
            let verified = spawn_blocking(move || verification.run());
            Ok::<_, MemoryError>(Loaded { build, layers, verified })
        });
        Ok(loaded.await.map_err(|error| AgentError::fault(READING, &error))??)
    }

    /// What a VMM restores of a generation that only it uses, after [`Snapshots::give`]. The working set is read from this
    /// file and written to it, if the generation can use one.
    pub(crate) async fn source(
        &self,
        loaded: &mut Loaded,
        working_set: PathBuf,
    ) -> Result<Snapshot, AgentError> {
        let path = |part| self.generations.path(loaded.build, part);
        let memory = match loaded.layers.take() {
            None => MemorySource::File(path(Part::Data)),
            Some(layers) => {
                let kept = path(Part::WorkingSet);
                let opened = spawn_blocking(move || layout::working_set(&kept, &working_set)).await;
                let opened = opened.unwrap_or_else(|error| Err(error.into()));
                let working_set = opened.map_err(|error| of_files(READING, &error))?;
                MemorySource::Layers(PagedMemory { layers, working_set })
            }
        };
        Ok(Snapshot { state: path(Part::State), memory, run: false })
    }

    /// Gives memory and state of a sandbox's generation to a VMM's user, who loads them, or back to the agent.
    pub(crate) async fn give(&self, build: BuildId, uid: Option<u32>) -> Result<(), AgentError> {
        let paths = [Part::Data, Part::State].map(|part| self.generations.path(build, part));
        let given = spawn_blocking(move || {
            let (owner, group, mode) = match uid {
                Some(uid) => (uid, uid, 0o600),
                None => (geteuid().as_raw(), getegid().as_raw(), OWN),
            };
            paths.iter().try_for_each(|path| {
                chown(path, Some(owner), Some(group))?;
                fs::set_permissions(path, Permissions::from_mode(mode))
            })
        });
        let given = given.await.unwrap_or_else(|error| Err(error.into()));
        given.map_err(|error| of_files(READING, &error))
    }

    /// Joins the generations of a sandbox's memory. A failure is only logged: it goes on in more of them.
    fn join(&self, build: BuildId) {
        let joined = self.generations.collapse(build).and_then(|collapsed| {
            let joined = collapsed.joined();
            match self.alone() {
                Some(_alone) => collapsed.replace()?,
                None => tracing::info!(%build, "the generations of a memory are joined at another time"),
            }
            Ok(joined)
        });
        // No journal names the joined one; those that it replaces are not needed any more.
        let released = self.release(joined.as_ref().ok().copied());
        if let Err(error) = joined.and(released) {
            tracing::warn!(%build, %error, "cannot join the generations of a sandbox's memory");
        }
    }

    /// Removes a generation. A failure is only logged: what nobody names is removed by the next start.
    pub(crate) async fn remove(self: &Arc<Self>, build: BuildId) {
        let all = self.clone();
        let removed = spawn_blocking(move || all.release([build])).await;
        if let Err(error) = removed.map_err(io::Error::other).and_then(|done| done.map_err(io::Error::other))
        {
            tracing::warn!(%error, "cannot remove a snapshot; the next start removes it");
        }
    }

    /// Removes generations that their owners do not need any more: at once, or when no other one needs them.
    fn release(&self, builds: impl IntoIterator<Item = BuildId>) -> Result<(), MemoryError> {
        // What is being replaced cannot be read, and would seem to need nothing.
        let _stable = self.stable();
        let mut released = self.released();
        released.extend(builds);
        loop {
            let before = released.len();
            // A generation mostly needs older ones.
            for build in released.clone().into_iter().rev() {
                match self.generations.remove(build) {
                    Err(MemoryError::InUse { .. }) => {}
                    removed => {
                        removed?;
                        released.remove(&build);
                    }
                }
            }
            if released.len() == before {
                return Ok(());
            }
        }
    }

    /// Removes those of these generations that are of this sandbox; the others are of templates.
    pub(crate) async fn remove_of(
        self: &Arc<Self>,
        sandbox: &str,
        builds: impl IntoIterator<Item = BuildId>,
    ) {
        for build in builds {
            let (all, sandbox) = (self.clone(), sandbox.to_owned());
            let own = spawn_blocking(move || {
                let _stable = all.stable();
                match all.generations.label(build) {
                    Ok(label) => label == sandbox,
                    // What is damaged is of no use to anybody.
                    Err(error) => !matches!(error, MemoryError::Io { .. }),
                }
            });
            if own.await.unwrap_or_default() {
                self.remove(build).await;
            }
        }
    }

    /// Removes the generations of sandboxes and of named snapshots that nothing names, unless others need them.
    pub(crate) fn collect(&self, named: &BTreeSet<BuildId>) -> Result<(), MemoryError> {
        let all = self.generations.list()?;
        // What cannot be loaded is of no use to anybody.
        let label = |build| self.generations.load(build).map(|generation| generation.manifest.label);
        let of_template = |build: &BuildId| label(*build).is_ok_and(|label| is_of_template(&label));
        let kept: BTreeSet<BuildId> =
            all.into_iter().filter(|build| named.contains(build) || of_template(build)).collect();
        self.generations.collect(&kept)?;
        let left = self.generations.list()?.into_iter();
        self.released().extend(left.filter(|build| !kept.contains(build)));
        Ok(())
    }
}

/// A generation of a sandbox that can be loaded.
#[derive(Debug)]
pub(crate) struct Loaded {
    build: BuildId,
    /// Its memory, if it is packed and no VMM has it yet.
    layers: Option<Layers>,
    /// The check of its content, which a VMM need not wait for to load it. No guest goes on before it.
    verified: JoinHandle<Result<(), MemoryError>>,
}

impl Loaded {
    /// Waits until every byte was checked, and fails if one is not as it was written.
    pub(crate) async fn verified(self) -> Result<(), AgentError> {
        Ok(self.verified.await.map_err(|error| AgentError::fault(READING, &error))??)
    }
}

/// Returns whether a generation with this label is the memory of one sandbox.
fn is_of_sandbox(label: &str) -> bool {
    label.parse::<SandboxId>().is_ok()
}

/// Returns whether a generation with this label is one of a template, and not of a sandbox or a named snapshot.
fn is_of_template(label: &str) -> bool {
    !is_of_sandbox(label) && !named::is_label(label)
}

/// Copies the state that a VMM wrote, as its user, into a file of the agent. Sets who may read the generation with this
/// label.
fn take_over(written: &Written, state: &Path, label: &str) -> io::Result<()> {
    fs::copy(state, written.path(Part::State))?;
    // Jails show the others to VMMs of other users.
    let mode = if is_of_sandbox(label) { OWN } else { SHARED };
    for part in [Part::Data, Part::State] {
        fs::set_permissions(written.path(part), Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Returns whether the store has too little room for snapshots: guests that run need the rest.
pub(crate) async fn lacks_room(volumes: &dyn Volumes) -> Result<bool, AgentError> {
    Ok(volumes.pressure().await?.is_low())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::FileExt as _};

    use tempfile::TempDir;
    use tokio::time::{sleep, timeout};
    use wrenn_memory::BLOCK_SIZE;
    use wrenn_os::sparse_file;

    use super::*;

    const BLOCKS: u64 = 64;
    const SIZE: u64 = BLOCK_SIZE as u64;

    struct Place {
        dir: TempDir,
        all: Arc<Snapshots>,
        /// Content of the memory, by block.
        memory: BTreeMap<u64, u8>,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let memory = dir.path().join("memory");
            let all = Snapshots::open(&memory, Origin::default(), Diffs::SinceSnapshot, |_| true).unwrap();
            Self { dir, all, memory: BTreeMap::new() }
        }

        /// Keeps a memory in which these blocks have changed to this byte.
        async fn keep(&mut self, label: &str, base: Base, blocks: &[u64], byte: u8) -> BuildId {
            let captured = Captured::new(&self.dir.path().join("captures"), base, label).unwrap();
            let file = File::create(captured.files().memory).unwrap();
            file.set_len(BLOCKS * SIZE).unwrap();
            for block in blocks {
                file.write_all_at(&vec![byte; SIZE as usize], block * SIZE).unwrap();
                self.memory.insert(*block, byte);
            }
            fs::write(captured.files().state, "state").unwrap();
            let build = captured.build;
            self.all.keep(captured, None).await.unwrap();
            build
        }

        /// Content of a generation by block, of those that are not zero.
        async fn content(&self, build: BuildId) -> BTreeMap<u64, u8> {
            let mut loaded = self.all.load(build).await.unwrap();
            let layers = loaded.layers.take();
            loaded.verified().await.unwrap();
            let whole = tempfile::tempfile().unwrap();
            match layers {
                Some(layers) => layers.write_flat(&whole).unwrap(),
                None => {
                    let data = File::open(self.all.generations.path(build, Part::Data)).unwrap();
                    sparse_file::copy(&data, &whole, || Ok(())).unwrap();
                }
            }
            let byte = |block: u64| {
                let mut byte = [0];
                whole.read_exact_at(&mut byte, block * SIZE + 7).unwrap();
                (block, byte[0])
            };
            (0..BLOCKS).map(byte).filter(|(_, byte)| *byte != 0).collect()
        }

        /// Waits until there are at most so many generations: they are joined in the background.
        async fn becomes_at_most(&self, most: usize) {
            let few = async {
                while self.builds().len() > most {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(30), few).await.expect("they are joined");
        }

        fn builds(&self) -> Vec<BuildId> {
            self.all.generations.list().unwrap()
        }
    }

    /// Many pauses over a template: each has its changes only, they are joined, and nothing of them stays.
    #[tokio::test]
    async fn the_memory_of_a_sandbox_is_kept_in_few_generations() {
        let mut place = Place::new();
        let (sandbox, template) = (SandboxId::new().to_string(), "template");
        let first = place.keep(template, Base::Zero, &[1, 2, 3, 40], 9).await;
        let mut last = first;
        for round in 0..20 {
            let former = last;
            let blocks = [u64::from(round) % 5, 50, 20 + u64::from(round)];
            last = place.keep(&sandbox, Base::Generation(former), &blocks, 10 + round).await;
            place.all.remove_of(&sandbox, [former]).await;
            assert_eq!(place.content(last).await, place.memory, "round {round}");
            place.becomes_at_most(JOIN_AT).await;
            assert_eq!(place.content(last).await, place.memory, "joined after round {round}");
        }
        // The template goes when it is not needed any more.
        place.all.remove(first).await;
        assert!(place.builds().contains(&first));
        place.all.remove_of(&sandbox, [last]).await;
        place.becomes_at_most(0).await;
    }

    #[tokio::test]
    async fn what_many_go_on_from_is_flat() {
        let mut place = Place::new();
        let sandbox = SandboxId::new().to_string();
        let template = place.keep("template", Base::Zero, &[1, 2], 9).await;
        let paused = place.keep(&sandbox, Base::Generation(template), &[2, 3], 8).await;
        let (copy, label) = (BuildId::new(), named::label("s"));
        place.all.copy(paused, copy, &label).await.unwrap();
        let running = place.keep(&label, Base::Generation(paused), &[], 0).await;
        for build in [copy, running] {
            assert!(place.all.load(build).await.unwrap().layers.is_none());
            assert_eq!(place.content(build).await, place.memory);
        }
        assert!(place.all.load(paused).await.unwrap().layers.is_some());
    }

    /// The next agent removes what no journal names, but not what something else needs, until that goes.
    #[tokio::test]
    async fn the_next_start_collects_what_nobody_needs() {
        let mut place = Place::new();
        let sandbox = SandboxId::new().to_string();
        let template = place.keep("template", Base::Zero, &[1, 2], 9).await;
        let first = place.keep(&sandbox, Base::Generation(template), &[3], 8).await;
        let last = place.keep(&sandbox, Base::Generation(first), &[4], 7).await;
        let stray = place.keep(&sandbox, Base::Generation(first), &[5], 6).await;
        place.all.collect(&BTreeSet::from([last])).unwrap();
        assert_eq!(place.builds(), [template, first, last]);
        assert!(!place.builds().contains(&stray));
        place.all.remove(last).await;
        assert_eq!(place.builds(), [template]);
    }
}
