// SPDX-License-Identifier: Apache-2.0
//! Mapping of a memory's blocks to where their content is: sorted ranges that never overlap.
//!
//! A mapping of *changes* has a range for each block that changed since the parent: its content, or
//! [`Source::Zero`] if it is zero now. A block without a range is unchanged. A *whole* mapping has a range for
//! each block that is not zero, so a block without a range is zero. [`Mapping::over`] makes a whole mapping of
//! changes and the parent's whole mapping.

use std::collections::BTreeSet;

use crate::BuildId;

/// Where the content of a range is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// All its bytes are zero.
    Zero,
    /// In the data of a generation.
    Data {
        /// Generation.
        build: BuildId,
        /// First block in the generation's data; the others follow it.
        block: u64,
    },
}

/// Consecutive blocks with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First block of the memory.
    pub start: u64,
    /// Number of blocks, at least 1.
    pub blocks: u64,
    /// Where their content is.
    pub source: Source,
}

/// Sorted ranges that do not overlap. Neighbours that continue each other are one range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    ranges: Vec<Range>,
}

/// A range that cannot follow those of the mapping: it is empty, begins before their end, or ends beyond the
/// largest block number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a range of {blocks} blocks at {start} cannot follow one that ends at {end}")]
pub struct OutOfOrder {
    start: u64,
    blocks: u64,
    end: u64,
}

impl Source {
    /// Source of the block that is this many blocks further.
    fn further(self, blocks: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Data { build, block } => Self::Data { build, block: block + blocks },
        }
    }
}

impl Range {
    /// First block after the range.
    pub fn end(&self) -> u64 {
        self.start + self.blocks
    }

    /// Part of the range from block `from` up to, and without, block `to`.
    fn part(&self, from: u64, to: u64) -> Option<Self> {
        let (start, end) = (self.start.max(from), self.end().min(to));
        let source = self.source.further(start.checked_sub(self.start)?);
        (start < end).then(|| Self { start, blocks: end - start, source })
    }
}

impl Mapping {
    /// Appends a range after all others.
    pub fn push(&mut self, range: Range) -> Result<(), OutOfOrder> {
        let Range { start, blocks, source } = range;
        let end = self.ranges.last().map_or(0, Range::end);
        let place = if let Source::Data { block, .. } = source { block } else { 0 };
        let possible = start.checked_add(blocks).is_some() && place.checked_add(blocks).is_some();
        if blocks == 0 || start < end || !possible {
            return Err(OutOfOrder { start, blocks, end });
        }
        self.append(range);
        Ok(())
    }

    /// Appends a range that is known to follow the others.
    fn append(&mut self, range: Range) {
        match self.ranges.last_mut() {
            Some(last) if last.end() == range.start && last.source.further(last.blocks) == range.source => {
                last.blocks += range.blocks;
            }
            _ => self.ranges.push(range),
        }
    }

    /// Ranges in their order.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Index of the first range that ends after this block.
    fn first_after(&self, block: u64) -> usize {
        self.ranges.partition_point(|range| range.end() <= block)
    }

    /// Finds the source of a block; `None` if no range contains it. A binary search.
    pub fn find(&self, block: u64) -> Option<Source> {
        let range = self.ranges.get(self.first_after(block))?;
        range.part(block, block + 1).map(|part| part.source)
    }

    /// Returns the ranges from block `from` up to, and without, block `to`, cut at both.
    pub fn between(&self, from: u64, to: u64) -> impl Iterator<Item = Range> + '_ {
        let near = self.ranges[self.first_after(from)..].iter().take_while(move |range| range.start < to);
        near.filter_map(move |range| range.part(from, to))
    }

    /// Puts these changes over the whole mapping of their parent; returns the whole mapping of their generation.
    /// Linear in the number of ranges.
    #[must_use]
    pub fn over(&self, parent: &Self) -> Self {
        let mut whole = Self::default();
        let (mut below, mut done) = (0, 0);
        let mut inherit = |whole: &mut Self, from: u64, to: u64| {
            while let Some(range) = parent.ranges.get(below).filter(|range| range.start < to) {
                range.part(from, to).into_iter().for_each(|part| whole.append(part));
                if range.end() > to {
                    break;
                }
                below += 1;
            }
        };
        for range in &self.ranges {
            inherit(&mut whole, done, range.start);
            // Zero blocks of a whole mapping have no range.
            if range.source != Source::Zero {
                whole.append(*range);
            }
            done = range.end();
        }
        inherit(&mut whole, done, u64::MAX);
        whole
    }

    /// Generations whose data the mapping needs.
    pub fn builds(&self) -> BTreeSet<BuildId> {
        let of =
            |range: &Range| if let Source::Data { build, .. } = range.source { Some(build) } else { None };
        self.ranges.iter().filter_map(of).collect()
    }

    /// Number of blocks with content.
    pub fn data_blocks(&self) -> u64 {
        let data = self.ranges.iter().filter(|range| range.source != Source::Zero);
        data.map(|range| range.blocks).sum()
    }

    /// Mapping of the same blocks in the flat data of generation `build`.
    #[must_use]
    pub fn flat(&self, build: BuildId) -> Self {
        let mut flat = Self::default();
        for range in self.ranges.iter().filter(|range| range.source != Source::Zero) {
            flat.append(Range { source: Source::Data { build, block: range.start }, ..*range });
        }
        flat
    }

    /// Moves the content that is in the data of `from` into that of `into`, which has nothing else, in the order of the
    /// memory; returns the new mapping. It has the same blocks as this one.
    #[must_use]
    pub fn joined(&self, from: &BTreeSet<BuildId>, into: BuildId) -> Self {
        let (mut joined, mut next) = (Self::default(), 0);
        for range in &self.ranges {
            let source = match range.source {
                Source::Data { build, .. } if from.contains(&build) => {
                    next += range.blocks;
                    Source::Data { build: into, block: next - range.blocks }
                }
                other => other,
            };
            joined.append(Range { source, ..*range });
        }
        joined
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Blocks of the memories in the tests.
    pub(crate) const BLOCKS: u64 = 48;

    /// A change to some blocks: the first one, their number, and whether they are zero then.
    type Write = (u64, u64, bool);

    /// A memory that knows of each block in which generation, and at which place of its data, it was written.
    type Naive = Vec<Option<Source>>;

    pub(crate) fn build(number: u64) -> BuildId {
        BuildId::from_u128(u128::from(number) + 1)
    }

    /// Changes of a generation as mapping and, block by block, as model. Its content is stored in order.
    fn changes(build: BuildId, writes: &[Write]) -> (Mapping, Naive) {
        let mut zeroed: Vec<Option<bool>> = vec![None; BLOCKS as usize];
        for &(start, blocks, zero) in writes {
            let end = (start + blocks).min(BLOCKS);
            zeroed[start as usize..end as usize].fill(Some(zero));
        }
        let (mut mapping, mut model, mut next) = (Mapping::default(), Vec::new(), 0);
        for (start, zero) in (0..).zip(zeroed) {
            let source =
                zero.map(|zero| if zero { Source::Zero } else { Source::Data { build, block: next } });
            if let Some(source) = source {
                next += u64::from(source != Source::Zero);
                mapping.push(Range { start, blocks: 1, source }).expect("in order");
            }
            model.push(source);
        }
        (mapping, model)
    }

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        prop::collection::vec((0..BLOCKS, 1..12_u64, any::<bool>()), 0..8)
    }

    fn assert_sound(mapping: &Mapping) {
        for pair in mapping.ranges().windows(2) {
            assert!(pair[0].end() <= pair[1].start, "{pair:?}");
            let continued = pair[0].source.further(pair[0].blocks) == pair[1].source;
            assert!(pair[0].end() < pair[1].start || !continued, "not joined: {pair:?}");
        }
        assert!(mapping.ranges().iter().all(|range| range.blocks > 0));
    }

    proptest! {
        /// A chain of generations gives each block what was written to it last, and zero otherwise.
        #[test]
        fn a_chain_gives_every_block_what_was_written_last(chain in prop::collection::vec(writes(), 1..10)) {
            let (mut whole, mut model) = (Mapping::default(), vec![Source::Zero; BLOCKS as usize]);
            for (number, writes) in (0..).zip(&chain) {
                let (changed, written) = changes(build(number), writes);
                assert_sound(&changed);
                for block in 0..BLOCKS {
                    prop_assert_eq!(changed.find(block), written[block as usize]);
                }
                whole = changed.over(&whole);
                for (now, written) in model.iter_mut().zip(written) {
                    *now = written.unwrap_or(*now);
                }
                assert_sound(&whole);
                prop_assert!(whole.ranges().iter().all(|range| range.source != Source::Zero));
                for block in 0..BLOCKS + 2 {
                    let expected = model.get(block as usize).copied().filter(|source| *source != Source::Zero);
                    prop_assert_eq!(whole.find(block), expected, "block {}", block);
                }
            }
            let flat = whole.flat(build(98));
            assert_sound(&flat);
            for block in 0..BLOCKS {
                let there = whole.find(block).map(|_| Source::Data { build: build(98), block });
                prop_assert_eq!(flat.find(block), there);
            }
            let used = |source: &Source| if let Source::Data { build, .. } = source { Some(*build) } else { None };
            prop_assert_eq!(whole.builds(), model.iter().filter_map(used).collect());
        }

        #[test]
        fn a_part_has_the_same_sources(written in writes(), from in 0..BLOCKS, length in 0..BLOCKS) {
            let (mapping, model) = changes(build(0), &written);
            let to = (from + length).min(BLOCKS);
            let mut part = vec![None; BLOCKS as usize];
            for range in mapping.between(from, to) {
                prop_assert!(range.start >= from && range.end() <= to && range.blocks > 0);
                for block in 0..range.blocks {
                    part[(range.start + block) as usize] = Some(range.source.further(block));
                }
            }
            for block in 0..BLOCKS {
                let expected = model[block as usize].filter(|_| (from..to).contains(&block));
                prop_assert_eq!(part[block as usize], expected);
            }
        }

        /// What is joined lies in one piece, in the order of the memory, and everything else where it was.
        #[test]
        fn a_joined_chain_has_the_same_blocks(
            chain in prop::collection::vec(writes(), 1..10),
            from in prop::collection::btree_set(0..10_u64, 0..10),
        ) {
            let mut whole = Mapping::default();
            for (number, writes) in (0..).zip(&chain) {
                whole = changes(build(number), writes).0.over(&whole);
            }
            let from = from.into_iter().map(build).collect();
            let joined = whole.joined(&from, build(99));
            assert_sound(&joined);
            let mut next = 0;
            for block in 0..BLOCKS {
                let expected = whole.find(block).map(|source| match source {
                    Source::Data { build: of, .. } if from.contains(&of) => {
                        next += 1;
                        Source::Data { build: build(99), block: next - 1 }
                    }
                    other => other,
                });
                prop_assert_eq!(joined.find(block), expected, "block {}", block);
            }
        }
    }

    #[test]
    fn ranges_that_cannot_follow_are_refused() {
        let mut mapping = Mapping::default();
        let range =
            |start, blocks, block| Range { start, blocks, source: Source::Data { build: build(0), block } };
        mapping.push(range(4, 4, 0)).unwrap();
        for bad in [range(7, 1, 9), range(8, 0, 9), range(u64::MAX, 2, 9), range(8, 2, u64::MAX)] {
            assert!(mapping.push(bad).is_err(), "{bad:?}");
        }
        mapping.push(range(8, 1, 4)).unwrap();
        assert_eq!(mapping.ranges(), [range(4, 5, 0)]);
    }
}
