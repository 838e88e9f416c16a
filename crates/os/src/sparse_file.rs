// SPDX-License-Identifier: Apache-2.0
//! Sparse files: which parts have content and which are holes, copies that keep the holes, and runs of zeros that
//! become some.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use rustix::{
    fs::{SeekFrom, ftruncate, seek},
    io::Errno,
};

pub use crate::extent_map::Extent;

use crate::extent_map;

/// Size in bytes of the blocks that are holes or not, that of the file systems and of a guest's pages.
pub const BLOCK: usize = 4096;
/// Block of zeros: comparing with it is faster than looking at each byte.
const ZEROS: [u8; BLOCK] = [0; BLOCK];
/// Number of bytes copied at a time.
const PIECE: usize = 1 << 20;

/// Lists the extents of a file that are no holes, in order. Brings its content to the disk before. File systems may
/// report more than was written: whole blocks of theirs, or the whole file.
///
/// Where the file system has a map of its extents, that is asked: of a clone that was partly overwritten, `SEEK_DATA` of
/// XFS in Linux 6.1 gives shared parts as holes. Files in memory have no map.
pub fn extents(file: &File) -> io::Result<Vec<Extent>> {
    let length = file.metadata()?.len();
    match extent_map::of(file, length) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => {
            own_extents(file)
        }
        mapped => mapped,
    }
}

/// Lists the extents of a file that shares none with another one, by seeking. Does not bring them to the disk.
pub fn own_extents(file: &File) -> io::Result<Vec<Extent>> {
    let (mut found, mut from) = (Vec::new(), 0);
    loop {
        let start = match seek(file, SeekFrom::Data(from)) {
            // There is no content after it.
            Err(Errno::NXIO) => return Ok(found),
            start => start?,
        };
        from = seek(file, SeekFrom::Hole(start))?;
        found.push(Extent { start, end: from });
    }
}

/// Copies the content of `source` to the empty `target` and keeps holes. Calls `go_on` before each piece.
pub fn copy(source: &File, target: &File, go_on: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let length = source.metadata()?.len();
    ftruncate(target, length)?;
    let mut buffer = vec![0; PIECE];
    for Extent { start: mut at, end } in extents(source)? {
        // It may grow meanwhile.
        if at >= length {
            break;
        }
        while at < end {
            go_on()?;
            let wanted = PIECE.min((end - at) as usize);
            let read = source.read_at(&mut buffer[..wanted], at)?;
            if read == 0 {
                let reason = "the file shrank while it was copied";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
            }
            target.write_all_at(&buffer[..read], at)?;
            at += read as u64;
        }
    }
    Ok(())
}

/// Returns whether a block, or a part of one, has nothing but zeros.
pub fn is_zero(block: &[u8]) -> bool {
    block == &ZEROS[..block.len()]
}

/// Divides whole blocks, the last of which may be cut, into runs of blocks with content and of blocks of zeros:
/// the bytes of each run, and whether they are zeros.
pub fn runs(content: &[u8]) -> impl Iterator<Item = (Range<usize>, bool)> + '_ {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = content.get(start..).filter(|rest| !rest.is_empty())?;
        let mut kinds = rest.chunks(BLOCK).map(is_zero);
        let zero = kinds.next()?;
        let blocks = 1 + kinds.take_while(|kind| *kind == zero).count();
        let run = start..content.len().min(start + blocks * BLOCK);
        start = run.end;
        Some((run, zero))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn holes_are_left_out() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(listed(&file), []);
        file.set_len(1 << 20).unwrap();
        assert_eq!(listed(&file), []);
        for start in [0, 256 << 10, 1020 << 10] {
            file.write_all_at(&[1; 4096], start).unwrap();
        }
        let extents = listed(&file);
        let has = |at: u64| extents.iter().any(|extent| (extent.start..extent.end).contains(&at));
        assert!(has(0) && has(256 << 10) && has((1 << 20) - 1), "{extents:?}");
        assert!(!has(128 << 10) && !has(512 << 10), "{extents:?}");
        assert!(extents.windows(2).all(|pair| pair[0].end < pair[1].start));
    }

    fn listed(file: &File) -> Vec<Extent> {
        assert_eq!(own_extents(file).unwrap(), extents(file).unwrap());
        extents(file).unwrap()
    }

    #[test]
    fn holes_stay_holes_and_data_is_equal() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        source.set_len(64 << 20).unwrap();
        source.write_all_at(b"begin", 0).unwrap();
        source.write_all_at(&vec![7; 3 << 20], 20 << 20).unwrap();
        copy(&source, &target, || Ok(())).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 64 << 20);
        assert!(target.metadata().unwrap().blocks() * 512 < 8 << 20, "the copy is not sparse");
        let mut bytes = vec![0; 3 << 20];
        target.read_exact_at(&mut bytes, 20 << 20).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 7));
        target.read_exact_at(&mut bytes[..5], 0).unwrap();
        assert_eq!(&bytes[..5], b"begin");
    }

    #[test]
    fn runs_cover_everything_and_alternate() {
        let kinds =
            |content: &[u8]| runs(content).map(|(run, zero)| (run.start, run.end, zero)).collect::<Vec<_>>();
        assert_eq!(kinds(&[]), []);
        let mut content = vec![0; 5 * BLOCK + 10];
        content[BLOCK] = 1;
        content[3 * BLOCK - 1] = 1;
        content[5 * BLOCK + 9] = 1;
        let (one, three, five) = (BLOCK, 3 * BLOCK, 5 * BLOCK);
        assert_eq!(
            kinds(&content),
            [(0, one, true), (one, three, false), (three, five, true), (five, five + 10, false)]
        );
    }
}
