//! A file that is being written: in place, or beside its name until all of it has come.

use std::{
    fs::{self, File, Metadata, OpenOptions, Permissions},
    hash::{BuildHasher as _, RandomState},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use tokio::io::AsyncWriteExt as _;

use crate::{filesystem::make_parents, regular, users::User};

/// Links that are followed to find where a file is or would be, as many as the kernel follows.
const LINKS: usize = 40;
/// Names that are tried for a temporary file.
const NAMES: usize = 8;

/// A file being written. Dropped before `finish`, it removes its temporary file.
pub(crate) struct Upload {
    pub(crate) file: tokio::fs::File,
    path: PathBuf,
    temporary: Option<PathBuf>,
    /// Whether it is on the disk before it has its name.
    sync: bool,
}

impl Upload {
    /// Opens `path` for a user, with the parents it lacks. A file that exists keeps its owner and mode, a new one is the
    /// user's with mode 0644; a symbolic link is followed, also to where nothing is yet. Blocks.
    pub(crate) fn open(path: &Path, user: &User, atomic: bool) -> io::Result<Self> {
        make_parents(path, user)?;
        // Said before links are followed: what some of /proc lead to has no path.
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
            // The kernel's own files cannot be replaced, only written to.
            Some((file, _)) if !atomic || regular::is_pseudo(&file)? => {
                file.set_len(0)?;
                Ok(Self { file: tokio::fs::File::from_std(file), path, temporary: None, sync: false })
            }
            old => Self::beside(path, user, old.map(|(_, meta)| meta).as_ref(), atomic),
        }
    }

    /// Makes a new file, under a name of its own until it is finished: a file never has an owner that is not its own.
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
        // After the owner, whose change takes the set-id bits away.
        file.set_permissions(Permissions::from_mode(old.map_or(0o644, |meta| meta.mode() & 0o7777)))?;
        Ok(upload)
    }

    /// Gives the file its name, now that all of it has come.
    pub(crate) async fn finish(mut self) -> io::Result<()> {
        self.file.flush().await?;
        if let Some(temporary) = &self.temporary {
            if self.sync {
                self.file.sync_all().await?;
            }
            tokio::fs::rename(temporary, &self.path).await?;
            self.temporary = None;
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

/// A new file beside `path`, whose name nobody can foresee.
fn make_temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for attempt in 0..NAMES {
        // Random keys, new ones each time.
        let temporary = path.with_file_name(format!(".envd-{:016x}", RandomState::new().hash_one(attempt)));
        match options.open(&temporary) {
            Ok(file) => return Ok((file, temporary)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Where a path leads when its last part is a symbolic link.
fn target(path: &Path) -> io::Result<PathBuf> {
    // Of what exists the kernel knows it, links of /proc that lead to no path included.
    if path.exists() {
        return fs::canonicalize(path);
    }
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            // A link's own directory counts, so that is looked up first.
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
