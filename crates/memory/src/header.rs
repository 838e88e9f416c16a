// SPDX-License-Identifier: Apache-2.0
//! Header of a generation: what it is a generation of, and the whole mapping of its memory.
//!
//! Format, version 1, in little-endian order:
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `WRENNMEM` |
//! | 4 | version |
//! | 4 | block size in bytes |
//! | 8 | memory size in bytes |
//! | 4 | generation: number of ancestors |
//! | 16 | build id |
//! | 16 | build id of the parent; zeros if it has none |
//! | 4 | number of build ids that follow |
//! | 16 each | build ids that ranges refer to |
//! | 8 | number of ranges that follow |
//! | 28 each | first block (8), number of blocks (8), index of the build id (4), first block in its data (8) |
//! | 8 | XXH3 of all bytes before |

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    BuildId,
    mapping::{Mapping, Range, Source},
};

const MAGIC: &[u8; 8] = b"WRENNMEM";
/// Version that is written, the only one that is read.
const VERSION: u32 = 1;
/// Smallest and largest block size in bytes.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=2 << 20;
/// Largest memory in bytes; bounds what a damaged header can make a reader allocate.
const MEMORY_MAX: u64 = 1 << 46;

/// Header of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Size of a block in bytes, a power of two.
    pub block_size: u32,
    /// Size of the memory in bytes, a multiple of the block size.
    pub memory_size: u64,
    /// Number of ancestors.
    pub generation: u32,
    /// Identity of the generation.
    pub build: BuildId,
    /// Generation whose changes it has.
    pub parent: Option<BuildId>,
    /// Whole mapping of the memory: a block without a range is zero.
    pub mapping: Mapping,
}

/// Reason why a header is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is none, or was cut, or a byte was changed.
    #[error("the header of the memory is damaged: {0}")]
    Damaged(&'static str),
    /// Another release wrote it.
    #[error("the header of the memory has version {0}, and this release reads version {VERSION}")]
    Version(u32),
}

use HeaderError::Damaged;

/// Reads fields of fixed length one after another.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Damaged("it is too short"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn build(&mut self) -> Result<Option<BuildId>, HeaderError> {
        self.bytes().map(BuildId::from_bytes)
    }
}

impl Header {
    /// Number of blocks of the memory.
    pub fn blocks(&self) -> u64 {
        self.memory_size / u64::from(self.block_size)
    }

    /// Encodes the header.
    pub fn encode(&self) -> Vec<u8> {
        let builds: Vec<BuildId> = self.mapping.builds().into_iter().collect();
        let nil = [0; BuildId::LENGTH];
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.block_size.to_le_bytes());
        bytes.extend(self.memory_size.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.build.to_bytes());
        bytes.extend(self.parent.map_or(nil, BuildId::to_bytes));
        bytes.extend((builds.len() as u32).to_le_bytes());
        builds.iter().for_each(|build| bytes.extend(build.to_bytes()));
        let data = self.mapping.ranges().iter().filter_map(|range| match range.source {
            Source::Zero => None,
            Source::Data { build, block } => Some((range, build, block)),
        });
        bytes.extend((data.clone().count() as u64).to_le_bytes());
        for (range, build, block) in data {
            let index = builds.binary_search(&build).unwrap_or_default() as u32;
            bytes.extend(range.start.to_le_bytes());
            bytes.extend(range.blocks.to_le_bytes());
            bytes.extend(index.to_le_bytes());
            bytes.extend(block.to_le_bytes());
        }
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    /// Decodes a header. Any changed byte is noticed.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        if !bytes.starts_with(MAGIC) {
            return Err(Damaged("it does not begin as one"));
        }
        let mut fields = Fields(&bytes[MAGIC.len()..]);
        // Before the sum: a later version may have another one.
        let version = fields.u32()?;
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let (content, sum) = bytes.split_last_chunk().ok_or(Damaged("it is too short"))?;
        if xxh3_64(content) != u64::from_le_bytes(*sum) {
            return Err(Damaged("its checksum is wrong"));
        }
        fields.0 = content.get(MAGIC.len() + 4..).ok_or(Damaged("it is too short"))?;
        let (block_size, memory_size, generation) = (fields.u32()?, fields.u64()?, fields.u32()?);
        let size_fits = block_size.is_power_of_two() && BLOCK_SIZES.contains(&block_size);
        if !size_fits || memory_size > MEMORY_MAX || !memory_size.is_multiple_of(u64::from(block_size)) {
            return Err(Damaged("its sizes are impossible"));
        }
        let build = fields.build()?.ok_or(Damaged("it has no build id"))?;
        let parent = fields.build()?;
        let mut builds = Vec::new();
        for _ in 0..fields.u32()? {
            builds.push(fields.build()?.ok_or(Damaged("it refers to no build id"))?);
        }
        let mapping = ranges(&mut fields, &builds)?;
        let header = Self { block_size, memory_size, generation, build, parent, mapping };
        let end = header.mapping.ranges().last().map_or(0, Range::end);
        match (fields.0, end > header.blocks()) {
            ([], false) => Ok(header),
            (_, true) => Err(Damaged("its ranges are larger than the memory")),
            (_, false) => Err(Damaged("it is too long")),
        }
    }
}

fn ranges(fields: &mut Fields<'_>, builds: &[BuildId]) -> Result<Mapping, HeaderError> {
    let mut mapping = Mapping::default();
    for _ in 0..fields.u64()? {
        let (start, blocks) = (fields.u64()?, fields.u64()?);
        let build = *builds.get(fields.u32()? as usize).ok_or(Damaged("a range refers to no build id"))?;
        let source = Source::Data { build, block: fields.u64()? };
        mapping.push(Range { start, blocks, source }).map_err(|_| Damaged("its ranges are out of order"))?;
    }
    Ok(mapping)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::*;

    use super::*;
    use crate::mapping::tests::{BLOCKS, build};

    fn header(pieces: &[(u64, u64, u64)]) -> Header {
        let (mut mapping, mut next) = (Mapping::default(), 0);
        for &(gap, blocks, number) in pieces {
            let source = Source::Data { build: build(number), block: next * 3 };
            mapping.push(Range { start: next + gap, blocks, source }).expect("in order");
            next += gap + blocks;
        }
        let memory_size = (next + BLOCKS) * 4096;
        Header {
            block_size: 4096,
            memory_size,
            generation: 3,
            build: build(7),
            parent: Some(build(6)),
            mapping,
        }
    }

    proptest! {
        #[test]
        fn a_header_is_read_as_it_was_written(pieces in prop::collection::vec((0..9_u64, 1..9_u64, 0..4_u64), 0..20)) {
            let header = header(&pieces);
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        /// Whatever follows a right sum: a header is refused or sound, and nothing is allocated beyond its length.
        #[test]
        fn whatever_a_header_says_its_reader_does_not_break(mut bytes in prop::collection::vec(any::<u8>(), 60..400)) {
            bytes[..12].copy_from_slice(&header(&[]).encode()[..12]);
            let sum = xxh3_64(&bytes).to_le_bytes();
            bytes.extend(sum);
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(header.mapping.ranges().iter().all(|range| range.end() <= header.blocks()));
            }
        }
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let bytes = header(&[(1, 2, 0), (0, 5, 1), (7, 1, 0)]).encode();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(Header::decode(&flipped).is_err(), "bit {bit} of byte {at}");
            }
            assert!(Header::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(Header::decode(&longer).is_err());
    }

    /// The files stay, and each later release reads them.
    #[test]
    fn headers_of_all_versions_are_read() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/headers/1.bin");
        let expected = header(&[(1, 2, 0), (0, 5, 1), (7, 1, 0)]);
        assert_eq!(Header::decode(&fs::read(&golden).unwrap()), Ok(expected));
        let mut newer = fs::read(&golden).unwrap();
        newer[8] = 2;
        assert_eq!(Header::decode(&newer), Err(HeaderError::Version(2)));
    }
}
