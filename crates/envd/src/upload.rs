// SPDX-License-Identifier: Apache-2.0
//! File upload: written in place, or if it is to be atomic to a temporary file that is renamed when it is complete.

use std::{
    fs::{self, File, Metadata, OpenOptions, Permissions},
    hash::{BuildHasher as _, RandomState},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use tokio::io::AsyncWriteExt as _;

use crate::{
    metadata,
    parents::make_parents,
    regular,
    users::{Ids, User},
};

/// Maximum number of symbolic links followed to find the target, as in the kernel.
const LINKS: usize = 40;
/// Maximum number of names tried for a temporary file.
const NAMES: usize = 8;
/// Mode of a new file.
const NEW: u32 = 0o644;

/// What a file gets when it is complete, instead of what it would have.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rights {
    /// Permission bits.
    pub(crate) mode: Option<u32>,
    pub(crate) ids: Ids,
}

impl Rights {
    fn give(self, file: &File) -> io::Result<()> {
        if self.ids != Ids::default() {
            fchown(file, self.ids.user, self.ids.group)?;
        }
        // Set the mode after the owner, because chown clears the set-id bits.
        self.mode.map_or(Ok(()), |mode| file.set_permissions(Permissions::from_mode(mode)))
    }
}

/// File being written. Dropping it before `finish` removes its temporary file; one that is written in place keeps what was
/// written, as clients of the wire contract expect.
pub(crate) struct Upload {
    pub(crate) file: tokio::fs::File,
    path: PathBuf,
    temporary: Option<PathBuf>,
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
            Some((file, _)) if !atomic || regular::is_pseudo(&file)? => Self::over(file, path),
            None if !atomic => Self::new(path, user),
            old => Self::beside(path, user, old.map(|(_, meta)| meta).as_ref()),
        }
    }

    /// Writes over an existing file.
    fn over(file: File, path: PathBuf) -> io::Result<Self> {
        file.set_len(0)?;
        Ok(Self { file: tokio::fs::File::from_std(file), path, temporary: None })
    }

    /// Creates a file under its name: who watches the directory is to see it created and written.
    fn new(path: PathBuf, user: &User) -> io::Result<Self> {
        let file = match create(&path) {
            // Another process has created it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Self::over(regular::open_to_write(&path)?, path);
            }
            other => other?,
        };
        fchown(&file, Some(user.uid), Some(user.gid))?;
        file.set_permissions(Permissions::from_mode(NEW))?;
        Ok(Self { file: tokio::fs::File::from_std(file), path, temporary: None })
    }

    /// Creates a temporary file, so that a file never has a wrong owner.
    fn beside(path: PathBuf, user: &User, old: Option<&Metadata>) -> io::Result<Self> {
        let (file, temporary) = make_temporary(&path)?;
        let upload =
            Self { file: tokio::fs::File::from_std(file.try_clone()?), path, temporary: Some(temporary) };
        let (uid, gid) = old.map_or((user.uid, user.gid), |meta| (meta.uid(), meta.gid()));
        fchown(&file, Some(uid), Some(gid))?;
        // Set the mode after the owner, because chown clears the set-id bits.
        file.set_permissions(Permissions::from_mode(old.map_or(NEW, |meta| meta.mode() & 0o7777)))?;
        Ok(upload)
    }

    /// Replaces the metadata, sets the rights, and renames a temporary file to its final name. Returns the metadata that the
    /// file has, which is none on a file system that cannot keep any.
    pub(crate) async fn finish(
        mut self,
        metadata: &metadata::Metadata,
        rights: Rights,
    ) -> io::Result<metadata::Metadata> {
        self.file.flush().await?;
        let (file, given) = (self.file.try_clone().await?.into_std().await, metadata.clone());
        let kept = tokio::task::spawn_blocking(move || {
            rights.give(&file)?;
            match metadata::replace(&file, &given) {
                Ok(()) => Ok(metadata::of_file(&file)),
                Err(Errno::NOTSUP | Errno::PERM) => Ok(metadata::Metadata::new()),
                Err(error) => Err(io::Error::from(error)),
            }
        });
        let kept = kept.await.map_err(io::Error::other)??;
        if let Some(temporary) = &self.temporary {
            self.file.sync_all().await?;
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

/// Creates a file that nobody else can open until it has its owner and mode.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options.open(path)
}

/// Creates a temporary file beside `path` with an unpredictable name.
fn make_temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..NAMES {
        let temporary = temporary_name(path);
        match create(&temporary) {
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
