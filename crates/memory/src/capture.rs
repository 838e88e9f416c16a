// SPDX-License-Identifier: Apache-2.0
//! Capture of a memory's changes into the data of a generation.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};
use wrenn_os::sparse_file::{self, Extent};

use crate::{
    BuildId,
    mapping::{Mapping, Range, Source},
};

/// Size in bytes of a block, a page of the guests.
pub const BLOCK_SIZE: u32 = sparse_file::BLOCK as u32;
/// Number of bytes that are copied at a time.
const PIECE: u64 = 1 << 20;

/// Changed parts of a memory.
pub trait Changes {
    /// Size of the whole memory in bytes.
    fn memory_size(&self) -> io::Result<u64>;
    /// Lists the parts that may have changed, in order; whole blocks.
    fn extents(&self) -> io::Result<Vec<Extent>>;
    /// Reads the memory at `offset`.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// Where a generation's data has its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One after another: the data has the changes only.
    Packed,
    /// At their place in the memory: the data is a copy of the parent's, and is the whole memory.
    Flat,
}

/// A file that a VMM wrote, whose holes are unchanged.
impl Changes for File {
    fn memory_size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn extents(&self) -> io::Result<Vec<Extent>> {
        sparse_file::own_extents(self)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

/// Writes changes into `data` of generation `build`, and returns their mapping. Zero blocks are not stored.
/// `before_each` is called before each piece, and ends the capture by an error, for example because the disk
/// is almost full.
pub fn capture(
    changes: &dyn Changes,
    build: BuildId,
    data: &File,
    layout: Layout,
    mut before_each: impl FnMut() -> io::Result<()>,
) -> io::Result<Mapping> {
    let mut target = Target { build, data, layout, next: 0, mapping: Mapping::default() };
    let mut buffer = vec![0; PIECE as usize];
    for extent in changes.extents()? {
        if !extent.start.is_multiple_of(u64::from(BLOCK_SIZE))
            || !extent.end.is_multiple_of(u64::from(BLOCK_SIZE))
        {
            let reason = format!("changes from byte {} to {} are no whole blocks", extent.start, extent.end);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let mut at = extent.start;
        while at < extent.end {
            before_each()?;
            let piece = &mut buffer[..(extent.end - at).min(PIECE) as usize];
            changes.read(piece, at)?;
            target.write(at / u64::from(BLOCK_SIZE), piece)?;
            at += piece.len() as u64;
        }
    }
    Ok(target.mapping)
}

/// Returns the mapping of the flat data of generation `build`, whose holes are zero.
pub fn mapping_of_flat(data: &File, build: BuildId) -> io::Result<Mapping> {
    let size = u64::from(BLOCK_SIZE);
    let mut mapping = Mapping::default();
    for Extent { start, end } in sparse_file::extents(data)? {
        let block = start / size;
        let (blocks, source) = (end.div_ceil(size) - block, Source::Data { build, block });
        mapping.push(Range { start: block, blocks, source }).map_err(io::Error::other)?;
    }
    Ok(mapping)
}

/// Data that is being written, and the mapping of what was written.
struct Target<'a> {
    build: BuildId,
    data: &'a File,
    layout: Layout,
    /// First free block of packed data.
    next: u64,
    mapping: Mapping,
}

impl Target<'_> {
    /// Writes consecutive blocks, the first of which has this number: runs with content and runs of zeros.
    fn write(&mut self, first: u64, blocks: &[u8]) -> io::Result<()> {
        for (run, zero) in sparse_file::runs(blocks) {
            let start = first + (run.start / BLOCK_SIZE as usize) as u64;
            self.write_run(start, &blocks[run], zero)?;
        }
        Ok(())
    }

    fn write_run(&mut self, start: u64, content: &[u8], zero: bool) -> io::Result<()> {
        let (size, length) = (u64::from(BLOCK_SIZE), content.len() as u64);
        let blocks = length / size;
        let place = match self.layout {
            Layout::Packed => self.next,
            Layout::Flat => start,
        };
        if !zero {
            self.data.write_all_at(content, place * size)?;
            start_writeback(self.data, place * size, length);
            self.next = place + blocks;
        } else if self.layout == Layout::Flat {
            // The parent may have content there.
            fallocate(
                self.data,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                start * size,
                length,
            )?;
        }
        let source = if zero { Source::Zero } else { Source::Data { build: self.build, block: place } };
        self.mapping.push(Range { start, blocks, source }).map_err(io::Error::other)
    }
}

/// Lets the kernel begin to write a part of a file to the disk, so that a later sync waits for less.
fn start_writeback(file: &File, offset: u64, length: u64) {
    // SAFETY: a system call on numbers. Where it is not possible, the sync does it.
    let _ = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset as libc::off64_t,
            length as libc::off64_t,
            libc::SYNC_FILE_RANGE_WRITE,
        )
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mapping::tests::{BLOCKS, build};

    const SIZE: usize = BLOCK_SIZE as usize;

    /// A memory of which some blocks changed, to these bytes.
    struct Memory(Vec<Option<u8>>);

    impl Changes for Memory {
        fn memory_size(&self) -> io::Result<u64> {
            Ok((self.0.len() * SIZE) as u64)
        }

        fn extents(&self) -> io::Result<Vec<Extent>> {
            let mut at = 0;
            let runs = self.0.chunk_by(|one, other| one.is_some() == other.is_some()).map(|run| {
                let start = at;
                at += (run.len() * SIZE) as u64;
                run[0].map(|_| Extent { start, end: at })
            });
            Ok(runs.flatten().collect())
        }

        fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let first = offset as usize / SIZE;
            for (block, byte) in buffer.chunks_mut(SIZE).zip(&self.0[first..]) {
                block.fill(byte.expect("only changes are read"));
            }
            Ok(())
        }
    }

    fn memory() -> impl Strategy<Value = Vec<Option<u8>>> {
        prop::collection::vec(prop::option::of(0..3_u8), BLOCKS as usize)
    }

    /// Reads a block by its source.
    fn read(files: &[File], source: Option<Source>) -> Vec<u8> {
        let mut content = vec![0; SIZE];
        if let Some(Source::Data { build: of, block }) = source {
            let index =
                (0..).zip(files).find(|(index, _)| build(*index) == of).expect("a known generation").1;
            index.read_exact_at(&mut content, block * SIZE as u64).expect("content");
        }
        content
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Generations give the memory of the last one, in either layout; zeroed blocks are zero, not inherited.
        #[test]
        fn generations_give_the_last_memory(chain in prop::collection::vec(memory(), 1..6)) {
            let (mut now, mut whole, mut files) = (vec![0; BLOCKS as usize], Mapping::default(), Vec::new());
            let flat = tempfile::tempfile().unwrap();
            flat.set_len(BLOCKS * SIZE as u64).unwrap();
            for (number, changes) in (0..).zip(chain) {
                for (byte, change) in now.iter_mut().zip(&changes) {
                    *byte = change.unwrap_or(*byte);
                }
                let (memory, data) = (Memory(changes), tempfile::tempfile().unwrap());
                let changed = capture(&memory, build(number), &data, Layout::Packed, || Ok(())).unwrap();
                prop_assert_eq!(data.metadata().unwrap().len(), changed.data_blocks() * SIZE as u64);
                whole = changed.over(&whole);
                files.push(data);
                let same = capture(&memory, build(number), &flat, Layout::Flat, || Ok(())).unwrap();
                prop_assert_eq!(same.data_blocks(), changed.data_blocks());
            }
            let places = mapping_of_flat(&flat, build(0)).unwrap();
            for block in 0..BLOCKS {
                let expected = vec![now[block as usize]; SIZE];
                let place = places.find(block);
                let at_its_place = Source::Data { build: build(0), block };
                prop_assert!(place.is_none_or(|place| place == at_its_place));
                prop_assert!(now[block as usize] == 0 || place.is_some(), "block {}", block);
                prop_assert_eq!(&read(&files, whole.find(block)), &expected, "block {}", block);
                let mut content = vec![0; SIZE];
                flat.read_exact_at(&mut content, block * SIZE as u64).unwrap();
                prop_assert_eq!(content, expected, "block {} of the flat file", block);
            }
        }
    }

    #[test]
    fn a_capture_that_may_not_go_on_ends_with_the_reason() {
        let data = tempfile::tempfile().unwrap();
        let memory = Memory(vec![Some(1); 600]);
        let mut pieces = 0;
        let full = || {
            pieces += 1;
            if pieces > 2 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        };
        let ended = capture(&memory, build(0), &data, Layout::Packed, full);
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(data.metadata().unwrap().len(), 2 * PIECE);
    }

    #[test]
    fn parts_of_blocks_are_refused() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 5000], 0).unwrap();
        file.set_len(5000).unwrap();
        let data = tempfile::tempfile().unwrap();
        assert!(capture(&file, build(0), &data, Layout::Packed, || Ok(())).is_err());
    }
}
