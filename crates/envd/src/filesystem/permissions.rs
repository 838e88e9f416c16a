// SPDX-License-Identifier: Apache-2.0
//! Changes modes and owners, of one file or of all below a directory.

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{PermissionsExt as _, lchown},
    },
    path::Path,
    sync::atomic::AtomicBool,
};

use connectrpc::ConnectError;
use rustix::fs::{Mode, OFlags, open};

use super::go_on;
use crate::{entry::failed, users::Ids};

/// What to change.
#[derive(Clone, Copy)]
pub(super) enum Change {
    Mode(u32),
    Owner(Ids),
}

impl Change {
    /// Checks the permission bits.
    pub(super) fn mode(mode: u32) -> Result<Self, ConnectError> {
        if mode > 0o7777 {
            let text = format!("mode {mode:o} (octal) has other bits than those of permissions (7777)");
            return Err(ConnectError::invalid_argument(text));
        }
        Ok(Self::Mode(mode))
    }

    /// Changes one entry, itself if it is a symbolic link.
    fn apply(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Owner(ids) => lchown(path, ids.user, ids.group),
            Self::Mode(mode) => {
                // The kernel follows symbolic links here, and one may have been put in the entry's place.
                let entry = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
                let own = format!("/proc/self/fd/{}", entry.as_raw_fd());
                if fs::metadata(&own)?.is_symlink() {
                    return Ok(());
                }
                fs::set_permissions(own, Permissions::from_mode(mode))
            }
        }
    }
}

/// Finds user and group by name or number; empty is as it is, but not both.
pub(super) async fn ids(user: &str, group: &str) -> Result<Ids, ConnectError> {
    if user.is_empty() && group.is_empty() {
        return Err(ConnectError::invalid_argument("neither owner nor group is given"));
    }
    Ids::find(user, group).await.map_err(|error| ConnectError::invalid_argument(error.to_string()))
}

/// Changes what a path leads to, and if `recursive` what is below it. Symbolic links are followed only at the top.
pub(super) fn apply(
    path: &Path,
    change: Change,
    recursive: bool,
    cancelled: &AtomicBool,
) -> Result<(), ConnectError> {
    let action = match change {
        Change::Mode(_) => "change the mode of",
        Change::Owner(_) => "change the owner of",
    };
    let top = fs::canonicalize(path).map_err(|e| failed(action, path, &e))?;
    change.apply(&top).map_err(|e| failed(action, &top, &e))?;
    let mut open = if recursive && top.is_dir() { vec![top] } else { Vec::new() };
    while let Some(dir) = open.pop() {
        for item in fs::read_dir(&dir).map_err(|e| failed("list", &dir, &e))? {
            go_on(cancelled)?;
            let item = item.map_err(|e| failed("list", &dir, &e))?;
            let (path, kind) = (item.path(), item.file_type());
            match change.apply(&path) {
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|e| failed(action, &path, &e))?,
            }
            if kind.is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            }
        }
    }
    Ok(())
}
