// SPDX-License-Identifier: Apache-2.0
//! New generations: what a guest changed, over the generation that its memory began with.

use std::{fs::File, io, path::PathBuf};

use rustix::fs::ioctl_ficlone;
use wrenn_os::sparse_file;

use crate::{
    BLOCK_SIZE, BuildId, Changes, Generation, Generations, Header, Layout, Manifest, Mapping, MemoryError,
    Origin, Part, capture, error::failed, partial::Partial,
};

/// What a guest changed since its memory began, and what it becomes.
pub struct Diff<'a> {
    /// Identity of the new generation.
    pub build: BuildId,
    /// The changes.
    pub changes: &'a dyn Changes,
    /// Generation that the memory began with; none if it began with zeros.
    pub parent: Option<BuildId>,
    /// Layout of the new generation's data.
    pub layout: Layout,
    /// Name of its owner.
    pub label: String,
    /// What it is made with.
    pub origin: Origin,
}

/// A generation whose data is written, and whose state is not yet. Dropping it removes it.
#[derive(Debug)]
pub struct Written {
    partial: Partial,
    header: Header,
    manifest: Manifest,
    /// Manifest of the parent and the changes, if the data is a copy of the parent's with them.
    copied: Option<(Manifest, Mapping)>,
}

impl Generations {
    /// Writes the data of a new generation.
    pub fn write(&self, diff: Diff<'_>) -> Result<Written, MemoryError> {
        let Diff { build, changes, parent, layout, label, origin } = diff;
        let fail = || failed("keep a snapshot's memory");
        let memory_size = changes.memory_size().map_err(fail())?;
        let partial = self.begin(build)?;
        let parent = parent.map(|parent| self.load(parent)).transpose()?;
        let data = partial.new_data().map_err(fail())?;
        if layout == Layout::Flat {
            parent.iter().try_for_each(|parent| self.copy_flat(parent, &data)).map_err(fail())?;
            data.set_len(memory_size).map_err(fail())?;
        }
        let changed = capture(changes, build, &data, layout, || Ok(())).map_err(fail())?;
        let nothing = Mapping::default();
        let mapping = changed.over(parent.as_ref().map_or(&nothing, |parent| &parent.header.mapping));
        let header = Header {
            block_size: BLOCK_SIZE,
            memory_size,
            generation: parent.as_ref().map_or(0, |parent| parent.header.generation.saturating_add(1)),
            build,
            parent: parent.as_ref().map(|parent| parent.manifest.build),
            mapping: if layout == Layout::Flat { mapping.flat(build) } else { mapping },
        };
        let flat = parent.filter(|parent| (layout, parent.manifest.layout) == (Layout::Flat, Layout::Flat));
        let copied = flat.map(|parent| (parent.manifest, changed));
        Ok(Written { partial, header, manifest: Manifest::new(build, &label, layout, origin), copied })
    }

    /// Writes the whole memory of a generation as the data of a new one with this identity. Both share extents where both
    /// are flat and the file system can.
    pub fn write_copy(&self, from: BuildId, build: BuildId, label: &str) -> Result<Written, MemoryError> {
        let source = self.load(from)?;
        let partial = self.begin(build)?;
        let copied = partial.new_data().and_then(|data| self.copy_flat(&source, &data));
        copied.map_err(failed("copy a snapshot's memory"))?;
        let manifest = Manifest::new(build, label, Layout::Flat, source.manifest.origin.clone());
        let mapping = source.header.mapping.flat(build);
        let header = Header { build, parent: Some(from), mapping, ..source.header };
        let same = (source.manifest.layout == Layout::Flat).then(|| (source.manifest, Mapping::default()));
        Ok(Written { partial, header, manifest, copied: same })
    }

    /// Copies the memory of a generation into an empty file, each block at its place.
    fn copy_flat(&self, from: &Generation, data: &File) -> io::Result<()> {
        if from.manifest.layout == Layout::Packed {
            return self.open(&from.header).map_err(io::Error::other)?.write_flat(data);
        }
        let source = File::open(self.path(from.manifest.build, Part::Data))?;
        match ioctl_ficlone(data, &source) {
            Ok(()) => Ok(()),
            Err(_) => sparse_file::copy(&source, data, || Ok(())),
        }
    }
}

impl Written {
    /// A generation whose data is written as this header says.
    pub(crate) fn new(partial: Partial, header: Header, manifest: Manifest) -> Self {
        Self { partial, header, manifest, copied: None }
    }

    /// Path of a file of the generation. [`Written::keep`] needs the state.
    pub fn path(&self, part: Part) -> PathBuf {
        self.partial.path(part)
    }

    /// Completes the generation. On return it survives a power failure.
    pub fn keep(self) -> Result<Generation, MemoryError> {
        let copied = self.copied.as_ref().map(|(of, changed)| (of, changed));
        self.partial.keep_after(&self.header, self.manifest, copied)
    }
}
