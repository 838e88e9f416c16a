// SPDX-License-Identifier: Apache-2.0
//! File upload: written in place, or to a temporary file that is renamed when it is complete.

use std::{
    fs::{self, File, Metadata, OpenOptions, Permissions},
    hash::{BuildHasher as _, RandomState},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use tokio::io::AsyncWriteExt as _;

use crate::{filesystem::make_parents, metadata, regular, users::User};

/// Maximum number of symbolic links followed to find the target, as in the kernel.
const LINKS: usize = 40;
/// Maximum number of names tried for a temporary file.
const NAMES: usize = 8;

/// File being written. Dropping it before `finish` removes its temporary file.
pub(crate) struct Upload {
    pub(crate) file: tokio::fs::File,
    path: PathBuf,
    temporary: Option<PathBuf>,
    /// Whether it is synced to disk before the rename.
    sync: bool,
}

impl Upload {
    /// Opens `path` for a user and creates missing parents. An existing file keeps its owner and mode; a new
    /// one belongs to the user with mode 0644. Follows a symbolic link, also to a file that does not exist
    /// yet. Blocking.
    pub(crate) fn open(path: &Path, user: &User, atomic: bool) -> io::Result<Self> {
        make_parents(path, user)?;
        // Check before following links, because some links in /proc have no path.
        if let Ok(meta) = fs::metadata(path) {
            regular::check(&meta)?;
        }
        let path = target(path)?;
        let old = match fs::metadata(&path) {
            Ok(_) => {
                let file = regular::open_to_write(&path)?;
                let meta = file.metadata()?;
                Some((file, meta))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        match old {
            // Kernel files cannot be replaced, only written.
            Some((file, _)) if !atomic || regular::is_pseudo(&file)? => {
                file.set_len(0)?;
                Ok(Self { file: tokio::fs::File::from_std(file), path, temporary: None, sync: false })
            }
            old => Self::beside(path, user, old.map(|(_, meta)| meta).as_ref(), atomic),
        }
    }

    /// Creates a temporary file, so that a file never has a wrong owner.
    fn beside(path: PathBuf, user: &User, old: Option<&Metadata>, sync: bool) -> io::Result<Self> {
        let (file, temporary) = make_temporary(&path)?;
        let upload = Self {
            file: tokio::fs::File::from_std(file.try_clone()?),
            path,
            temporary: Some(temporary),
            sync,
        };
        let (uid, gid) = old.map_or((user.uid, user.gid), |meta| (meta.uid(), meta.gid()));
        fchown(&file, Some(uid), Some(gid))?;
        // Set the mode after the owner, because chown clears the set-id bits.
        file.set_permissions(Permissions::from_mode(old.map_or(0o644, |meta| meta.mode() & 0o7777)))?;
        Ok(upload)
    }

    /// Replaces the metadata and renames a temporary file to its final name. Returns the metadata that the file has, which
    /// is none on a file system that cannot keep any.
    pub(crate) async fn finish(mut self, metadata: &metadata::Metadata) -> io::Result<metadata::Metadata> {
        self.file.flush().await?;
        let (file, given) = (self.file.try_clone().await?.into_std().await, metadata.clone());
        let kept = tokio::task::spawn_blocking(move || match metadata::replace(&file, &given) {
            Ok(()) => Ok(metadata::of_file(&file)),
            Err(Errno::NOTSUP | Errno::PERM) => Ok(metadata::Metadata::new()),
            Err(error) => Err(io::Error::from(error)),
        });
        let kept = kept.await.map_err(io::Error::other)??;
        if let Some(temporary) = &self.temporary {
            if self.sync {
                self.file.sync_all().await?;
            }
            tokio::fs::rename(temporary, &self.path).await?;
            self.temporary = None;
        }
        Ok(kept)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Creates a temporary file beside `path` with an unpredictable name.
fn make_temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..NAMES {
        let temporary = temporary_name(path);
        match options.open(&temporary) {
            Ok(file) => return Ok((file, temporary)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Returns an unpredictable name beside `path`.
pub(crate) fn temporary_name(path: &Path) -> PathBuf {
    // RandomState has new random keys each time.
    path.with_file_name(format!(".envd-{:016x}", RandomState::new().hash_one(0)))
}

/// Resolves a path whose last part may be a symbolic link.
fn target(path: &Path) -> io::Result<PathBuf> {
    // The kernel resolves existing paths, including links in /proc that have no path.
    if path.exists() {
        return fs::canonicalize(path);
    }
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            // A link is relative to its own directory, so resolve that first.
            Ok(link) => path = real_directory(&path)?.join(link),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn real_directory(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path.parent().unwrap_or(Path::new("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_to_where_nothing_is() {
        let dir = tempfile::tempdir().unwrap();
        let (sub, link, other) =
            (dir.path().join("sub"), dir.path().join("link"), dir.path().join("sub/other"));
        fs::create_dir(&sub).unwrap();
        std::os::unix::fs::symlink("sub/other", &link).unwrap();
        std::os::unix::fs::symlink("../new", &other).unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        assert_eq!(fs::canonicalize(target(&link).unwrap().parent().unwrap()).unwrap(), real);
        assert_eq!(target(&link).unwrap().file_name().unwrap(), "new");
        let round = dir.path().join("round");
        std::os::unix::fs::symlink("round", &round).unwrap();
        assert_eq!(target(&round).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert_eq!(target(&dir.path().join("plain")).unwrap(), dir.path().join("plain"));
    }
}
