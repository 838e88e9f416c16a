// SPDX-License-Identifier: Apache-2.0
//! Names of entries, and targets of links, as archives have them and as contexts have them.

use crate::{
    error::{ContextError, refused, shown},
    limits::Limits,
};

/// Maximum length of a name in a directory, in bytes: that of Linux.
const NAME_BYTES: usize = 255;

/// Returns the path of an entry in the context: names divided by `/`, and empty for the context itself.
pub(crate) fn path_of(name: &[u8], limits: &Limits) -> Result<String, ContextError> {
    normal(name, limits).map_err(|problem| refused(name, problem))
}

/// Returns the path of the file that a hard link is another name of.
pub(crate) fn first_of(link: &str, target: &[u8], limits: &Limits) -> Result<String, ContextError> {
    normal(target, limits).map_err(|problem| misleading(link, target, problem))
}

/// Checks the target of a symbolic link. It is read as a path: other links in it are not followed, as nothing here follows any.
pub(crate) fn target_of(link: &str, target: &[u8], limits: &Limits) -> Result<String, ContextError> {
    let refused = |problem: &str| misleading(link, target, problem.to_owned());
    let text = std::str::from_utf8(target).map_err(|_| refused("its target is not UTF-8; rename it"))?;
    if text.is_empty() || text.contains('\0') {
        return Err(refused("its target is no path"));
    }
    if text.len() > limits.path_bytes {
        return Err(misleading(
            link,
            target,
            format!("its target has more than {} bytes", limits.path_bytes),
        ));
    }
    if !stays(link, text) {
        return Err(refused("its target is not in the archive; pack what it leads to, or leave it out"));
    }
    Ok(text.to_owned())
}

/// Returns whether the target of a symbolic link is in the context.
pub(crate) fn stays(link: &str, target: &str) -> bool {
    if target.starts_with('/') {
        return false;
    }
    let mut depth = link.matches('/').count();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => return false,
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    true
}

/// Makes the error of a link.
pub(crate) fn misleading(link: &str, target: &[u8], problem: impl Into<String>) -> ContextError {
    ContextError::Link { path: shown(link.as_bytes()), target: shown(target), problem: problem.into() }
}

fn normal(name: &[u8], limits: &Limits) -> Result<String, String> {
    let text = std::str::from_utf8(name).map_err(|_| "its name is not UTF-8; rename it")?;
    if text.contains('\0') {
        return Err("its name has a NUL byte; rename it".to_owned());
    }
    let mut path = String::with_capacity(text.len());
    for part in text.split('/') {
        match part {
            "" | "." => continue,
            ".." => return Err("its name has a `..`; pack the directory from within".to_owned()),
            _ if part.len() > NAME_BYTES => {
                return Err(format!("a part of its name has more than {NAME_BYTES} bytes; shorten it"));
            }
            _ => {}
        }
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(part);
    }
    if path.len() > limits.path_bytes {
        return Err(format!("its path has more than {} bytes; shorten it", limits.path_bytes));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &[u8]) -> Option<String> {
        path_of(name, &Limits { path_bytes: 300, ..Limits::default() }).ok()
    }

    #[test]
    fn names_lose_what_tar_drops_and_are_else_as_they_are() {
        for (name, expected) in [
            ("a/b", "a/b"),
            ("./a//b/./c/", "a/b/c"),
            ("/etc/passwd", "etc/passwd"),
            ("//a", "a"),
            ("./", ""),
            ("", ""),
            ("..a/b..", "..a/b.."),
            ("a\\b\n ä", "a\\b\n ä"),
        ] {
            assert_eq!(path(name.as_bytes()).as_deref(), Some(expected), "{name:?}");
        }
    }

    #[test]
    fn names_that_lead_out_or_are_none_are_refused() {
        let (part, whole) = (vec![b'a'; 256], b"ab/".repeat(101));
        for name in [&b".."[..], b"../a", b"a/..", b"a/../b", b"a\0b", b"\xff", &part, &whole] {
            assert_eq!(path(name), None, "{name:?}");
        }
        assert!(path(&[b'a'; 255]).is_some());
        assert!(path(&b"ab/".repeat(100)).is_some(), "299 bytes without its end");
    }

    #[test]
    fn targets_stay_in_the_context() {
        let limits = Limits::default();
        for (link, target) in
            [("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d/../e"), ("a", "./b/"), ("a", ".")]
        {
            let taken = target_of(link, target.as_bytes(), &limits);
            assert_eq!(taken.ok().as_deref(), Some(target), "{link} to {target}");
        }
        for (link, target) in
            [("a", ".."), ("a", "/etc"), ("a/b", "../../c"), ("a", "b/../../c"), ("a", ""), ("a", "x\0")]
        {
            let error = target_of(link, target.as_bytes(), &limits);
            assert!(matches!(error, Err(ContextError::Link { .. })), "{link} to {target}");
        }
    }
}
