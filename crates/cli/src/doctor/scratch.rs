// SPDX-License-Identifier: Apache-2.0
//! Temporary directory in which `wrenn doctor` probes KVM; a later doctor finds and removes that of a killed
//! one.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use wrenn_os::process::identify;
use wrenn_vmm::process::{Watched, find};

const PREFIX: &str = "wrenn-doctor-";

/// A directory that is removed when this value is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Scratch {
    /// Creates the directory, and removes those of killed doctors.
    pub(super) fn new() -> Result<Self> {
        for dir in Self::abandoned()? {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        let dir = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        // Newly created, so that no other user controls it; VMMs access their own directories in it.
        DirBuilder::new()
            .mode(0o711)
            .create(&dir)
            .with_context(|| format!("cannot make {}: remove it if it is there", dir.display()))?;
        Ok(Self(dir))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Kills the VMM that runs in it, when a probe is aborted.
    pub(super) async fn end_vmm(&self) -> Result<()> {
        let Some(id) = find(&self.0.join("probe")).context("cannot look at all processes")? else {
            return Ok(());
        };
        if let Some(vmm) = Watched::open(id)? {
            vmm.kill()?;
            vmm.exited().await;
        }
        Ok(())
    }

    /// Directories of this user whose doctor has ended.
    pub(crate) fn abandoned() -> Result<Vec<PathBuf>> {
        Self::abandoned_in(&std::env::temp_dir())
    }

    fn abandoned_in(dir: &Path) -> Result<Vec<PathBuf>> {
        let own = rustix::process::geteuid().as_raw();
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let pid =
                name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse().ok());
            let Some(pid) = pid else { continue };
            let mine = match entry.metadata() {
                Ok(meta) => meta.is_dir() && meta.uid() == own,
                // It was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(error.into()),
            };
            if mine && identify(pid)?.is_none() {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_its_doctor_is_found() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut child = std::process::Command::new("true").spawn()?;
        let dead = dir.path().join(format!("{PREFIX}{}", child.id()));
        child.wait()?;
        for name in [format!("{PREFIX}{}", std::process::id()), format!("{PREFIX}x"), "other".to_owned()] {
            fs::create_dir(dir.path().join(name))?;
        }
        assert_eq!(Scratch::abandoned_in(dir.path())?, Vec::<PathBuf>::new());
        fs::create_dir(&dead)?;
        assert_eq!(Scratch::abandoned_in(dir.path())?, [dead]);
        Ok(())
    }
}
