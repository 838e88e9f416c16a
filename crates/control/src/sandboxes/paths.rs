// SPDX-License-Identifier: Apache-2.0
//! Paths in sandboxes, checked as far as possible without them.

use crate::error::Fault;

/// Maximum length of a path, in characters.
const PATH_MAX: usize = 4096;

/// Path of a file in a sandbox: absolute, or relative to a home directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePath(String);

impl FilePath {
    /// Maximum length of a path, in bytes.
    pub const MAX: usize = PATH_MAX * 4;

    /// Checks a path as far as possible without the sandbox.
    pub fn new(path: impl Into<String>) -> Result<Self, Fault> {
        let path = checked_path("path", path.into())?;
        let name = path.rsplit('/').next().unwrap_or_default();
        if name.bytes().all(|byte| byte == b'.') {
            return Err(Fault::invalid(
                "path: it ends with '/' or with dots only, so it names a directory, not a file",
            ));
        }
        Ok(Self(path))
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }

    /// Returns the fault of a path that is too long or no path at all.
    pub(crate) fn wrong_length() -> Fault {
        wrong_length("path")
    }
}

/// Path of a file or directory in a sandbox: absolute, or relative to a home directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnyPath(String);

impl AnyPath {
    /// Checks a path as far as possible without the sandbox; `field` is its name in the request.
    pub fn new(field: &str, path: String) -> Result<Self, Fault> {
        checked_path(field, path).map(Self)
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// Checks the length of a path; `field` is its name in the request.
fn checked_path(field: &str, path: String) -> Result<String, Fault> {
    let good = !path.is_empty() && path.chars().count() <= PATH_MAX && !path.contains('\0');
    if good { Ok(path) } else { Err(wrong_length(field)) }
}

fn wrong_length(field: &str) -> Fault {
    Fault::invalid(format!("{field}: 1 to {PATH_MAX} characters without NUL"))
}
