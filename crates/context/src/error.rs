// SPDX-License-Identifier: Apache-2.0
//! Errors of contexts. Each names the entry or the source that it is about, the cause, and what to do. None names a path of
//! the server.

use std::io;

/// Maximum number of bytes shown of a name.
const SHOWN: usize = 256;

/// Why an archive is not taken, or why files of a context cannot be read. All but [`Io`](Self::Io) are faults of the archive.
/// Names of entries are in quotes, escaped, and cut if they are long.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// It is in no format that is known.
    #[error("what was uploaded cannot be used: {problem}; send a tar, tar.gz or zip archive")]
    NotAnArchive {
        /// What it is instead.
        problem: &'static str,
    },
    /// It is too large, packed or unpacked.
    #[error("{what} more than {limit} bytes, which is the limit; leave out what no COPY needs")]
    TooLarge {
        /// What is too large, with its verb.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// It has too many entries.
    #[error("the archive has more than {limit} {what}, which is the limit; leave out what no COPY needs")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// An entry has a path that it may not have, or is not one that can be taken.
    #[error("{path}: {problem}")]
    Path {
        /// Name of the entry.
        path: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A link leads where it may not.
    #[error("{path} is a link to {target}: {problem}")]
    Link {
        /// Name of the link.
        path: String,
        /// Its target.
        target: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// An entry is a device, a pipe or a socket.
    #[error("{path} is {kind}, which cannot be copied; leave it out")]
    Device {
        /// Name of the entry.
        path: String,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// The archive breaks off, or says what cannot be.
    #[error("the archive cannot be read to its end, so pack it again: {problem}")]
    Damaged {
        /// What is wrong.
        problem: String,
    },
    /// The server's disk fails, or nobody takes what is written.
    #[error("the files of a build cannot be kept or read: {0}")]
    Io(#[from] io::Error),
}

/// Why a `COPY` cannot take what it names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// The context has nothing of this name, or nothing that a pattern matches.
    #[error("{source:?} is not in the uploaded files; upload a directory that has it, or correct the path")]
    Missing {
        /// The source as it is in the recipe.
        r#source: String,
    },
    /// A pattern is not well formed.
    #[error("{source:?} is no pattern: {problem}")]
    Pattern {
        /// The source as it is in the recipe.
        r#source: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two sources want to be in one place, and one is a directory.
    #[error(
        "a directory and something else are both copied to {name:?}; give one of them another destination"
    )]
    Conflict {
        /// The place, relative to the destination.
        name: String,
    },
    /// The sources are more than a build may copy at once.
    #[error("one COPY takes more than {limit} {what}, which is the limit; copy less, or in several steps")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// To find the sources takes too long.
    #[error(
        "the sources of one COPY take too long to find; name fewer of them, or directories instead of patterns"
    )]
    TooSlow,
}

/// Makes the error of input that could not be read. What the kernel says is about the server's disk, unless it says that the
/// archive leads to an offset that no file has; all else is about what is in the archive.
pub(crate) fn unreadable(error: io::Error) -> ContextError {
    if error.raw_os_error().is_some() && error.kind() != io::ErrorKind::InvalidInput {
        ContextError::Io(error)
    } else {
        ContextError::Damaged { problem: error.to_string() }
    }
}

/// Makes the error of an entry.
pub(crate) fn refused(path: &[u8], problem: impl Into<String>) -> ContextError {
    ContextError::Path { path: shown(path), problem: problem.into() }
}

/// Returns a name for a message: in quotes, escaped, and cut if it is long.
pub(crate) fn shown(name: &[u8]) -> String {
    let cut = &name[..name.len().min(SHOWN)];
    let more = if cut.len() < name.len() { "…" } else { "" };
    format!("{:?}{more}", String::from_utf8_lossy(cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_escaped_and_cut() {
        assert_eq!(shown(b"a\n\x1b[31m"), r#""a\n\u{1b}[31m""#);
        assert_eq!(shown(b"\xff"), "\"\u{fffd}\"");
        assert_eq!(shown(&[b'x'; 1000]).len(), SHOWN + 2 + '…'.len_utf8());
    }

    #[test]
    fn only_what_the_kernel_says_is_a_fault_of_the_server() {
        // EIO, and EINVAL.
        let (broken, no_offset) = (io::Error::from_raw_os_error(5), io::Error::from_raw_os_error(22));
        assert!(matches!(unreadable(broken), ContextError::Io(_)));
        let corrupt = io::Error::new(io::ErrorKind::InvalidInput, "corrupt deflate stream");
        for error in [corrupt, no_offset] {
            assert!(matches!(unreadable(error), ContextError::Damaged { .. }));
        }
    }

    #[test]
    fn a_missing_source_is_named_and_is_no_cause() {
        let error = SelectError::Missing { source: "a\nb".to_owned() };
        assert!(error.to_string().starts_with(r#""a\nb" is not in the uploaded files"#), "{error}");
        assert!(std::error::Error::source(&error).is_none());
    }
}
