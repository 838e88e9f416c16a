// SPDX-License-Identifier: Apache-2.0
//! Checks the records at the end of a zip archive before a library reads them: it reserves memory for as many entries as they
//! claim, and searches the whole archive for other records where they do not fit together. So they must fit together here,
//! and everything that the library would use instead is refused.

use std::{fs::File, os::unix::fs::FileExt as _};

use crate::{
    error::{ContextError, unreadable},
    limits::Limits,
};

/// Size of the end record without its comment, and maximum size of the comment.
const END: u64 = 22;
const COMMENT: u64 = 65_535;
/// Sizes of the records of ZIP64: the one that says where the other one is, and that one.
const LOCATOR: u64 = 20;
const END64: u64 = 56;
/// Bytes of that one that its own size does not count, and the maximum size of what may follow in it.
const UNCOUNTED: u64 = 12;
const EXTENSION: u64 = 64 << 10;
/// Minimum size of an entry in the central directory.
const ENTRY: u64 = 46;

/// Where the central directory is, and what it claims to have.
#[derive(Debug, PartialEq, Eq)]
struct Directory {
    entries: u64,
    size: u64,
    offset: u64,
    /// Where the record begins that says this.
    end: u64,
}

/// Checks that the archive has one end, that the central directory is right before it, and that it is within the limits.
pub(super) fn check(upload: &File, limits: &Limits) -> Result<(), ContextError> {
    let directory = directory(upload)?;
    if directory.entries > u64::from(limits.entries) {
        return Err(ContextError::TooMany { what: "entries", limit: limits.entries.into() });
    }
    let is_before_end = directory.offset.checked_add(directory.size) == Some(directory.end);
    if !is_before_end || directory.entries * ENTRY > directory.size {
        return Err(damaged("its list of files is not where its end says"));
    }
    if directory.size > limits.name_bytes() {
        let what = "the list of files in the archive has";
        return Err(ContextError::TooLarge { what, limit: limits.name_bytes() });
    }
    if directory.entries > 0 && bytes(upload, directory.offset, 4)? != b"PK\x01\x02" {
        return Err(damaged("its list of files is missing"));
    }
    Ok(())
}

fn directory(upload: &File) -> Result<Directory, ContextError> {
    let length = upload.metadata()?.len();
    let from = length.saturating_sub(END + COMMENT);
    let tail = bytes(upload, from, length - from)?;
    let at = tail.windows(4).rposition(|four| four == b"PK\x05\x06");
    let at = at.ok_or_else(|| damaged("its end is missing"))?;
    let (record, end) = (&tail[at..], from + at as u64);
    if record.len() < END as usize || END + number(record, 20, 2) != record.len() as u64 {
        return Err(damaged("it is cut, or something follows its end"));
    }
    let (entries, size, offset) = (number(record, 10, 2), number(record, 12, 4), number(record, 16, 4));
    let may_be_64 = entries == 0xffff || size == 0xffff_ffff || offset == 0xffff_ffff;
    if may_be_64 && let Some(directory) = directory64(upload, end)? {
        return Ok(directory);
    }
    if number(record, 4, 2) != 0 || number(record, 6, 2) != 0 || number(record, 8, 2) != entries {
        return Err(damaged("it is one of several parts; pack one archive"));
    }
    Ok(Directory { entries, size, offset, end })
}

/// Reads the records of ZIP64, if there are some before the end record.
fn directory64(upload: &File, end: u64) -> Result<Option<Directory>, ContextError> {
    let Some(at) = end.checked_sub(LOCATOR) else { return Ok(None) };
    let locator = bytes(upload, at, LOCATOR)?;
    if !locator.starts_with(b"PK\x06\x07") {
        return Ok(None);
    }
    let (disk, end64, disks) = (number(&locator, 4, 4), number(&locator, 8, 8), number(&locator, 16, 4));
    let wrong = || damaged("the records at its end do not fit together");
    let room = at.checked_sub(end64).filter(|room| (END64..=END64 + EXTENSION).contains(room));
    let room = room.ok_or_else(wrong)?;
    let record = bytes(upload, end64, END64)?;
    let entries = number(&record, 32, 8);
    let fits = record.starts_with(b"PK\x06\x06")
        && number(&record, 4, 8) == room - UNCOUNTED
        && number(&record, 16, 4) == 0
        && number(&record, 20, 4) == disk
        && number(&record, 24, 8) == entries
        && disks <= 1;
    if !fits {
        return Err(wrong());
    }
    let (size, offset) = (number(&record, 40, 8), number(&record, 48, 8));
    Ok(Some(Directory { entries, size, offset, end: end64 }))
}

fn bytes(upload: &File, from: u64, length: u64) -> Result<Vec<u8>, ContextError> {
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| damaged("it is too large"))?];
    upload.read_exact_at(&mut bytes, from).map_err(unreadable)?;
    Ok(bytes)
}

/// Returns the number of this many bytes, the lowest first.
fn number(record: &[u8], at: usize, length: usize) -> u64 {
    record[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn damaged(problem: &str) -> ContextError {
    ContextError::Damaged { problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn end(entries: u16, size: u32, offset: u32, comment: &[u8]) -> Vec<u8> {
        let mut record = b"PK\x05\x06\0\0\0\0".to_vec();
        record.extend([entries.to_le_bytes(), entries.to_le_bytes()].concat());
        record.extend([size.to_le_bytes(), offset.to_le_bytes()].concat());
        record.extend((comment.len() as u16).to_le_bytes());
        record.extend(comment);
        record
    }

    fn end64(entries: u64, size: u64, offset: u64, at: u64) -> Vec<u8> {
        let mut record = b"PK\x06\x06".to_vec();
        record.extend((END64 - UNCOUNTED).to_le_bytes());
        record.extend([0; 12]);
        record.extend([entries, entries, size, offset].map(u64::to_le_bytes).concat());
        record.extend(b"PK\x06\x07\0\0\0\0");
        record.extend(at.to_le_bytes());
        record.extend(1_u32.to_le_bytes());
        record
    }

    /// Returns how an archive is judged that is these parts.
    fn judged(parts: &[&[u8]]) -> Result<(), ContextError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&parts.concat()).unwrap();
        check(&file, &Limits { entries: 3, ..Limits::default() })
    }

    #[test]
    fn a_directory_right_before_its_end_is_taken() {
        let list = [&b"PK\x01\x02"[..], &[0; 96]].concat();
        judged(&[&end(0, 0, 0, b"")]).unwrap();
        judged(&[b"files", &list, &end(2, 100, 5, b"comment")]).unwrap();
        let (marked, end64) = (end(0xffff, u32::MAX, u32::MAX, b""), end64(2, 100, 5, 105));
        judged(&[b"files", &list, &end64, &marked]).unwrap();
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let list = [&b"PK\x01\x02"[..], &[0; 96]].concat();
        let right = end(2, 100, 5, b"");
        let marked = end(0xffff, u32::MAX, u32::MAX, b"");
        let cases: [&[&[u8]]; 10] = [
            &[b"PK\x03\x04 and no end"],
            &[b"files", &list, &right[..21]],
            &[b"files", &list, &right, b"more"],
            &[b"files", &list, &end(2, 100, 4, b"")],
            &[b"files", &list, &end(2, 99, 5, b"")],
            &[b"files", &list, &end(2, u32::MAX, u32::MAX, b"")],
            &[b"files", &[0; 100], &right],
            &[b"files", &list[..91], &end(2, 91, 5, b"")],
            // Its numbers are never those of the record before.
            &[b"files", &list, &right, &end(1, 7, 7, b"")],
            &[b"files", &list, &end64(2, 100, 5, 104), &marked],
        ];
        for (at, case) in cases.into_iter().enumerate() {
            let judged = judged(case);
            assert!(matches!(judged, Err(ContextError::Damaged { .. })), "{at}: {judged:?}");
        }
    }

    #[test]
    fn what_is_claimed_is_within_the_limits() {
        let list = [&b"PK\x01\x02"[..], &[0; 2000]].concat();
        let many = judged(&[&list, &end(4, 2004, 0, b"")]);
        assert!(matches!(many, Err(ContextError::TooMany { limit: 3, .. })), "{many:?}");
        let long = judged(&[&list, &end(2, 2004, 0, b"")]);
        assert!(matches!(long, Err(ContextError::TooLarge { limit: 1536, .. })), "{long:?}");
        let marked = end(0xffff, u32::MAX, u32::MAX, b"");
        let claimed = judged(&[&list, &end64(u64::MAX, 2004, 0, 2004), &marked]);
        assert!(matches!(claimed, Err(ContextError::TooMany { .. })), "{claimed:?}");
    }
}
