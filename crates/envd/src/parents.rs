// SPDX-License-Identifier: Apache-2.0
//! Parent directories that are missing: created, and owned by the user of a call or by whom it names.

use std::{fs, io, os::unix::fs::lchown, path::Path};

use crate::users::User;

/// Creates the missing parents of a path for a user.
pub(crate) fn make_parents(path: &Path, user: &User) -> io::Result<()> {
    make_parents_of(path, user.uid, user.gid)
}

/// Creates a directory with its missing parents for a user.
pub(crate) fn make_owned_dirs(path: &Path, user: &User) -> io::Result<()> {
    make_dirs_of(path, user.uid, user.gid)
}

/// Creates a directory with its missing parents for these numbers of a user and a group.
pub(crate) fn make_dirs_of(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_parents_of(path, uid, gid)?;
    match fs::create_dir(path) {
        // lchown, because a symbolic link may have been put in its place.
        Ok(()) => lchown(path, Some(uid), Some(gid)),
        // Another process has created it meanwhile.
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

fn make_parents_of(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| make_dirs_of(parent, uid, gid))
}
