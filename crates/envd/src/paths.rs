// SPDX-License-Identifier: Apache-2.0
//! Paths in requests: absolute, relative to the user's home, starting with `~`, or empty.

use std::path::{Component, Path, PathBuf};

use crate::users::User;

/// Maximum length in characters; the kernel may reject shorter paths too.
const MAX: usize = 4096;

/// Errors of a path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    #[error("the path is empty; name what is meant, as `~` or `.`")]
    Empty,
    #[error("the path has {0} characters; at most {MAX} are possible")]
    TooLong(usize),
    #[error("the path contains a NUL byte")]
    Nul,
}

/// Resolves a path to its absolute form without `.`; `..` is resolved lexically. An empty path is the default working
/// directory, or the user's home if there is none.
pub(crate) fn resolve(path: &str, user: &User, workdir: Option<&str>) -> Result<PathBuf, PathError> {
    if path.is_empty() { named(workdir.unwrap_or("~"), user) } else { named(path, user) }
}

/// Resolves a path as `resolve` does, but refuses an empty one: a client that forgot the path would remove or move the home.
pub(crate) fn named(path: &str, user: &User) -> Result<PathBuf, PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    if path.contains('\0') {
        return Err(PathError::Nul);
    }
    if path.chars().count() > MAX {
        return Err(PathError::TooLong(path.chars().count()));
    }
    let home = Path::new(&user.home);
    let full = match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => home.join(path),
    };
    let mut clean = PathBuf::from("/");
    for part in full.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_like_the_clients_expect() {
        let user = User {
            name: "ann".into(),
            uid: 1,
            gid: 1,
            groups: vec![],
            home: "/home/ann".into(),
            shell: "/bin/sh".into(),
        };
        let from = |p: &str, workdir| resolve(p, &user, workdir).map(|p| p.display().to_string()).ok();
        let text = |p: &str| from(p, Some("/work"));
        assert_eq!(text("a/./b/../c").as_deref(), Some("/home/ann/a/c"));
        assert_eq!(text("~/x").as_deref(), Some("/home/ann/x"));
        assert_eq!(text("~").as_deref(), Some("/home/ann"));
        assert_eq!(text("/../etc").as_deref(), Some("/etc"));
        assert_eq!((text("a\0b"), text(&"a".repeat(5000))), (None, None));
        assert_eq!((text(""), from("", None)), (Some("/work".into()), Some("/home/ann".into())));
        assert_eq!(from("", Some("sub")).as_deref(), Some("/home/ann/sub"));
        assert!(matches!(named("", &user), Err(PathError::Empty)));
    }
}
