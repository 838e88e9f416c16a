// SPDX-License-Identifier: Apache-2.0
//! Large files that are written under a temporary name, and renamed when they are complete.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// File under a temporary name, which is removed on drop unless it was renamed.
pub(crate) struct PartialFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    target: PathBuf,
}

impl PartialFile {
    /// Suffix of temporary names.
    pub(crate) const SUFFIX: &str = ".partial";

    pub(crate) fn new(target: &Path, mode: u32) -> io::Result<Self> {
        let mut name = target.as_os_str().to_owned();
        name.push(Self::SUFFIX);
        let path = PathBuf::from(name);
        // A previous one may be read-only or belong to another user.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = File::options().read(true).write(true).create_new(true).mode(mode).open(&path)?;
        Ok(Self { file, path, target: target.to_owned() })
    }

    /// Renames the file to its final name and syncs file and directory, so that both survive a power loss.
    pub(crate) fn keep(self) -> io::Result<()> {
        self.file.sync_all()?;
        let dir = self.target.parent().map(File::open).transpose()?;
        self.rename()?;
        dir.map_or(Ok(()), |dir| dir.sync_all())
    }

    /// Renames the file to its final name without syncing.
    pub(crate) fn rename(self) -> io::Result<()> {
        fs::rename(&self.path, &self.target)
    }

    /// Final path.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Changes the final path within the same file system, for names that depend on the content.
    pub(crate) fn aimed_at(mut self, target: &Path) -> Self {
        target.clone_into(&mut self.target);
        self
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // Fails after the rename, because the temporary name is gone.
        let _ = fs::remove_file(&self.path);
    }
}
