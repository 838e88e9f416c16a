// SPDX-License-Identifier: Apache-2.0
//! Supported versions of Firecracker.

use std::{path::Path, process::Command};

use crate::VmmError;

/// Oldest supported version: the API and snapshots of older ones are not tested.
const OLDEST: (u32, u32, u32) = (1, 12, 0);

const INSTALL: &str = "install Firecracker and its jailer from one release, as \
                       https://github.com/firecracker-microvm/firecracker/blob/main/docs/getting-started.md says";

/// Parses the first line of `--version`: `Firecracker v1.12.1`.
fn parse(text: &str) -> Option<(String, (u32, u32, u32))> {
    let version = text.lines().next()?.split_whitespace().nth(1)?.strip_prefix('v')?;
    let mut parts = version.split(['.', '-']).map_while(|part| part.parse().ok());
    Some((version.to_owned(), (parts.next()?, parts.next()?, parts.next().unwrap_or(0))))
}

fn ask(program: &Path) -> Result<(String, (u32, u32, u32)), VmmError> {
    let missing = || VmmError::Missing { what: program.display().to_string(), remedy: INSTALL.to_owned() };
    let output = Command::new(program).arg("--version").output().map_err(|_| missing())?;
    parse(&String::from_utf8_lossy(&output.stdout)).ok_or_else(missing)
}

/// Returns the version of Firecracker; fails if it is too old.
pub(super) fn of_firecracker(program: &Path) -> Result<String, VmmError> {
    let (version, number) = ask(program)?;
    if number >= OLDEST {
        return Ok(version);
    }
    let (major, minor, patch) = OLDEST;
    Err(VmmError::TooOld {
        program: program.display().to_string(),
        found: version,
        needed: format!("{major}.{minor}.{patch}"),
        remedy: INSTALL.to_owned(),
    })
}

/// Checks that the jailer has the same version as Firecracker.
pub(super) fn check_jailer(jailer: &Path, version: &str) -> Result<(), VmmError> {
    let (found, _) = ask(jailer)?;
    if found == version {
        return Ok(());
    }
    let reason = format!("it has version {found} and Firecracker has {version}; {INSTALL}");
    Err(VmmError::Unfit { what: "the jailer", reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_firecracker_writes_them() {
        let text = "Firecracker v1.12.1\n\n2025-08-05T22:14:24 [anonymous-instance:main] exit_code=0";
        assert_eq!(parse(text), Some(("1.12.1".to_owned(), (1, 12, 1))));
        assert_eq!(parse("Jailer v1.13.0-dev").unwrap().1, (1, 13, 0));
        assert_eq!(parse(""), None);
        assert_eq!(parse("bash: no such thing"), None);
    }
}
