// SPDX-License-Identifier: Apache-2.0
//! Memory whose content lies in the data of several generations.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use crate::{
    BLOCK_SIZE, BuildId, Header,
    mapping::{Mapping, Range, Source},
};

/// Number of bytes that are copied at a time.
const PIECE: u64 = 1 << 20;

/// Memory of a generation, with the open data of all generations that it needs.
#[derive(Debug, Clone)]
pub struct Layers {
    header: Arc<Header>,
    data: BTreeMap<BuildId, Arc<File>>,
}

impl Layers {
    /// Memory with this header. Fails if the data of a generation that it needs is not among `data`.
    pub fn new(header: Header, data: BTreeMap<BuildId, Arc<File>>) -> io::Result<Self> {
        match header.mapping.builds().iter().find(|build| !data.contains_key(build)) {
            None => Ok(Self { header: Arc::new(header), data }),
            Some(build) => Err(io::Error::other(format!("the data of snapshot {build} is missing"))),
        }
    }

    /// Header with the mapping.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Open data of the generations, sorted by their build ids.
    pub fn data(&self) -> impl Iterator<Item = &Arc<File>> {
        self.data.values()
    }

    /// Reads consecutive blocks with content: those of a range of the mapping, or a part of one.
    pub fn read(&self, source: Source, buffer: &mut [u8]) -> io::Result<()> {
        match source {
            Source::Zero => buffer.fill(0),
            Source::Data { build, block } => {
                let file = self.data.get(&build).ok_or(io::ErrorKind::NotFound)?;
                file.read_exact_at(buffer, block * u64::from(BLOCK_SIZE))?;
            }
        }
        Ok(())
    }

    /// Writes the memory into an empty file, each block at its place.
    pub fn write_flat(&self, target: &File) -> io::Result<()> {
        target.set_len(self.header.memory_size)?;
        self.each_piece(|range, content| target.write_all_at(content, range.start * u64::from(BLOCK_SIZE)))
    }

    /// Writes the content that is in the data of `from` into the empty data of generation `into`, in the order of the
    /// memory; returns the new mapping, of the same memory.
    pub(crate) fn join(&self, from: &BTreeSet<BuildId>, into: BuildId, target: &File) -> io::Result<Mapping> {
        let mut next = 0;
        self.each_piece(|range, content| {
            if matches!(range.source, Source::Data { build, .. } if from.contains(&build)) {
                target.write_all_at(content, next)?;
                next += content.len() as u64;
            }
            Ok(())
        })?;
        Ok(self.header.mapping.joined(from, into))
    }

    /// Reads all content in the order of the memory, in pieces of bounded size.
    fn each_piece(&self, mut take: impl FnMut(Range, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let most = PIECE / u64::from(BLOCK_SIZE);
        let mut buffer = vec![0; PIECE as usize];
        for range in self.header.mapping.ranges() {
            let mut from = range.start;
            while from < range.end() {
                let to = range.end().min(from + most);
                for part in self.header.mapping.between(from, to) {
                    let content = &mut buffer[..(part.blocks * u64::from(BLOCK_SIZE)) as usize];
                    self.read(part.source, content)?;
                    take(part, content)?;
                }
                from = to;
            }
        }
        Ok(())
    }
}
