// SPDX-License-Identifier: Apache-2.0
//! Paths in the sandbox and in the uploaded context.

use crate::{error::shown, limits};

/// Checks a path in the sandbox; the error says what is wrong.
pub(crate) fn check(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("the path is empty: write one, such as /app".to_owned());
    }
    if path.contains(char::is_control) {
        return Err(format!("{} has a control character: remove it", shown(path)));
    }
    if path.len() > limits::PATH_BYTES {
        return Err(format!("the path has {} bytes: at most {}", path.len(), limits::PATH_BYTES));
    }
    Ok(())
}

/// Checks the path of what is copied; the error says what is wrong.
pub(crate) fn check_source(path: &str) -> Result<(), String> {
    check(path)?;
    if path.contains("://") || path.starts_with("git@") {
        return Err(format!("{} is not in the uploaded context: download it with RUN", shown(path)));
    }
    if path.starts_with('/') {
        return Err(format!(
            "{} is absolute: sources are relative to the uploaded context, such as app/",
            shown(path)
        ));
    }
    let mut depth = 0_usize;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => {
                return Err(format!(
                    "{} leads out of the uploaded context: upload a directory that contains it",
                    shown(path)
                ));
            }
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    Ok(())
}

/// Checks where `count` things are copied; the error says what is wrong.
pub(crate) fn check_destination(path: &str, count: usize) -> Result<(), String> {
    check(path)?;
    if count > 1 && !is_directory(path) {
        return Err(format!(
            "several files need a directory to be copied into: write {}",
            shown(&format!("{path}/"))
        ));
    }
    Ok(())
}

/// Returns whether a destination is a directory by the way it is written.
pub(crate) fn is_directory(path: &str) -> bool {
    matches!(path.rsplit('/').next(), Some("" | "." | ".."))
}

/// Returns an absolute path without `.`, `..` and double slashes.
pub(crate) fn joined(workdir: &str, path: &str) -> String {
    let before = if path.starts_with('/') { "" } else { workdir };
    format!("/{}", cleaned(before.split('/').chain(path.split('/'))).join("/"))
}

/// Returns the names of a path, without those that lead nowhere: nothing is above its top.
pub fn names(path: &str) -> Vec<&str> {
    cleaned(path.split('/'))
}

fn cleaned<'a>(parts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for part in parts {
        match part {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_and_cleaned() {
        for (workdir, path, expected) in [
            ("/", "app", "/app"),
            ("/app", "src/", "/app/src"),
            ("/app", "/etc//x/./y", "/etc/x/y"),
            ("/app", "../../..", "/"),
            ("/app", ".", "/app"),
        ] {
            assert_eq!(joined(workdir, path), expected);
        }
    }

    #[test]
    fn directories_are_seen_by_their_end() {
        assert!(["/", "a/", ".", "./", "a/.", ".."].into_iter().all(is_directory));
        assert!(!["a", "/a", "a.", "..a"].into_iter().any(is_directory));
    }

    #[test]
    fn sources_stay_in_the_context() {
        assert!(
            ["a", ".", "./a/../b", "a*.txt", "..a", "a b"].into_iter().all(|path| check_source(path).is_ok())
        );
        for path in ["", "/a", "..", "a/../../b", "http://x/y", "git@x:y", "a\nb", "a\0b", &"x".repeat(5000)]
        {
            assert!(check_source(path).is_err(), "{path:?}");
        }
    }
}
