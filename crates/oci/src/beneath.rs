// SPDX-License-Identifier: Apache-2.0
//! Opens paths below a directory that a stranger filled. The kernel follows symbolic links as if the directory were `/`, so
//! that none leads out of it.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

/// Number of times that a path is opened again. The kernel asks for it if anything on the machine was renamed meanwhile.
const TRIES: usize = 256;

/// Opens a path that exists. The empty path is the directory itself; other file systems mounted within are not entered.
pub(crate) fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    for _ in 0..TRIES {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}
