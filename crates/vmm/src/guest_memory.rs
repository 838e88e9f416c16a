// SPDX-License-Identifier: Apache-2.0
//! Memory of a guest as its VMM's process has it: a private mapping of a file. Pages that the guest wrote are
//! the process's own; all others are the file's.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
};

use rustix::fs::{FallocateFlags, fallocate};
use wrenn_memory::Changes;
use wrenn_os::sparse_file::{self, Extent};

/// Size in bytes of a page.
const PAGE: u64 = sparse_file::BLOCK as u64;
/// Number of pages whose state is read at a time, and of bytes whose content is.
const PAGES: u64 = 32 << 10;
const PIECE: u64 = 1 << 20;
/// Bits of an entry in `/proc/PID/pagemap`: the page is of the file or shared; it is swapped; it is present.
const OF_FILE: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;

/// Memory of a guest in a process. While the guest is paused, it does not change.
pub(crate) struct GuestMemory {
    pid: i32,
    /// Memory of the process.
    memory: File,
    /// Address of its first byte in the process.
    address: u64,
    /// Size in bytes.
    size: u64,
}

/// Private writable mapping of a whole file: its address and its size in bytes.
fn private_mapping(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_whitespace();
    let (range, access, offset, _device, inode) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let (start, end) = range.split_once('-')?;
    let [start, end, offset] = [start, end, offset].map(|number| u64::from_str_radix(number, 16));
    let (start, end) = (start.ok()?, end.ok()?);
    (access == "rw-p" && offset == Ok(0) && inode != "0").then(|| (start, end.saturating_sub(start)))
}

impl GuestMemory {
    /// Finds the guest's memory of this size in the process: no other mapping of a VMM is like it.
    pub(crate) fn find(pid: i32, size: u64) -> io::Result<Self> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let mut found = maps.lines().filter_map(private_mapping).filter(|(_, length)| *length == size);
        match (found.next(), found.next()) {
            (Some((address, _)), None) => {
                Ok(Self { pid, memory: File::open(format!("/proc/{pid}/mem"))?, address, size })
            }
            _ => Err(io::Error::other("the guest's memory is not where it should be in the VMM's process")),
        }
    }

    /// Copies the pages that the guest changed into an empty file, each at its offset, and, if `all`, those of the
    /// mapped file, too. The others are holes, and if `all`, pages with zeros are.
    pub(crate) fn copy(&self, all: bool, to: &File) -> io::Result<()> {
        to.set_len(self.size)?;
        let mut buffer = vec![0; PIECE as usize];
        if all {
            self.copy_file(to, &mut buffer)?;
        }
        self.changed(|first, end| {
            let mut at = first;
            while at < end {
                let piece = &mut buffer[..(end - at).min(PIECE) as usize];
                self.read(piece, at)?;
                if all { write_content(to, piece, at) } else { to.write_all_at(piece, at) }?;
                at += piece.len() as u64;
            }
            Ok(())
        })
    }

    /// Copies the mapped file without its holes. Reading them through the process would fill them.
    fn copy_file(&self, to: &File, buffer: &mut [u8]) -> io::Result<()> {
        let name = format!("{:x}-{:x}", self.address, self.address + self.size);
        let file = File::open(format!("/proc/{}/map_files/{name}", self.pid))?;
        for Extent { start: mut at, end } in sparse_file::extents(&file)? {
            while at < end {
                let piece = &mut buffer[..(end - at).min(PIECE) as usize];
                file.read_exact_at(piece, at)?;
                write_content(to, piece, at)?;
                at += piece.len() as u64;
            }
        }
        Ok(())
    }

    /// Calls `each` with the offsets of the first byte and the end of each run of changed pages.
    fn changed(&self, mut each: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid))?;
        let (pages, mut run) = (self.size / PAGE, None);
        let mut buffer = vec![0; (PAGES * 8) as usize];
        let mut first = 0;
        while first < pages {
            let count = (pages - first).min(PAGES);
            let entries = &mut buffer[..(count * 8) as usize];
            pagemap.read_exact_at(entries, (self.address / PAGE + first) * 8)?;
            for (page, entry) in (first..).zip(entries.chunks_exact(8)) {
                let entry = entry.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
                match (is_own(entry), run) {
                    (true, None) => run = Some(page),
                    (false, Some(start)) => {
                        each(start * PAGE, page * PAGE)?;
                        run = None;
                    }
                    _ => {}
                }
            }
            first += count;
        }
        run.map_or(Ok(()), |start| each(start * PAGE, pages * PAGE))
    }
}

/// What the guest changed since its VMM was started.
impl Changes for GuestMemory {
    fn memory_size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn extents(&self) -> io::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        self.changed(|start, end| {
            extents.push(Extent { start, end });
            Ok(())
        })?;
        Ok(extents)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.memory.read_exact_at(buffer, self.address + offset)
    }
}

/// Returns whether the page of this entry is the process's own.
fn is_own(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0
}

/// Writes runs of pages; those with zeros become holes.
fn write_content(to: &File, pages: &[u8], at: u64) -> io::Result<()> {
    for (run, zero) in sparse_file::runs(pages) {
        let start = at + run.start as u64;
        if zero {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(to, hole, start, run.len() as u64)?;
        } else {
            to.write_all_at(&pages[run], start)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::fd::AsRawFd as _, ptr};

    use super::*;

    /// A size that no other mapping of the test program has.
    const SIZE: u64 = 37 * PAGE;

    #[test]
    fn what_a_process_wrote_into_a_private_mapping_is_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(&[7; PAGE as usize], 3 * PAGE).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of an open file, unmapped at the end of the test.
        let address = unsafe {
            libc::mmap(ptr::null_mut(), SIZE as usize, access, libc::MAP_PRIVATE, file.as_raw_fd(), 0)
        };
        assert_ne!(address, libc::MAP_FAILED);
        // SAFETY: the mapping has this size, and nothing else refers to it.
        let pages = unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), SIZE as usize) };
        let page = PAGE as usize;
        assert_eq!(pages[3 * page], 7, "read, and not changed");
        pages[5 * page] = 1;
        pages[6 * page + 9] = 2;
        pages[36 * page] = 3;
        let memory = GuestMemory::find(std::process::id() as i32, SIZE).unwrap();
        let runs = memory.extents().unwrap().into_iter().map(|run| (run.start / PAGE, run.end / PAGE));
        assert_eq!(runs.collect::<Vec<_>>(), [(5, 7), (36, 37)]);
        for (all, read_page) in [(false, 0), (true, 7)] {
            let mut copied = tempfile::tempfile().unwrap();
            memory.copy(all, &copied).unwrap();
            let mut content = Vec::new();
            copied.read_to_end(&mut content).unwrap();
            assert_eq!(content.len() as u64, SIZE);
            assert_eq!(content[3 * page], read_page, "of the file, which is all: {all}");
            assert_eq!((content[5 * page], content[6 * page + 9], content[36 * page]), (1, 2, 3));
        }
        assert!(GuestMemory::find(std::process::id() as i32, SIZE + PAGE).is_err());
        // SAFETY: the mapping of above; `pages` is not used any more.
        unsafe { libc::munmap(address, SIZE as usize) };
    }

    #[test]
    fn only_private_writable_mappings_of_whole_files_are_a_guests_memory() {
        let of = |access: &str, offset: &str, inode: &str| {
            private_mapping(&format!("7f00-7f10 {access} {offset} 00:01 {inode}    /memfd:x (deleted)"))
        };
        assert_eq!(of("rw-p", "00000000", "12"), Some((0x7f00, 0x10)));
        for (access, offset, inode) in
            [("rw-s", "0", "12"), ("r--p", "0", "12"), ("rw-p", "1000", "12"), ("rw-p", "0", "0")]
        {
            assert_eq!(of(access, offset, inode), None);
        }
        assert_eq!(private_mapping("nonsense"), None);
        assert!(is_own(PRESENT) && is_own(SWAPPED) && !is_own(PRESENT | OF_FILE) && !is_own(0));
    }
}
