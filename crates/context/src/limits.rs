// SPDX-License-Identifier: Apache-2.0
//! Limits of contexts: everything that an archive can make grow has one.

/// Bytes of names and of targets of links for each entry that is allowed.
const NAME_BYTES_PER_ENTRY: u64 = 512;

/// Limits of an archive, and of what a `COPY` takes from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of an archive as it is uploaded, in bytes. Default: 1 GiB.
    pub archive_bytes: u64,
    /// Size of all files of an archive, in bytes: unpacked, with holes, and with each hard link counted as a file. A tar
    /// archive that is compressed has at most this size itself. Default: 4 GiB.
    pub unpacked_bytes: u64,
    /// Number of entries of an archive, and of files and directories in a context. Their names and the targets of links have
    /// together at most 512 bytes for each entry that is allowed. Default: 100 000.
    pub entries: u32,
    /// Length of the path of an entry and of the target of a link, in bytes. Default: 4096.
    pub path_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { archive_bytes: 1 << 30, unpacked_bytes: 4 << 30, entries: 100_000, path_bytes: 4096 }
    }
}

impl Limits {
    /// Returns the maximum number of bytes of all names and targets of links together.
    pub(crate) fn name_bytes(&self) -> u64 {
        u64::from(self.entries) * NAME_BYTES_PER_ENTRY
    }
}
