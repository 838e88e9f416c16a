// SPDX-License-Identifier: Apache-2.0
//! Local destination of a copy: a regular file is replaced when the copy is complete, anything else is
//! written directly.

use std::{
    io,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use std::os::unix::fs::PermissionsExt as _;
use tokio::{
    fs,
    io::{AsyncWrite, AsyncWriteExt as _},
};

/// Maximum number of symbolic links followed, as in the kernel.
const LINKS_MAX: usize = 40;

/// Kind of destination.
#[derive(Debug)]
enum Target {
    /// Device, pipe or open file below /proc, such as /dev/stdout.
    Through(PathBuf),
    /// Regular file, with its metadata if it exists.
    Replace(PathBuf, Option<std::fs::Metadata>),
}

/// Local file being written. If dropped without [`LocalFile::commit`], a regular file stays unchanged.
pub(super) struct LocalFile {
    output: Box<dyn AsyncWrite + Send + Unpin>,
    /// Temporary path and final path.
    rename: Option<(PathBuf, PathBuf)>,
}

impl LocalFile {
    /// Writes to standard output.
    pub(super) fn stdout() -> Self {
        Self { output: Box::new(tokio::io::stdout()), rename: None }
    }

    /// Opens `path`, or the file `name` in it if it is a directory. A new file gets the mode `mode`.
    pub(super) async fn open(path: &Path, name: &str, mode: u32) -> Result<Self> {
        let mut path = path.to_owned();
        if path.is_dir() {
            path.push(name);
        }
        match find(&path).await? {
            Target::Through(path) => {
                let file = fs::OpenOptions::new().write(true).truncate(true).open(&path).await?;
                Ok(Self { output: Box::new(file), rename: None })
            }
            Target::Replace(path, old) => Self::beside(path, old.as_ref(), mode).await,
        }
    }

    async fn beside(path: PathBuf, old: Option<&std::fs::Metadata>, mode: u32) -> Result<Self> {
        let beside = path.with_file_name(format!(".wrenn-{}.part", std::process::id()));
        let file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode & 0o777).open(&beside).await?;
        let this = Self { output: Box::new(file), rename: Some((beside.clone(), path)) };
        if let Some(old) = old {
            // Only root can change the owner; otherwise the new file belongs to the current user.
            let _ = chown(&beside, Some(old.uid()), Some(old.gid()));
            fs::set_permissions(&beside, std::fs::Permissions::from_mode(old.mode() & 0o7777)).await?;
        }
        Ok(this)
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes).await
    }

    /// Renames the file to its final name.
    pub(super) async fn commit(mut self) -> io::Result<()> {
        self.output.flush().await?;
        if let Some((beside, path)) = &self.rename {
            fs::rename(beside, path).await?;
            self.rename = None;
        }
        Ok(())
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        if let Some((beside, _)) = &self.rename {
            let _ = std::fs::remove_file(beside);
        }
    }
}

/// Follows symbolic links to the destination, which need not exist.
async fn find(path: &Path) -> Result<Target> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let name = path
            .file_name()
            .with_context(|| format!("{} is not the path of a file", path.display()))?
            .to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = fs::canonicalize(parent).await.with_context(|| parent.display().to_string())?;
        path = parent.join(name);
        // Links of open files lead to names that may not exist or be another file now.
        if path.starts_with("/proc") {
            return Ok(Target::Through(path));
        }
        let meta = match fs::symlink_metadata(&path).await {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Target::Replace(path, None)),
            Err(error) => return Err(error.into()),
        };
        if !meta.is_symlink() {
            ensure!(!meta.is_dir(), "{} is a directory", path.display());
            return Ok(if meta.is_file() {
                Target::Replace(path, Some(meta))
            } else {
                Target::Through(path)
            });
        }
        path = parent.join(fs::read_link(&path).await?);
    }
    Err(io::Error::from(rustix::io::Errno::LOOP).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, symlink};

    use super::*;

    async fn put(path: &Path, content: &str) -> Result<()> {
        let mut file = LocalFile::open(path, "name", 0o755).await?;
        file.write(content.as_bytes()).await?;
        Ok(file.commit().await?)
    }

    fn mode(path: &Path) -> Result<u32> {
        Ok(std::fs::metadata(path)?.mode() & 0o7777)
    }

    #[tokio::test]
    async fn a_new_file_gets_its_mode_and_an_old_one_keeps_its_own() -> Result<()> {
        let dir = tempfile::tempdir()?;
        put(&dir.path().join("new"), "1").await?;
        assert_eq!(mode(&dir.path().join("new"))? & 0o700, 0o700);
        let old = dir.path().join("old");
        std::fs::write(&old, "old")?;
        std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o604))?;
        put(&old, "2").await?;
        assert_eq!((std::fs::read_to_string(&old)?.as_str(), mode(&old)?), ("2", 0o604));
        put(dir.path(), "3").await?;
        assert_eq!(std::fs::read_to_string(dir.path().join("name"))?, "3");
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 3);
        Ok(())
    }

    #[tokio::test]
    async fn half_a_file_replaces_nothing() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let old = dir.path().join("old");
        std::fs::write(&old, "old")?;
        let mut file = LocalFile::open(&old, "", 0o644).await?;
        file.write(b"half").await?;
        drop(file);
        assert_eq!(std::fs::read_to_string(&old)?, "old");
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
        Ok(())
    }

    #[tokio::test]
    async fn links_are_followed_also_where_they_lead_to_nothing() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (link, loops) = (dir.path().join("link"), dir.path().join("loop"));
        std::fs::create_dir(dir.path().join("sub"))?;
        symlink("sub/target", &link)?;
        for content in ["first", "second"] {
            put(&link, content).await?;
            assert_eq!(std::fs::read_to_string(dir.path().join("sub/target"))?, content);
            assert!(std::fs::symlink_metadata(&link)?.is_symlink());
        }
        symlink("loop", &loops)?;
        assert!(put(&loops, "x").await.is_err());
        Ok(())
    }

    #[tokio::test]
    async fn pipes_and_open_files_are_written_through() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)?;
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || std::fs::read_to_string(fifo)
        });
        put(&fifo, "through").await?;
        assert_eq!(reader.join().map_err(|_| anyhow::anyhow!("panicked"))??, "through");
        assert!(std::fs::symlink_metadata(&fifo)?.file_type().is_fifo());
        // Like /dev/stdout: a link to an entry of /proc.
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        let open = std::fs::File::create(&target)?;
        symlink(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open)), &link)?;
        let inode = std::fs::metadata(&target)?.ino();
        put(&link, "stays").await?;
        assert_eq!(std::fs::read_to_string(&target)?, "stays");
        assert_eq!(std::fs::metadata(&target)?.ino(), inode);
        put(Path::new("/dev/null"), "nothing").await?;
        assert!(std::fs::metadata("/dev/null")?.file_type().is_char_device());
        Ok(())
    }
}
