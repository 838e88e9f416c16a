// SPDX-License-Identifier: Apache-2.0
//! Snapshots of guests on this host: captures of their memory and state, kept as generations.
//!
//! A capture has what changed since the guest's memory began, so it takes as long as the changes need to be
//! written. What follows, while the guest may go on, puts them into a copy of what the memory began with: a
//! generation whose data is the whole memory, which a VMM maps. Where the file system shares extents, the copy
//! takes no time.

pub(crate) mod named;
pub(crate) mod origin;
pub(crate) mod templates;

use std::{
    collections::BTreeSet,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::ioctl_ficlone,
    process::{getegid, geteuid},
};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use wrenn_api::SandboxId;
use wrenn_disk::Volumes;
use wrenn_memory::{
    BLOCK_SIZE, BuildId, Generation, Generations, Header, Layout, Manifest, MemoryError, Origin, Part,
    Partial, capture, mapping_of_flat,
};
use wrenn_os::sparse_file;
use wrenn_vmm::{Diffs, MemorySource, MicroVm, Snapshot, SnapshotFiles, SnapshotKind};

use crate::error::{AgentError, of_files};

/// Mode of the files of a sandbox's memory, which has its secrets, and of what VMMs of several users load.
const OWN: u32 = 0o400;
const SHARED: u32 = 0o444;
/// What is kept on the host when this fails, for its error.
const KEEPING: &str = "keeping the sandbox's memory";

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
    pub(crate) diffs: Diffs,
}

/// Files of a capture, which are removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Captured {
    /// Identity of the generation that it becomes.
    pub(crate) build: BuildId,
    dir: PathBuf,
    base: Base,
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
    fn new(captures: &Path, base: Base) -> io::Result<Self> {
        let build = BuildId::new();
        let dir = captures.join(build.to_string());
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir)?;
        Ok(Self { build, dir, base })
    }

    fn files(&self) -> SnapshotFiles {
        SnapshotFiles { state: self.dir.join("state"), memory: self.dir.join("memory") }
    }
}

impl Snapshots {
    /// Snapshots in this directory, which is created if it is missing. Removes what former agents left half
    /// written.
    pub(crate) fn open(dir: &Path, origin: Origin, diffs: Diffs) -> Result<Arc<Self>, MemoryError> {
        let generations = Generations::new(dir)?;
        generations.clean()?;
        Ok(Arc::new(Self { generations, origin, diffs }))
    }

    /// Writes memory and state of the paused guest into a new directory in `captures`, on the file system of the VMM's
    /// run directory. What the next capture can be based on is given by [`Snapshots::base_after`].
    pub(crate) async fn capture(
        &self,
        vm: &dyn MicroVm,
        captures: PathBuf,
        base: Base,
    ) -> Result<Captured, AgentError> {
        let base = match base {
            Base::Generation(build) if !self.generations.path(build, Part::Data).exists() => Base::Unknown,
            other => other,
        };
        let captured = spawn_blocking(move || Captured::new(&captures, base)).await;
        let captured =
            captured.unwrap_or_else(|error| Err(error.into())).map_err(|error| of_files(KEEPING, &error))?;
        let kind = if base == Base::Unknown { SnapshotKind::Full } else { SnapshotKind::Diff };
        vm.snapshot(kind, &captured.files()).await?;
        Ok(captured)
    }

    /// What the memory of a guest is known to be based on after a capture that may not have been kept.
    pub(crate) fn base_after(&self, before: Base) -> Base {
        match self.diffs {
            Diffs::SinceSnapshot => Base::Unknown,
            Diffs::SinceStart => before,
        }
    }

    /// Puts a capture together with its base and keeps it, under the name of its owner. On return it survives a
    /// power failure.
    pub(crate) async fn keep(self: &Arc<Self>, captured: Captured, label: &str) -> Result<Kept, AgentError> {
        let (all, label) = (self.clone(), label.to_owned());
        let kept = spawn_blocking(move || all.keep_now(&captured, &label));
        kept.await.map_err(|error| AgentError::fault(KEEPING, &error))?
    }

    fn keep_now(&self, captured: &Captured, label: &str) -> Result<Kept, AgentError> {
        let partial = self.generations.begin(captured.build)?;
        let (build, files) = (partial.build, captured.files());
        let parent = match captured.base {
            Base::Generation(parent) => Some(self.generations.load(parent)?.header),
            Base::Zero | Base::Unknown => None,
        };
        let data = self.put_together(&partial, &files.memory, parent.as_ref());
        let (data, mapping) = data.map_err(|error| of_files(KEEPING, &error))?;
        take_over(&partial, &files.state, label).map_err(|error| of_files(KEEPING, &error))?;
        let meta = data.metadata().map_err(|error| of_files(KEEPING, &error))?;
        let header = Header {
            block_size: BLOCK_SIZE,
            memory_size: meta.len(),
            generation: parent.as_ref().map_or(0, |parent| parent.generation.saturating_add(1)),
            build,
            parent: parent.map(|parent| parent.build),
            mapping,
        };
        let manifest = Manifest::new(build, label, Layout::Flat, self.origin.clone());
        Ok(Kept { generation: partial.keep(&header, manifest)?, bytes: meta.blocks() * 512 })
    }

    /// Writes the data of a new generation: a copy of the parent's, with the changes.
    fn put_together(
        &self,
        partial: &Partial,
        changes: &Path,
        parent: Option<&Header>,
    ) -> io::Result<(File, wrenn_memory::Mapping)> {
        let changes = File::open(changes)?;
        let data = match parent {
            Some(parent) => self.data(partial, parent.build)?,
            None => File::options().read(true).write(true).create_new(true).open(partial.path(Part::Data))?,
        };
        data.set_len(changes.metadata()?.len())?;
        capture(&changes, partial.build, &data, Layout::Flat, || Ok(()))?;
        let mapping = mapping_of_flat(&data, partial.build)?;
        Ok((data, mapping))
    }

    /// Copies a generation, whose data shares extents with the copy where the file system can.
    pub(crate) async fn copy(
        self: &Arc<Self>,
        from: BuildId,
        build: BuildId,
        label: &str,
    ) -> Result<(), AgentError> {
        let (all, label) = (self.clone(), label.to_owned());
        let copied = spawn_blocking(move || {
            let source = all.generations.load(from)?;
            let partial = all.generations.begin(build)?;
            let data = all.data(&partial, from).map_err(|error| of_files(KEEPING, &error))?;
            take_over(&partial, &all.generations.path(from, Part::State), &label)
                .map_err(|error| of_files(KEEPING, &error))?;
            let mapping = mapping_of_flat(&data, build).map_err(|error| of_files(KEEPING, &error))?;
            let header = Header { build, parent: Some(from), mapping, ..source.header };
            partial.keep(&header, Manifest::new(build, &label, Layout::Flat, source.manifest.origin))?;
            Ok::<_, AgentError>(())
        });
        copied.await.map_err(|error| AgentError::fault(KEEPING, &error))?
    }

    /// Begins the data of a new generation as a copy of another one's.
    fn data(&self, partial: &Partial, from: BuildId) -> io::Result<File> {
        let data = File::options().read(true).write(true).create_new(true).open(partial.path(Part::Data))?;
        let source = File::open(self.generations.path(from, Part::Data))?;
        if ioctl_ficlone(&data, &source).is_err() {
            sparse_file::copy(&source, &data, || Ok(()))?;
        }
        Ok(data)
    }

    /// Finds a generation of a sandbox that this host can load. Every byte of it is as it was written.
    pub(crate) async fn load(self: &Arc<Self>, build: BuildId) -> Result<Generation, AgentError> {
        let all = self.clone();
        let loaded = spawn_blocking(move || {
            let generation = all.generations.load(build)?;
            generation.manifest.origin.check_loadable(build, &all.origin)?;
            all.generations.verify(&generation)?;
            Ok::<_, MemoryError>(generation)
        });
        Ok(loaded.await.map_err(|error| AgentError::fault("reading the sandbox's memory", &error))??)
    }

    /// What a VMM restores of a generation that only it uses, after [`Snapshots::give`].
    pub(crate) fn source(&self, build: BuildId) -> Snapshot {
        let path = |part| self.generations.path(build, part);
        Snapshot { state: path(Part::State), memory: MemorySource::File(path(Part::Data)), run: false }
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
        given.map_err(|error| of_files("reading the sandbox's memory", &error))
    }

    /// Removes a generation. A failure is only logged: what nobody names is removed by the next start.
    pub(crate) async fn remove(self: &Arc<Self>, build: BuildId) {
        let all = self.clone();
        let removed = spawn_blocking(move || all.generations.remove(build)).await;
        if let Err(error) = removed.map_err(io::Error::other).and_then(|done| done.map_err(io::Error::other))
        {
            tracing::warn!(%error, "cannot remove a snapshot; the next start removes it");
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
                all.generations.load(build).is_ok_and(|generation| generation.manifest.label == sandbox)
            });
            if own.await.unwrap_or_default() {
                self.remove(build).await;
            }
        }
    }

    /// Removes the generations of sandboxes and of named snapshots that nothing names.
    pub(crate) fn collect(&self, named: &BTreeSet<BuildId>) -> Result<(), MemoryError> {
        for build in self.generations.list()?.into_iter().rev() {
            let of_template = match self.generations.load(build) {
                Ok(generation) => is_of_template(&generation.manifest.label),
                // Nothing can load it.
                Err(_) => false,
            };
            if !of_template && !named.contains(&build) {
                self.generations.remove(build)?;
            }
        }
        Ok(())
    }
}

/// Returns whether a generation with this label is one of a template, and not of a sandbox or a named snapshot.
fn is_of_template(label: &str) -> bool {
    label.parse::<SandboxId>().is_err() && !named::is_label(label)
}

/// Copies the state that a VMM wrote, as its user, into a file of the agent. Sets who may read the generation with this
/// label.
fn take_over(partial: &Partial, state: &Path, label: &str) -> io::Result<()> {
    fs::copy(state, partial.path(Part::State))?;
    // Jails show the others to VMMs of other users.
    let mode = if label.parse::<SandboxId>().is_ok() { OWN } else { SHARED };
    for part in [Part::Data, Part::State] {
        fs::set_permissions(partial.path(part), Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Returns whether the store has too little room for snapshots: guests that run need the rest.
pub(crate) async fn lacks_room(volumes: &dyn Volumes) -> Result<bool, AgentError> {
    Ok(volumes.pressure().await?.is_low())
}
