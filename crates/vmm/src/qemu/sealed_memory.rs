// SPDX-License-Identifier: Apache-2.0
//! Copies of memory files in memory, which no process can change. QEMU opens the file of its memory for
//! writing, even where it maps it privately; a memory that several microVMs share must not be one that a
//! microVM can write.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use wrenn_os::sparse_file;

/// Maximum size in bytes of the copies that are kept for the next microVM, holes not counted. A copy that
/// microVMs use lives as long as they do.
const KEPT_BYTES: u64 = 1 << 30;

/// Identity of a file's content: its place, and its number, length and time of change.
type Seen = (PathBuf, u64, u64, i64, i64);

/// Copies of the memory files that were used last.
#[derive(Debug, Default)]
pub(super) struct SealedMemory {
    copies: Mutex<VecDeque<(Seen, Arc<File>)>>,
}

impl SealedMemory {
    /// Returns the copy of a file; copies it if there is none of its current content. Blocks meanwhile.
    pub(super) fn of(&self, path: &Path) -> io::Result<Arc<File>> {
        let meta = fs::metadata(path)?;
        let seen = (path.to_owned(), meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec());
        // Locked while copying: who comes meanwhile needs the same copy.
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = copies.iter().position(|(of, _)| *of == seen)
            && let Some(found) = copies.remove(at)
        {
            copies.push_front(found);
        } else {
            copies.retain(|(of, _)| of.0 != path);
            copies.push_front((seen, Arc::new(sealed(&File::open(path)?)?)));
        }
        let copy = copies.front().map(|(_, copy)| copy.clone());
        keep_within(&mut copies, KEPT_BYTES);
        copy.ok_or_else(|| io::Error::other("a copy was lost"))
    }
}

/// Drops the copies that were used longest ago, until the others have at most `most` bytes.
fn keep_within(copies: &mut VecDeque<(Seen, Arc<File>)>, most: u64) {
    let mut bytes = 0;
    let kept = copies.iter().take_while(|(_, copy)| {
        bytes += copy.metadata().map_or(u64::MAX / 4, |meta| meta.blocks() * 512);
        bytes <= most
    });
    let kept = kept.count();
    copies.truncate(kept);
}

/// Copies a file, without its holes, into memory that cannot be changed any more.
fn sealed(from: &File) -> io::Result<File> {
    let copy: File = memfd_create("wrenn-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into();
    sparse_file::copy(from, &copy, || Ok(()))?;
    fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsRawFd as _, unix::fs::FileExt as _};

    use super::*;

    #[test]
    fn a_copy_is_shared_until_its_file_changes_and_cannot_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let file = File::create(&path).unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(b"content", 2 << 20).unwrap();
        let memory = SealedMemory::default();
        let copy = memory.of(&path).unwrap();
        assert!(Arc::ptr_eq(&copy, &memory.of(&path).unwrap()));
        let mut content = [0; 7];
        copy.read_exact_at(&mut content, 2 << 20).unwrap();
        assert_eq!(&content, b"content");
        let room = copy.metadata().unwrap().blocks() * 512;
        assert!(room <= 2 << 20, "holes take no memory");
        let mut copies =
            VecDeque::from_iter(["a", "b", "c"].map(|name| ((name.into(), 0, 0, 0, 0), copy.clone())));
        keep_within(&mut copies, 2 * room);
        assert_eq!(copies.iter().map(|(seen, _)| seen.0.to_str().unwrap()).collect::<Vec<_>>(), ["a", "b"]);
        // As QEMU opens it.
        let again = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let again = File::options().read(true).write(true).open(again).unwrap();
        assert!(again.write_all_at(b"x", 0).is_err() && again.set_len(0).is_err());
        file.write_all_at(b"changed", 2 << 20).unwrap();
        let other = memory.of(&path).unwrap();
        other.read_exact_at(&mut content, 2 << 20).unwrap();
        assert_eq!(&content, b"changed");
    }
}
