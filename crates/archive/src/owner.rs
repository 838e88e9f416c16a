// SPDX-License-Identifier: Apache-2.0
//! Owners of what is unpacked.

use std::{os::fd::BorrowedFd, path::Path};

use rustix::fs::{AtFlags, Gid, Uid, chownat, fchown};

/// Whom what is made or replaced belongs to. What is there and stays keeps its owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Owners {
    /// The user of the process. Set-user-id and set-group-id bits are dropped.
    #[default]
    OfProcess,
    /// Who has it in the archive. Directories that the archive does not have belong to the user of the process.
    OfArchive,
    /// This user and group. Neither number is the largest one, which stands for nobody in the kernel.
    Given {
        /// Number of the user.
        user: u32,
        /// Number of the group.
        group: u32,
    },
}

/// User and group that something gets; `None` leaves it to the user of the process.
pub(crate) type Owner = Option<(u32, u32)>;

impl Owners {
    /// Owner of an entry that has these numbers in the archive.
    pub(crate) fn of_entry(self, user: u64, group: u64) -> Owner {
        match self {
            Self::OfProcess => None,
            Self::OfArchive => Some((number(user)?, number(group)?)),
            Self::Given { user, group } => Some((user, group)),
        }
    }

    /// Owner of a directory that is made because entries are in it.
    pub(crate) fn of_missing(self) -> Owner {
        match self {
            Self::OfProcess | Self::OfArchive => None,
            Self::Given { user, group } => Some((user, group)),
        }
    }
}

/// Number of a user or a group, if the kernel knows it.
fn number(number: u64) -> Option<u32> {
    u32::try_from(number).ok().filter(|number| *number != u32::MAX)
}

/// Gives an open file to its owner.
pub(crate) fn own(file: BorrowedFd<'_>, owner: Owner) -> rustix::io::Result<()> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

/// Gives what has this name, and not what a link of this name leads to, to its owner.
pub(crate) fn own_at(parent: BorrowedFd<'_>, name: &Path, owner: Owner) -> rustix::io::Result<()> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    chownat(parent, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_that_the_kernel_does_not_know_are_left_out() {
        for unknown in [u64::from(u32::MAX), 1 << 32] {
            assert_eq!(Owners::OfArchive.of_entry(unknown, 0), None);
            assert_eq!(Owners::OfArchive.of_entry(0, unknown), None);
        }
        assert_eq!(Owners::OfArchive.of_entry(1, 2), Some((1, 2)));
        assert_eq!((Owners::OfArchive.of_missing(), Owners::OfProcess.of_entry(1, 2)), (None, None));
        let given = Owners::Given { user: 3, group: 4 };
        assert_eq!((given.of_entry(1, 2), given.of_missing()), (Some((3, 4)), Some((3, 4))));
    }
}
