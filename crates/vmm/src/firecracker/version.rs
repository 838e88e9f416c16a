// SPDX-License-Identifier: Apache-2.0
//! Supported releases of Firecracker, and what is different or faulty in some.

use std::{path::Path, process::Command};

use crate::VmmError;

/// Oldest supported release: the API and snapshots of older ones are not tested.
const OLDEST: Release = Release(1, 12, 0);

/// Release of Firecracker: major, minor and patch number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release(u32, u32, u32);

impl Release {
    /// Field of a load's request that has changes tracked; others are refused.
    pub(super) fn tracking_field(self) -> &'static str {
        if self < Self(1, 13, 0) { "enable_diff_snapshots" } else { "track_dirty_pages" }
    }

    /// Fault of this release for which its snapshots are refused, with the remedy. Its boots work.
    pub(super) fn snapshot_fault(self) -> Option<&'static str> {
        // https://github.com/firecracker-microvm/firecracker/blob/main/CHANGELOG.md
        (Self(1, 14, 0)..Self(1, 14, 2)).contains(&self).then_some(
            "Firecracker 1.14.0 and 1.14.1 write corrupt snapshots of guests with more than 3 GiB: install 1.14.2 or newer",
        )
    }
}

const INSTALL: &str = "install Firecracker and its jailer from one release, as \
                       https://github.com/firecracker-microvm/firecracker/blob/main/docs/getting-started.md says";

/// Parses the first line of `--version`: `Firecracker v1.12.1`.
fn parse(text: &str) -> Option<(String, Release)> {
    let version = text.lines().next()?.split_whitespace().nth(1)?.strip_prefix('v')?;
    let mut parts = version.split(['.', '-']).map_while(|part| part.parse().ok());
    Some((version.to_owned(), Release(parts.next()?, parts.next()?, parts.next().unwrap_or(0))))
}

fn ask(program: &Path) -> Result<(String, Release), VmmError> {
    let missing = || VmmError::Missing { what: program.display().to_string(), remedy: INSTALL.to_owned() };
    let output = Command::new(program).arg("--version").output().map_err(|_| missing())?;
    parse(&String::from_utf8_lossy(&output.stdout)).ok_or_else(missing)
}

/// Returns the version of Firecracker; fails if it is too old.
pub(super) fn of_firecracker(program: &Path) -> Result<(String, Release), VmmError> {
    let (version, release) = ask(program)?;
    if release >= OLDEST {
        return Ok((version, release));
    }
    let Release(major, minor, patch) = OLDEST;
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
        assert_eq!(parse(text), Some(("1.12.1".to_owned(), Release(1, 12, 1))));
        assert_eq!(parse("Jailer v1.13.0-dev").unwrap().1, Release(1, 13, 0));
        assert_eq!(parse(""), None);
        assert_eq!(parse("bash: no such thing"), None);
    }
    #[test]
    fn releases_with_corrupt_snapshots_are_known() {
        let faulty =
            |version: &str| parse(&format!("Firecracker v{version}")).unwrap().1.snapshot_fault().is_some();
        assert!(faulty("1.14.0") && faulty("1.14.1"));
        assert!(
            ["1.12.0", "1.12.1", "1.13.2", "1.14.2", "1.16.1"].into_iter().all(|version| !faulty(version))
        );
    }

    #[test]
    fn each_release_is_told_in_its_own_words_to_track_changes() {
        let fields = [Release(1, 12, 1), Release(1, 13, 0), Release(1, 16, 1)].map(Release::tracking_field);
        assert_eq!(fields, ["enable_diff_snapshots", "track_dirty_pages", "track_dirty_pages"]);
    }
}
