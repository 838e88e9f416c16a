// SPDX-License-Identifier: Apache-2.0
//! Copying file content: by sharing extents (reflink) or by sparse copies.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use rustix::{
    fs::{SeekFrom, ftruncate, ioctl_ficlone, seek},
    io::Errno,
};

/// Number of bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// Shares the extents of `source` with `target`, in microseconds for any size.
pub(crate) fn reflink(source: &File, target: &File) -> io::Result<()> {
    Ok(ioctl_ficlone(target, source)?)
}

/// Copies the data of `source` to `target` and keeps holes. Calls `go_on` before each piece.
pub(crate) fn sparse_copy(
    source: &File,
    target: &File,
    go_on: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    let length = source.metadata()?.len();
    ftruncate(target, length)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let start = match seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(source, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            go_on()?;
            let wanted = CHUNK.min((end - at) as usize);
            let read = source.read_at(&mut buffer[..wanted], at)?;
            if read == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the file shrank while it was copied",
                ));
            }
            target.write_all_at(&buffer[..read], at)?;
            at += read as u64;
        }
    }
    Ok(())
}

/// Block size in which zeros become holes, that of the file systems on both sides.
const BLOCK: usize = 4096;

/// Copies `length` bytes of a block device, which cannot report holes, to `target`: blocks of zeros become
/// holes. Calls `go_on` before each piece.
pub(crate) fn copy_without_zeros(
    source: &File,
    target: &File,
    length: u64,
    go_on: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    ftruncate(target, length)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        go_on()?;
        let piece = &mut buffer[..CHUNK.min((length - at) as usize)];
        source.read_exact_at(piece, at)?;
        let mut from = None;
        for begin in (0..piece.len()).step_by(BLOCK) {
            let block = &piece[begin..piece.len().min(begin + BLOCK)];
            let zero = block.iter().all(|&byte| byte == 0);
            match (zero, from) {
                (false, None) => from = Some(begin),
                (true, Some(start)) => {
                    target.write_all_at(&piece[start..begin], at + start as u64)?;
                    from = None;
                }
                _ => {}
            }
        }
        if let Some(start) = from {
            target.write_all_at(&piece[start..], at + start as u64)?;
        }
        at += piece.len() as u64;
    }
    Ok(())
}

/// Returns whether files in `dir` can share extents, by trying it.
pub(crate) fn can_reflink(dir: &Path) -> io::Result<bool> {
    let source = tempfile_in(dir, ".reflink-probe-source")?;
    source.1.write_all_at(&[1; 4096], 0)?;
    let target = tempfile_in(dir, ".reflink-probe-target")?;
    Ok(reflink(&source.1, &target.1).is_ok())
}

/// File that is removed on drop.
struct Removed(std::path::PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // The file may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn tempfile_in(dir: &Path, name: &str) -> io::Result<(Removed, File)> {
    let path = dir.join(name);
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    Ok((Removed(path), file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn holes_stay_holes_and_data_is_equal() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        source.set_len(64 << 20).unwrap();
        source.write_all_at(b"begin", 0).unwrap();
        source.write_all_at(&vec![7; 3 << 20], 20 << 20).unwrap();
        sparse_copy(&source, &target, || Ok(())).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 64 << 20);
        assert!(target.metadata().unwrap().blocks() * 512 < 8 << 20, "the copy is not sparse");
        let mut bytes = vec![0; 3 << 20];
        target.read_exact_at(&mut bytes, 20 << 20).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 7));
        target.read_exact_at(&mut bytes[..5], 0).unwrap();
        assert_eq!(&bytes[..5], b"begin");
    }

    #[test]
    fn zeros_of_a_device_become_holes() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut bytes = vec![0; (5 << 20) + 700];
        bytes[4096] = 1;
        bytes[(2 << 20) - 1..(2 << 20) + 9000].fill(2);
        *bytes.last_mut().unwrap() = 3;
        source.write_all_at(&bytes, 0).unwrap();
        copy_without_zeros(&source, &target, bytes.len() as u64, || Ok(())).unwrap();
        let mut copied = vec![9; bytes.len()];
        target.read_exact_at(&mut copied, 0).unwrap();
        assert!(copied == bytes, "the copy differs");
        assert!(target.metadata().unwrap().blocks() * 512 < 64 << 10, "the copy is not sparse");
        assert_eq!(target.metadata().unwrap().len(), bytes.len() as u64);
    }
}
