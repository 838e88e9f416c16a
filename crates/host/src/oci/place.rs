// SPDX-License-Identifier: Apache-2.0
//! Working directories of imports: one for each import, with the blobs, the tree that they are unpacked to, and the file system
//! that is made of it. One that is there when the agent starts is left by a former one.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use wrenn_oci::Digest;

use super::remove;
use crate::cgroup;

/// Mode of directories that nobody else reads, and of the tree.
const OWN: u32 = 0o700;
const TREE: u32 = 0o755;

/// Working directory of an import.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: PathBuf,
}

impl Place {
    /// Returns the one at a path, which may be absent.
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its name in the directory of all.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Directory of the tree.
    pub(super) fn tree(&self) -> PathBuf {
        self.path.join("tree")
    }

    /// File that becomes the file system.
    pub(super) fn image(&self) -> PathBuf {
        self.path.join("rootfs.ext4")
    }

    /// File that the process which unpacks reports in.
    pub(super) fn report(&self) -> PathBuf {
        self.path.join("report")
    }

    /// File with a blob.
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    /// Makes it, empty. Blocks.
    pub(super) fn make(&self) -> io::Result<()> {
        self.remove()?;
        for directory in [&self.path, &self.blobs(), &self.tree()] {
            fs::DirBuilder::new().mode(OWN).create(directory)?;
        }
        fs::set_permissions(self.tree(), fs::Permissions::from_mode(TREE))
    }

    /// Removes what the file system was made of. Blocks.
    pub(super) fn clear(&self) -> io::Result<()> {
        [self.tree(), self.blobs(), self.report()].iter().try_for_each(|path| remove::all(path))
    }

    /// Removes it with all that is in it. Does nothing if there is none. Blocks.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove::all(&self.path)
    }
}

/// Removes all working directories in this directory, with the control groups of their processes, which have ended with their
/// agent. Does nothing if there is no directory. Blocks.
pub(crate) fn remove_leftovers(imports: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(imports) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut first = Ok(());
    for entry in entries {
        let entry = entry?;
        // One that cannot be removed keeps no other. Its directory stays, because it names the group.
        let group = entry.file_name().to_str().map_or(Ok(()), cgroup::remove);
        first = first.and(group.and_then(|()| remove::all(&entry.path())));
    }
    first
}

/// Makes the directory of all working directories, without any. One that cannot be removed is no failure: the next start
/// tries again. Blocks.
pub(super) fn begin(imports: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(OWN).recursive(true).create(imports)?;
    if let Err(error) = remove_leftovers(imports) {
        tracing::error!(%error, "cannot remove what is left of imports; the next start tries again");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_former_agent_left_goes_and_what_is_made_is_empty() -> anyhow::Result<()> {
        let home = tempfile::tempdir()?;
        let imports = home.path().join("imports");
        remove_leftovers(&imports)?;
        begin(&imports)?;
        let place = Place::at(imports.join("0b3c6e52-0000-8000-8000-000000000000-7"));
        assert_eq!(place.name(), "0b3c6e52-0000-8000-8000-000000000000-7");
        place.make()?;
        fs::write(place.tree().join("file"), "")?;
        fs::write(place.blob(&Digest::of(b"")), "")?;
        fs::write(place.image(), "")?;
        fs::write(imports.join("1-2.gone"), "")?;
        place.make()?;
        assert_eq!(fs::read_dir(place.tree())?.count(), 0);
        assert_eq!(fs::metadata(&imports)?.permissions().mode() & 0o777, OWN);
        fs::write(place.image(), "content")?;
        place.clear()?;
        assert_eq!(fs::read_dir(place.path())?.count(), 1);
        begin(&imports)?;
        assert_eq!(fs::read_dir(&imports)?.count(), 0);
        Ok(())
    }
}
