// SPDX-License-Identifier: Apache-2.0
//! Visits all entries of a directory tree, without following symbolic links, each directory before what is in it.

use std::{
    ffi::CStr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat},
    io::Errno,
};

use crate::error::{ArchiveError, failed, refused};

/// Maximum number of directories within each other.
const DEPTH: usize = 512;

/// An entry.
pub(crate) struct Found<'a> {
    /// The directory that it is in; itself, if it is the top of the tree.
    pub(crate) parent: BorrowedFd<'a>,
    /// Name in that directory; `.` for the top.
    pub(crate) name: &'a CStr,
    /// Path from the top, which is `.`.
    pub(crate) path: &'a [u8],
    pub(crate) stat: Stat,
}

impl Found<'_> {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Opens it for reading, unless a symbolic link is in its place now.
    pub(crate) fn open(&self, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(self.parent, self.name, flags, Mode::empty())
    }
}

/// A directory whose entries are being visited.
struct Level {
    fd: OwnedFd,
    entries: Dir,
    /// Length of its path.
    length: usize,
}

/// Visits the tree below `top`, which is a directory, or a symbolic link to one. What vanishes meanwhile is left out.
pub(crate) fn walk(
    top: &Path,
    visit: &mut dyn FnMut(&Found<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    walk_chosen(top, &mut |found| visit(found).map(|()| true))
}

/// Visits a tree in the same way, but nothing that is in a directory for which `visit` returns false.
pub(crate) fn walk_chosen(
    top: &Path,
    visit: &mut dyn FnMut(&Found<'_>) -> Result<bool, ArchiveError>,
) -> Result<(), ArchiveError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd =
        openat(CWD, top, flags, Mode::empty()).map_err(failed("open", top.as_os_str().as_encoded_bytes()))?;
    let stat = fstat(&fd).map_err(failed("stat", b"."))?;
    if !visit(&Found { parent: fd.as_fd(), name: c".", path: b".", stat })? {
        return Ok(());
    }
    let mut path = Vec::new();
    let mut open = vec![level(fd, &path)?];
    while let Some(level_now) = open.last_mut() {
        path.truncate(level_now.length);
        let Some(entry) = level_now.entries.read() else {
            open.pop();
            continue;
        };
        let entry = entry.map_err(failed("list", shown(&path)))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let stat = match statat(&level_now.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other.map_err(failed("stat", &path))?,
        };
        let found = Found { parent: level_now.fd.as_fd(), name, path: &path, stat };
        if visit(&found)? && found.kind() == FileType::Directory {
            let inner = match found.open(OFlags::DIRECTORY) {
                Err(Errno::NOENT) => continue,
                other => other.map_err(failed("list", &path))?,
            };
            if open.len() == DEPTH {
                return Err(refused(&path, "it is in more than 512 directories within each other"));
            }
            open.push(level(inner, &path)?);
        }
    }
    Ok(())
}

fn level(fd: OwnedFd, path: &[u8]) -> Result<Level, ArchiveError> {
    let entries = Dir::read_from(&fd).map_err(failed("list", shown(path)))?;
    Ok(Level { fd, entries, length: path.len() })
}

fn shown(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}
