// SPDX-License-Identifier: Apache-2.0
//! Places of a copy, as they are written on the command line, and the names of what is there.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use wrenn_api::SandboxRef;

/// Argument for standard input or output.
pub(super) const STANDARD: &str = "-";

/// Place of a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Standard,
    Here(PathBuf),
    There(SandboxRef, String),
}

/// Reads a place.
pub(super) fn place(text: &str) -> Place {
    if text == STANDARD {
        return Place::Standard;
    }
    // A local name with a colon is written with a directory, as for docker(1) and scp(1).
    match text.split_once(':').map(|(sandbox, path)| (sandbox.parse(), path)) {
        Some((Ok(sandbox), path)) => Place::There(sandbox, path.to_owned()),
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
    use wrenn_api::SandboxId;

    use super::*;

    #[test]
    fn an_id_or_name_before_the_colon_means_a_sandbox() {
        let id = SandboxId::new();
        assert_eq!(place(&format!("{id}:/a:b")), Place::There(id.into(), "/a:b".to_owned()));
        assert_eq!(place(&format!("{id}:")), Place::There(id.into(), String::new()));
        let named = SandboxRef::Lookup("web-1".to_owned());
        assert_eq!(place("web-1:x"), Place::There(named, "x".to_owned()));
        assert_eq!(place("-"), Place::Standard);
        for local in ["a", "./a:b", "/a:b", "C:/x", "a.b:x", "-a:x", id.to_string().as_str()] {
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
