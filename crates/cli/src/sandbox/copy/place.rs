// SPDX-License-Identifier: Apache-2.0
//! Places of a copy, as they are written on the command line, and the names of what is there.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use wrenn_api::SandboxId;

/// Argument for standard input or output.
pub(super) const STANDARD: &str = "-";

/// Place of a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Standard,
    Here(PathBuf),
    There(SandboxId, String),
}

/// Reads a place.
pub(super) fn place(text: &str) -> Place {
    if text == STANDARD {
        return Place::Standard;
    }
    // Only an id before the colon means a sandbox, because local names may contain a colon.
    match text.split_once(':').map(|(id, path)| (id.parse(), path)) {
        Some((Ok(id), path)) => Place::There(id, path.to_owned()),
        _ => Place::Here(text.into()),
    }
}

/// Returns whether a path can only be a directory.
pub(super) fn names_directory(path: &str) -> bool {
    matches!(path.rsplit('/').next().unwrap_or_default(), "" | "." | "..")
}

/// Returns whether a path stands for what is in a directory, and not for the directory by its name.
pub(super) fn names_content(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    matches!(path.rsplit('/').next().unwrap_or_default(), "" | "." | "..")
}

/// Joins a directory in a sandbox and a name.
pub(super) fn within(dir: &str, name: &str) -> String {
    if dir.is_empty() || dir.ends_with('/') { format!("{dir}{name}") } else { format!("{dir}/{name}") }
}

/// Returns the last name of a path.
pub(super) fn file_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} has no name", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_id_before_the_colon_means_a_sandbox() {
        let id = SandboxId::new();
        assert_eq!(place(&format!("{id}:/a:b")), Place::There(id, "/a:b".to_owned()));
        assert_eq!(place(&format!("{id}:")), Place::There(id, String::new()));
        assert_eq!(place("-"), Place::Standard);
        for local in ["a", "./a:b", "C:/x", "sb1:x", id.to_string().as_str()] {
            assert_eq!(place(local), Place::Here(local.into()));
        }
    }

    #[test]
    fn directories_are_known_by_their_ends() {
        for (dir, path) in [("", "f"), ("/tmp/", "/tmp/f"), (".", "./f"), ("a/..", "a/../f"), ("/", "/f")] {
            assert!(names_directory(dir), "{dir}");
            assert_eq!(within(dir, "f"), path);
        }
        assert!(!names_directory("/tmp") && !names_directory("a/.b"));
        for content in ["", ".", "a/.", "a/./", "/", "..", "a/.."] {
            assert!(names_content(content), "{content}");
        }
        assert!(!names_content("a/") && !names_content("a/.b"));
    }
}
