// SPDX-License-Identifier: Apache-2.0
//! Errors of archives; each names the entry that it is about.

use std::{fmt, io, path::Path};

/// Maximum number of bytes shown of a name.
const SHOWN: usize = 256;

/// Why a directory could not be packed, or an archive not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The entry is not one that may be packed or unpacked.
    #[error("{name}: {cause}")]
    Refused {
        /// Name of the entry.
        name: Name,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// The bytes are not a tar archive, or of a kind that is not supported.
    #[error("the archive is not readable after {entries} entries: {cause}")]
    Malformed {
        /// Number of entries before.
        entries: u64,
        /// What is wrong.
        cause: &'static str,
    },
    /// The file system refused what an entry needs.
    #[error("cannot {action} {name}: {source}")]
    Files {
        /// What was tried.
        action: &'static str,
        /// Name of the entry.
        name: Name,
        /// The cause.
        source: io::Error,
    },
    /// The archive broke off, or nobody takes more of it.
    #[error("the archive broke off: {0}")]
    Stream(#[source] io::Error),
}

impl ArchiveError {
    /// Makes the error of an action on the directory itself.
    pub fn at(path: &Path, action: &'static str, source: io::Error) -> Self {
        failed(action, path.as_os_str().as_encoded_bytes())(source)
    }
}

/// Name of an entry for messages: escaped, and cut if it is long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    pub(crate) fn of(path: &[u8]) -> Self {
        let shown = String::from_utf8_lossy(&path[..path.len().min(SHOWN)]);
        let text: String = shown
            .chars()
            .flat_map(|c| {
                let control = c.is_control() || c == '\u{2028}' || c == '\u{2029}';
                let escaped = control.then(|| c.escape_default().collect::<String>());
                escaped.unwrap_or_else(|| c.to_string()).chars().collect::<Vec<_>>()
            })
            .collect();
        Self(if path.len() > SHOWN { format!("{text}…") } else { text })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes the error of an action on an entry.
pub(crate) fn failed<E: Into<io::Error>>(
    action: &'static str,
    path: &[u8],
) -> impl FnOnce(E) -> ArchiveError + use<E> {
    let name = Name::of(path);
    move |source| ArchiveError::Files { action, name, source: source.into() }
}

pub(crate) fn refused(path: &[u8], cause: &'static str) -> ArchiveError {
    ArchiveError::Refused { name: Name::of(path), cause }
}
