// SPDX-License-Identifier: Apache-2.0
//! Map of a file's extents, as its file system has it: `FS_IOC_FIEMAP` of linux/fiemap.h.

use std::{fs::File, io, os::fd::AsRawFd as _};

/// Part of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset of its first byte.
    pub start: u64,
    /// Offset of the first byte after it.
    pub end: u64,
}

/// `FS_IOC_FIEMAP`.
const FIEMAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;
/// `FIEMAP_FLAG_SYNC`: brings the content to the disk before.
const SYNC: u32 = 1;
/// `FIEMAP_EXTENT_LAST`: there is no extent after this one.
const LAST: u32 = 1;
/// Number of extents asked for at a time.
const COUNT: usize = 256;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Mapped {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    rest: [u32; 3],
}

/// `struct fiemap`, with room for extents.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Mapped; COUNT],
}

/// Lists the extents of a file of this length; those that adjoin are one. Fails with `EOPNOTSUPP` or `ENOTTY` if its
/// file system has no map.
pub(crate) fn of(file: &File, length: u64) -> io::Result<Vec<Extent>> {
    let (mut found, mut from) = (Vec::<Extent>::new(), 0);
    while from < length {
        let mut map = Box::new(Map {
            start: from,
            length: length - from,
            flags: SYNC,
            mapped: 0,
            count: COUNT as u32,
            reserved: 0,
            extents: [Mapped::default(); COUNT],
        });
        // SAFETY: the structure is as the kernel reads and writes it, with room for the number of extents that it says.
        if unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, &raw mut *map) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let extents = &map.extents[..(map.mapped as usize).min(COUNT)];
        for &Mapped { logical, length: bytes, .. } in extents {
            // The last one may be longer than the file, the first one begin before the part asked for.
            let (start, end) = (logical.max(from), logical.saturating_add(bytes).min(length));
            match found.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ if start < end => found.push(Extent { start, end }),
                _ => {}
            }
        }
        match extents.last() {
            Some(last) if last.flags & LAST == 0 => {
                from = last.logical.saturating_add(last.length).max(from + 1);
            }
            _ => break,
        }
    }
    Ok(found)
}
