// SPDX-License-Identifier: Apache-2.0
//! Key file with which the control plane of this machine encrypts the secrets of channels.

use std::{os::unix::fs::chown, path::Path};

use anyhow::{Context, Result};
use wrenn_os::atomic_file;

use crate::users::User;

/// Makes the key file if there is none, and gives it to the control plane's user; returns whether it was made. A file that is
/// there is never replaced: what it has encrypted could not be read any more.
pub(crate) fn ensure(file: &Path, service: &User) -> Result<bool> {
    let owner = (service.uid, service.gid);
    if file.try_exists().with_context(|| format!("cannot look at {}", file.display()))? {
        chown(file, Some(owner.0), Some(owner.1))
            .with_context(|| format!("cannot chown {}", file.display()))?;
        return Ok(false);
    }
    let key = wrenn_control::new_channel_key(1)?;
    atomic_file::write(file, key.as_bytes(), 0o600, Some(owner))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use rustix::process::{getegid, geteuid};

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("channels.key");
        let me = User {
            name: "me".to_owned(),
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            home: dir.path().to_owned(),
        };
        assert!(ensure(&file, &me).expect("made"));
        let key = fs::read_to_string(&file).expect("a key");
        assert!(key.starts_with("1 ") && key.trim_end().len() == 2 + 64, "{} bytes", key.len());
        assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
        assert!(!ensure(&file, &me).expect("kept"));
        assert_eq!(fs::read_to_string(&file).expect("a key"), key);
    }
}
