// SPDX-License-Identifier: Apache-2.0
//! Copying file content: by sharing extents (reflink), or without zeros.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use rustix::fs::{ftruncate, ioctl_ficlone};
use wrenn_os::sparse_file;

/// Number of bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// Shares the extents of `source` with `target`, in microseconds for any size.
pub(crate) fn reflink(source: &File, target: &File) -> io::Result<()> {
    Ok(ioctl_ficlone(target, source)?)
}

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
        for (run, zero) in sparse_file::runs(piece) {
            if !zero {
                target.write_all_at(&piece[run.clone()], at + run.start as u64)?;
            }
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
