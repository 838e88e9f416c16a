// SPDX-License-Identifier: Apache-2.0
//! Checksums of a file, one for each range of it, to notice what a disk changed. They protect against damage,
//! not against someone who can write both.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use serde::{Deserialize, Serialize};
use wrenn_os::sparse_file::{self, Extent};
use xxhash_rust::xxh3::Xxh3Default;

use crate::BLOCK_SIZE;

/// Length in bytes of the range of one sum.
const RANGE: u64 = 1 << 20;

/// Checksums of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Length of the file in bytes.
    pub length: u64,
    /// XXH3 of each range, in hexadecimal digits. A range without content has none: it is empty.
    ranges: Vec<String>,
    /// Length of a range in bytes.
    range: u64,
}

/// Reason why a file is not the one that was summed.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// Its length is another one.
    #[error("it has {found} bytes and had {expected}")]
    Length {
        /// Current length in bytes.
        found: u64,
        /// Length when it was summed.
        expected: u64,
    },
    /// A byte is another one.
    #[error("bytes {start} to {end} are not what was written")]
    Content {
        /// Offset of the first byte of the damaged range.
        start: u64,
        /// Offset of the first byte after it.
        end: u64,
    },
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

impl Sums {
    /// Sums a file. Holes are not read.
    pub fn of(file: &File) -> io::Result<Self> {
        Self::of_nothing().after(file, &sparse_file::extents(file)?, &[])
    }

    /// Sums a file with content in these extents only, which is the same as the summed one was, except for changes.
    pub(crate) fn after(&self, file: &File, extents: &[Extent], changed: &[Extent]) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let same = length == self.length && self.range == RANGE;
        let mut changed = changed.iter().peekable();
        let mut ranges = Vec::with_capacity(self.ranges.len());
        for index in 0..length.div_ceil(RANGE) {
            let (start, end) = (index * RANGE, (index + 1) * RANGE);
            while changed.next_if(|extent| extent.end <= start).is_some() {}
            let touched = changed.peek().is_some_and(|extent| extent.start < end);
            ranges.push(match self.ranges.get(index as usize).filter(|_| same && !touched) {
                Some(former) => former.clone(),
                None => sum(file, extents, start, RANGE)?,
            });
        }
        Ok(Self { length, ranges, range: RANGE })
    }

    /// Sums of a file without content.
    pub(crate) fn of_nothing() -> Self {
        Self { length: 0, ranges: Vec::new(), range: RANGE }
    }

    /// Checks that a file is the one that was summed.
    pub fn check(&self, file: &File) -> Result<(), Damage> {
        let found = file.metadata()?.len();
        if found != self.length {
            return Err(Damage::Length { found, expected: self.length });
        }
        let extents = sparse_file::extents(file)?;
        let mut start = 0;
        for expected in &self.ranges {
            if *expected != sum(file, &extents, start, self.range)? {
                return Err(Damage::Content { start, end: (start + self.range).min(self.length) });
            }
            start += self.range;
        }
        if start < self.length {
            return Err(Damage::Content { start, end: self.length });
        }
        Ok(())
    }
}

/// Sums the range at `start`: its content, without zeros, and where it is. So it does not matter whether zeros
/// are a hole.
fn sum(file: &File, extents: &[Extent], start: u64, length: u64) -> io::Result<String> {
    /// Granularity at which zeros are left out.
    const BLOCK: usize = BLOCK_SIZE as usize;
    let (mut hasher, mut some, mut buffer) = (Xxh3Default::new(), false, vec![0; 64 << 10]);
    let end = start.saturating_add(length);
    let first = extents.partition_point(|extent| extent.end <= start);
    for extent in extents[first..].iter().take_while(|extent| extent.start < end) {
        // Whole blocks, counted from the file's beginning.
        let mut at = extent.start.max(start) / BLOCK as u64 * BLOCK as u64;
        let stop = extent.end.min(end);
        while at < stop {
            let wanted = (stop - at).min(buffer.len() as u64) as usize;
            file.read_exact_at(&mut buffer[..wanted], at)?;
            for (index, block) in buffer[..wanted].chunks(BLOCK).enumerate() {
                if !sparse_file::is_zero(block) {
                    hasher.update(&(at + (index * BLOCK) as u64).to_le_bytes());
                    hasher.update(block);
                    some = true;
                }
            }
            at += wanted as u64;
        }
    }
    Ok(if some { format!("{:016x}", hasher.digest()) } else { String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: u64 = (3 << 20) + 500;

    fn file() -> (File, Sums) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LENGTH).unwrap();
        for at in [0, 5000, (1 << 20) - 1, LENGTH - 1] {
            file.write_all_at(b"x", at).unwrap();
        }
        let sums = Sums::of(&file).unwrap();
        (file, sums)
    }

    #[test]
    fn a_flipped_bit_is_noticed_wherever_it_is() {
        let (file, sums) = file();
        sums.check(&file).unwrap();
        for at in [0, 1, 5000, (1 << 20) - 1, 1 << 20, (2 << 20) + 7, LENGTH - 1] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
            match sums.check(&file) {
                Err(Damage::Content { start, end }) => {
                    assert!((start..end).contains(&at), "{at}: {start} {end}");
                }
                other => panic!("{at}: {other:?}"),
            }
            file.write_all_at(&byte, at).unwrap();
            sums.check(&file).unwrap();
        }
        file.set_len(LENGTH - 1).unwrap();
        assert!(matches!(sums.check(&file), Err(Damage::Length { .. })));
    }

    /// A range that did not change keeps its sum, so that damage of the former file is not taken for its content.
    #[test]
    fn only_what_changed_is_summed_again() {
        let (file, sums) = file();
        let extents = sparse_file::extents(&file).unwrap();
        assert_eq!(sums.after(&file, &extents, &[]).unwrap(), sums);
        file.write_all_at(b"y", (2 << 20) + 5000).unwrap();
        let changed = [Extent { start: (2 << 20) + 4096, end: (2 << 20) + 8192 }];
        let extents = sparse_file::extents(&file).unwrap();
        let after = sums.after(&file, &extents, &changed).unwrap();
        assert_eq!(after, Sums::of(&file).unwrap());
        after.check(&file).unwrap();
        file.write_all_at(b"z", 5000).unwrap();
        let damaged = sums.after(&file, &extents, &changed).unwrap();
        assert!(matches!(damaged.check(&file), Err(Damage::Content { start: 0, .. })));
        assert_eq!(Sums::of_nothing().after(&file, &extents, &[]).unwrap(), Sums::of(&file).unwrap());
    }

    #[test]
    fn zeros_are_the_same_as_a_hole() {
        let (file, sums) = file();
        file.write_all_at(&[0; 8192], 2 << 20).unwrap();
        sums.check(&file).unwrap();
        let text = serde_json::to_string(&sums).unwrap();
        assert_eq!(serde_json::from_str::<Sums>(&text).unwrap(), sums);
    }

    #[test]
    fn sums_that_are_too_few_are_noticed() {
        let (file, mut sums) = file();
        sums.ranges.pop();
        assert!(sums.check(&file).is_err());
    }
}
