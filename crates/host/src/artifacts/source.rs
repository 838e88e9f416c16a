// SPDX-License-Identifier: Apache-2.0
//! Open files of an artifact that is exported, and their pieces.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use tokio::runtime::Handle;
use wrenn_disk::{DiskError, Volumes};
use wrenn_memory::{BLOCK_SIZE, Layers};
use wrenn_os::sparse_file::{self, Extent};

use super::format::{Name, PIECE, Piece, piece_length, pieces};

/// Size of a block of memory.
const BLOCK: u64 = BLOCK_SIZE as u64;

/// A file of an artifact.
pub(super) struct Source {
    pub(super) name: Name,
    pub(super) length: u64,
    content: Content,
}

enum Content {
    /// A regular file, which may have holes.
    File(File),
    /// A block device, which does not say what it has.
    Device(File),
    /// Memory in the data of one or more generations.
    Memory(Layers),
}

/// A volume that is a copy of another one, for as long as that is read. It is removed when this is dropped; the next start of an
/// agent that died before removes it.
pub(super) struct Copied {
    volumes: Arc<dyn Volumes>,
    id: String,
}

impl Source {
    /// A regular file.
    pub(super) fn file(name: Name, file: File) -> io::Result<Self> {
        Ok(Self { name, length: file.metadata()?.len(), content: Content::File(file) })
    }

    /// A volume of this length: a regular file or a block device.
    pub(super) fn volume(file: File, length: u64, is_device: bool) -> Self {
        let content = if is_device { Content::Device(file) } else { Content::File(file) };
        Self { name: Name::Disk, length, content }
    }

    /// A memory.
    pub(super) fn memory(memory: Layers) -> Self {
        let length = memory.header().memory_size;
        Self { name: Name::Memory, length, content: Content::Memory(memory) }
    }

    /// Numbers of the pieces that may have content. Blocks.
    pub(super) fn pieces(&self) -> io::Result<Vec<u64>> {
        let extents = match &self.content {
            Content::File(file) => sparse_file::extents(file)?,
            Content::Device(_) => vec![Extent { start: 0, end: self.length }],
            Content::Memory(memory) => {
                let ranges = memory.header().mapping.ranges().iter();
                ranges.map(|range| Extent { start: range.start * BLOCK, end: range.end() * BLOCK }).collect()
            }
        };
        Ok(pieces(&extents, self.length))
    }

    /// Reads a piece; none if it has zeros only. Blocks.
    pub(super) fn piece(&self, index: u64) -> io::Result<Option<Piece>> {
        let length = piece_length(self.length, index).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut content = vec![0; length as usize];
        self.read(&mut content, index * PIECE)?;
        let is_zero = sparse_file::runs(&content).all(|(_, zero)| zero);
        Ok((!is_zero).then(|| Piece::of(self.name, index, &content)))
    }

    /// Reads into a buffer of zeros.
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let memory = match &self.content {
            Content::File(file) | Content::Device(file) => return file.read_exact_at(buffer, at),
            Content::Memory(memory) => memory,
        };
        // Pieces and memories are whole blocks.
        let (from, to) = (at / BLOCK, (at + buffer.len() as u64) / BLOCK);
        for range in memory.header().mapping.between(from, to) {
            let place = ((range.start - from) * BLOCK) as usize;
            memory.read(range.source, &mut buffer[place..][..(range.blocks * BLOCK) as usize])?;
        }
        Ok(())
    }
}

impl Copied {
    /// Copies a volume.
    pub(super) async fn of(volumes: Arc<dyn Volumes>, from: &str, id: String) -> Result<Self, DiskError> {
        // Made before, so that half a copy is removed, too.
        let copied = Self { volumes, id };
        copied.volumes.copy(from, &copied.id).await?;
        Ok(copied)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        let (volumes, id) = (self.volumes.clone(), std::mem::take(&mut self.id));
        runtime.spawn(async move {
            if let Err(error) = volumes.remove(&id).await {
                tracing::warn!(%error, "cannot remove a disk that was copied to be read; the next start removes it");
            }
        });
    }
}
