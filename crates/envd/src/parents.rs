// SPDX-License-Identifier: Apache-2.0
//! Parent directories that are missing: created, and owned by the user of a call.

use std::{fs, io, os::unix::fs::lchown, path::Path};

use crate::users::User;

/// Creates the missing parents of a path for a user.
pub(crate) fn make_parents(path: &Path, user: &User) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| make_owned_dirs(parent, user))
}

/// Creates a directory with its missing parents for a user.
pub(crate) fn make_owned_dirs(path: &Path, user: &User) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_parents(path, user)?;
    match fs::create_dir(path) {
        // lchown, because a symbolic link may have been put in its place.
        Ok(()) => lchown(path, Some(user.uid), Some(user.gid)),
        // Another process has created it meanwhile.
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}
