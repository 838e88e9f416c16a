// SPDX-License-Identifier: Apache-2.0
//! File systems that do not report all changes.

use std::{io, path::Path};

use crate::regular;

/// Magic numbers of file systems that others can change unseen (linux/magic.h): NFS, SMB, CIFS, SMB2, FUSE, 9p, Ceph, AFS,
/// Coda.
const NETWORK: [i64; 9] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x6573_5546,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
    0x7375_7245,
];

/// Kinds of file systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reports all changes.
    Local,
    /// Reports those made here.
    Network,
    /// Made up by the kernel; reports few or none.
    Pseudo,
}

/// Returns the kind of the file system that a path is on. Blocking.
pub(super) fn kind(path: &Path) -> io::Result<Kind> {
    let magic = rustix::fs::statfs(path)?.f_type;
    Ok(match magic {
        _ if NETWORK.contains(&magic) => Kind::Network,
        _ if regular::is_made_up(magic) => Kind::Pseudo,
        _ => Kind::Local,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart() {
        assert_eq!(kind(Path::new("/proc")).unwrap(), Kind::Pseudo);
        assert_eq!(kind(tempfile::tempdir().unwrap().path()).unwrap(), Kind::Local);
    }
}
