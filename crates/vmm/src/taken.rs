// SPDX-License-Identifier: Apache-2.0
//! Files of snapshots. A VMM writes them into its run directory, in which it can put anything in their place at any
//! time, until they are taken over.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{VmmError, running::failed};

/// Names of a snapshot's files in the run directory, before they are moved to their target.
pub(crate) const NEW_STATE: &str = "state.new";
pub(crate) const NEW_MEMORY: &str = "memory.new";

/// Checks that a snapshot has this file.
pub(crate) fn check(name: &str, file: &Path) -> Result<(), VmmError> {
    let what = format!("the snapshot's {name}");
    if file.try_exists().map_err(|error| failed(format!("look for {what}"), error))? {
        return Ok(());
    }
    Err(VmmError::Missing { what, remedy: "the snapshot is incomplete; take another one".to_owned() })
}

/// Checks that the VMM wrote a regular file.
fn inspect(from: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(from)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("the VMM wrote something else than a file"));
    }
    Ok(file)
}

/// Moves the inspected file to its target. In between the VMM may have replaced it, for example by a symbolic
/// link that leads out of the jail.
fn take(file: &File, from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    let (taken, seen) = (fs::symlink_metadata(to)?, file.metadata()?);
    if (taken.dev(), taken.ino()) != (seen.dev(), seen.ino()) {
        fs::remove_file(to)?;
        return Err(io::Error::other("the VMM replaced the file that it wrote"));
    }
    Ok(())
}

/// Moves files that a VMM wrote, each from its first path to its second one, the last one first. On an error none is
/// left at its target.
pub(crate) fn all(parts: &[(PathBuf, PathBuf)]) -> io::Result<()> {
    let files = parts.iter().map(|(from, _)| inspect(from)).collect::<io::Result<Vec<_>>>()?;
    // The state is moved last: as long as it is here, it marks the snapshot as not taken.
    let mut taking = files.iter().zip(parts).rev();
    let taken = taking.try_for_each(|(file, (from, to))| take(file, from, to));
    taken.inspect_err(|_| parts.iter().for_each(|(_, to)| drop(fs::remove_file(to))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_not_taken_for_a_snapshot_whenever_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let [secret, from, to] = ["secret", "from", "to"].map(|name| dir.path().join(name));
        fs::write(&secret, "secret").unwrap();
        fs::write(&from, "memory").unwrap();
        let file = inspect(&from).unwrap();
        fs::remove_file(&from).unwrap();
        std::os::unix::fs::symlink(&secret, &from).unwrap();
        assert!(take(&file, &from, &to).is_err());
        assert!(to.symlink_metadata().is_err());
        std::os::unix::fs::symlink(&secret, &from).unwrap();
        assert!(inspect(&from).is_err());
    }
}
