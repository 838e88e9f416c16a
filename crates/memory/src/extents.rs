// SPDX-License-Identifier: Apache-2.0
//! Extents of sparse files: which parts have content, and which are holes.

use std::{fs::File, io};

use rustix::{fs::SeekFrom, io::Errno};

/// Part of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset of its first byte.
    pub start: u64,
    /// Offset of the first byte after it.
    pub end: u64,
}

/// Lists the extents of a file that are no holes, in order. File systems may report more than was written:
/// whole blocks of theirs, or the whole file.
pub fn of_data(file: &File) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut from = 0;
    loop {
        let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
            // There is no content after it.
            Err(Errno::NXIO) => return Ok(extents),
            found => found?,
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        extents.push(Extent { start, end });
        from = end;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn holes_are_left_out() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(of_data(&file).unwrap(), []);
        file.set_len(1 << 20).unwrap();
        assert_eq!(of_data(&file).unwrap(), []);
        for start in [0, 256 << 10, 1020 << 10] {
            file.write_all_at(&[1; 4096], start).unwrap();
        }
        let extents = of_data(&file).unwrap();
        let has = |at: u64| extents.iter().any(|extent| (extent.start..extent.end).contains(&at));
        assert!(has(0) && has(256 << 10) && has((1 << 20) - 1), "{extents:?}");
        assert!(!has(128 << 10) && !has(512 << 10), "{extents:?}");
        assert!(extents.windows(2).all(|pair| pair[0].end < pair[1].start));
    }
}
