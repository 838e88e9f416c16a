// SPDX-License-Identifier: Apache-2.0
//! A directory into which an archive is unpacked. Every path is opened from it by the kernel without following symbolic links
//! and without leaving it, also if another process changes the tree meanwhile.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2},
    io::Errno,
};

use crate::{
    error::{ArchiveError, failed, refused},
    owner::{Owner, own_at},
};

/// Number of times that a path is opened again because the tree changed meanwhile.
const TRIES: usize = 16;
/// Mode of a directory that an archive does not have itself.
const MISSING: Mode = Mode::from_raw_mode(0o755);

/// Path of an entry within the directory: names only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inner(Vec<u8>);

impl Inner {
    /// Checks the path of an entry.
    pub(crate) fn of(path: &[u8]) -> Result<Self, ArchiveError> {
        if path.first() == Some(&b'/') {
            return Err(refused(path, "its name is absolute; names of entries are relative"));
        }
        if path.contains(&0) {
            return Err(refused(path, "its name has a NUL byte"));
        }
        let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
        let mut inner = Vec::new();
        for name in names {
            if name == b".." {
                return Err(refused(path, "its name leads out of the directory"));
            }
            if !inner.is_empty() {
                inner.push(b'/');
            }
            inner.extend_from_slice(name);
        }
        Ok(Self(inner))
    }

    /// Returns whether this is the directory itself.
    pub(crate) fn is_top(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        if self.is_top() { b"." } else { &self.0 }
    }

    fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.bytes()))
    }

    /// Splits off the last name.
    fn split(&self) -> (Self, PathBuf) {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (Self(self.0[..at].to_vec()), OsStr::from_bytes(&self.0[at + 1..]).into()),
            None => (Self(Vec::new()), self.path().to_owned()),
        }
    }
}

/// The directory.
pub(crate) struct Directory {
    top: OwnedFd,
    /// Whom directories belong to that an archive does not have itself.
    owner: Owner,
    /// The directory that was opened last: entries of one directory usually follow each other.
    last: Option<(Inner, OwnedFd)>,
}

impl Directory {
    /// Opens the directory at this path. Those that are missing in it get this owner when they are made.
    pub(crate) fn open(path: &Path, owner: Owner) -> Result<Self, ArchiveError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = openat(CWD, path, flags, Mode::empty());
        let top = top.map_err(failed("open", path.as_os_str().as_bytes()))?;
        Ok(Self { top, owner, last: None })
    }

    pub(crate) fn top(&self) -> BorrowedFd<'_> {
        self.top.as_fd()
    }

    /// Opens a directory within.
    pub(crate) fn directory(&self, inner: &Inner) -> Result<OwnedFd, ArchiveError> {
        self.try_open(inner).map_err(|error| unusable(inner, error))
    }

    /// Opens the directory that an entry is in, and returns the entry's name in it. Directories that are missing are made.
    pub(crate) fn parent(&mut self, inner: &Inner) -> Result<(BorrowedFd<'_>, PathBuf), ArchiveError> {
        let (parent, name) = inner.split();
        if self.last.as_ref().is_none_or(|(last, _)| *last != parent) {
            let opened = match self.try_open(&parent) {
                Err(Errno::NOENT) => self.make(&parent)?,
                other => other.map_err(|error| unusable(&parent, error))?,
            };
            self.last = Some((parent, opened));
        }
        let fd = self.last.as_ref().map_or(self.top.as_fd(), |(_, fd)| fd.as_fd());
        Ok((fd, name))
    }

    fn make(&self, path: &Inner) -> Result<OwnedFd, ArchiveError> {
        let ends = path.0.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut above = self.directory(&Inner(Vec::new()))?;
        for end in ends.chain([path.0.len()]) {
            let part = Inner(path.0[..end].to_vec());
            let (_, name) = part.split();
            let next = match self.try_open(&part) {
                Err(Errno::NOENT) => {
                    match mkdirat(&above, &name, MISSING) {
                        // Another process has made it meanwhile.
                        Err(Errno::EXIST) => {}
                        made => made
                            .and_then(|()| own_at(above.as_fd(), &name, self.owner))
                            .map_err(failed("make", part.bytes()))?,
                    }
                    self.directory(&part)?
                }
                other => other.map_err(|error| unusable(&part, error))?,
            };
            above = next;
        }
        Ok(above)
    }

    fn try_open(&self, inner: &Inner) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut last = Errno::AGAIN;
        for _ in 0..TRIES {
            match openat2(&self.top, inner.path(), flags, Mode::empty(), resolve) {
                // Something in the tree was renamed at this moment.
                Err(Errno::AGAIN | Errno::INTR) => last = Errno::AGAIN,
                other => return other,
            }
        }
        Err(last)
    }
}

fn unusable(inner: &Inner, error: Errno) -> ArchiveError {
    match error {
        Errno::LOOP | Errno::XDEV => refused(
            inner.bytes(),
            "it is a symbolic link, or behind one, which entries are not unpacked through",
        ),
        Errno::NOTDIR => refused(inner.bytes(), "it is no directory, or in something that is none"),
        error => failed("open", inner.bytes())(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, proptest};

    use super::*;

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["/etc/passwd", "../x", "a/../../x", "a/..", "..", "a\0b"] {
            assert!(Inner::of(path.as_bytes()).is_err(), "{path:?}");
        }
        for (path, inner) in [("./a//b/", "a/b"), ("a", "a"), ("./", "."), ("", "."), ("..a/b..", "..a/b..")]
        {
            assert_eq!(Inner::of(path.as_bytes()).ok().as_ref().map(Inner::bytes), Some(inner.as_bytes()));
        }
    }

    proptest! {
        #[test]
        fn every_path_that_is_taken_stays_within(path in "[a./\\x00]{0,12}") {
            if let Ok(inner) = Inner::of(path.as_bytes()) {
                prop_assert!(!inner.0.split(|byte| *byte == b'/').any(|name| name == b".."));
                prop_assert!(inner.0.first() != Some(&b'/'));
            }
        }
    }
}
