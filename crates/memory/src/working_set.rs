// SPDX-License-Identifier: Apache-2.0
//! Working set of a guest: the parts of its memory that it used first after a resume, in their order. The next
//! resume reads them ahead.
//!
//! A file of it is a sequence of records without a head: the first block (8 bytes) and the number of blocks
//! (4 bytes), in little-endian order. It is a hint: half a record at the end, and records outside of the memory, are
//! ignored.

use std::{fs::File, io, os::unix::fs::FileExt as _};

/// Number of bytes of a record.
const RECORD: usize = 12;
/// Maximum number of records; further parts of the memory are not recorded.
const RECORDS_MAX: usize = 1024;
/// Maximum number of blocks of one record.
const BLOCKS_MAX: u32 = 512;

/// Consecutive blocks that were used together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Used {
    /// First block.
    pub(crate) start: u64,
    /// Number of blocks.
    pub(crate) blocks: u32,
}

/// A file with a working set, to which further records are appended.
#[derive(Debug)]
pub(crate) struct WorkingSet<'a> {
    file: &'a File,
    records: usize,
}

impl<'a> WorkingSet<'a> {
    /// Reads the records of a file, of a memory with this number of blocks.
    pub(crate) fn open(file: &'a File, memory: u64) -> io::Result<(Self, Vec<Used>)> {
        let mut bytes = vec![0; RECORDS_MAX * RECORD];
        let mut length = 0;
        loop {
            match file.read_at(&mut bytes[length..], length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        let (records, _) = bytes[..length].as_chunks::<RECORD>();
        let used = records.iter().map(parse);
        let inside = |used: &Used| {
            let end = used.start.checked_add(u64::from(used.blocks));
            (1..=BLOCKS_MAX).contains(&used.blocks) && end.is_some_and(|end| end <= memory)
        };
        Ok((Self { file, records: records.len() }, used.filter(inside).collect()))
    }

    /// Appends a record, unless there are enough.
    pub(crate) fn record(&mut self, used: Used) -> io::Result<()> {
        if self.records == RECORDS_MAX {
            return Ok(());
        }
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&used.start.to_le_bytes());
        record[8..].copy_from_slice(&used.blocks.to_le_bytes());
        self.file.write_all_at(&record, (self.records * RECORD) as u64)?;
        self.records += 1;
        Ok(())
    }
}

fn parse(record: &[u8; RECORD]) -> Used {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    Used { start: number(&record[..8]), blocks: number(&record[8..]) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_in_their_order_and_have_a_bound() {
        let file = tempfile::tempfile().unwrap();
        let (mut set, none) = WorkingSet::open(&file, 100).unwrap();
        assert_eq!(none, []);
        let all = [Used { start: 64, blocks: 16 }, Used { start: 0, blocks: 1 }];
        all.iter().for_each(|used| set.record(*used).unwrap());
        assert_eq!(WorkingSet::open(&file, 100).unwrap().1, all);
        assert_eq!(WorkingSet::open(&file, 79).unwrap().1, all[1..], "of a smaller memory");
        let (mut set, _) = WorkingSet::open(&file, 100).unwrap();
        (0..2 * RECORDS_MAX).for_each(|_| set.record(all[1]).unwrap());
        assert_eq!(WorkingSet::open(&file, 100).unwrap().1.len(), RECORDS_MAX);
    }

    #[test]
    fn what_is_no_record_is_ignored() {
        let file = tempfile::tempfile().unwrap();
        for bytes in [&[0xff; 12][..], &[0; 12], &[1, 0, 0, 0, 0, 0, 0, 0, 1]] {
            file.set_len(0).unwrap();
            file.write_all_at(bytes, 0).unwrap();
            assert_eq!(WorkingSet::open(&file, 100).unwrap().1, [], "{bytes:?}");
        }
    }
}
