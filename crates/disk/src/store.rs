//! A directory of images and volumes.
//!
//! `images/NAME/HASH.img` are immutable; the newest is the one that is cloned. `volumes/ID.img` are the
//! clones. Both appear under their names only when they are complete.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use crate::{
    BlockDevice, DiskError, Volumes,
    cloning::{can_reflink, reflink, sparse_copy},
};

/// How volumes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Shared extents where the file system has them, else copies.
    Auto,
    /// Shared extents (XFS, Btrfs).
    Reflink,
    /// Sparse copies.
    Copy,
}

/// Images and volumes in one directory.
#[derive(Debug, Clone)]
pub struct Store {
    dir: Arc<Path>,
    reflink: bool,
}

fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> DiskError {
    let action = action.into();
    move |source| match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskError::Full,
        _ => DiskError::Io { action, source },
    }
}

/// Names become file names: no separators, no leading dot, no surprises.
fn checked(name: &str) -> Result<&str, DiskError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let valid = name.len() <= 64
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(inner);
    if valid { Ok(name) } else { Err(DiskError::InvalidName(name.to_owned())) }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
) -> Result<T, DiskError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| failed("finish disk work")(error.into()))?
}

fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What tells whether a source file is the one that was taken in, without reading it.
fn fingerprint(path: &Path) -> io::Result<String> {
    let meta = fs::metadata(path)?;
    Ok(format!("{} {} {}.{}", meta.len(), meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

impl Store {
    /// Opens the store in `dir`, making it where it is missing.
    pub async fn open(dir: &Path, backend: Backend) -> Result<Self, DiskError> {
        let dir: Arc<Path> = dir.into();
        blocking(move || {
            for part in ["images", "volumes"] {
                fs::create_dir_all(dir.join(part)).map_err(failed("make the volume store"))?;
            }
            let possible = can_reflink(&dir).map_err(failed("try the volume store"))?;
            if backend == Backend::Reflink && !possible {
                let source = io::Error::new(io::ErrorKind::Unsupported, "its file system shares no extents");
                return Err(failed("use reflinks in the volume store; use XFS or Btrfs, or backend `copy`")(
                    source,
                ));
            }
            Ok(Self { dir, reflink: possible && backend != Backend::Copy })
        })
        .await
    }

    fn volume(&self, id: &str) -> Result<PathBuf, DiskError> {
        Ok(self.dir.join("volumes").join(format!("{}.img", checked(id)?)))
    }

    /// The image file that `name` stands for at the moment.
    fn image(&self, name: &str) -> Result<PathBuf, DiskError> {
        let dir = self.dir.join("images").join(checked(name)?);
        let current = fs::read_to_string(dir.join("current")).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DiskError::UnknownImage(name.to_owned()),
            _ => failed("read the image")(error),
        })?;
        let hash = current.lines().next().unwrap_or_default();
        Ok(dir.join(format!("{}.img", checked(hash)?)))
    }

    fn fill(&self, source: &File, target: &File) -> io::Result<()> {
        if self.reflink && reflink(source, target).is_ok() {
            return Ok(());
        }
        sparse_copy(source, target)
    }

    fn prepare_now(&self, name: &str, source: &Path) -> Result<(), DiskError> {
        let dir = self.dir.join("images").join(checked(name)?);
        let action = format!("take in image {name:?}");
        let fail = || failed(action.clone());
        let seen = fingerprint(source).map_err(fail())?;
        let current = dir.join("current");
        if fs::read_to_string(&current).is_ok_and(|text| text.lines().nth(1) == Some(&seen)) {
            return Ok(());
        }
        let key = hash(source).map_err(fail())?;
        fs::create_dir_all(&dir).map_err(fail())?;
        let image = dir.join(format!("{key}.img"));
        if !image.exists() {
            let beside = Beside::new(&image, 0o600).map_err(fail())?;
            let from = File::open(source).map_err(fail())?;
            self.fill(&from, &beside.file).and_then(|()| beside.keep()).map_err(fail())?;
        }
        let beside = Beside::new(&current, 0o600).map_err(fail())?;
        io::Write::write_all(&mut &beside.file, format!("{key}\n{seen}\n").as_bytes()).map_err(fail())?;
        beside.keep().map_err(fail())
    }

    fn clone_now(&self, image: &str, id: &str, size_mb: u64, owner: u32) -> Result<BlockDevice, DiskError> {
        let fail = || failed("clone the image");
        let target = self.volume(id)?;
        let source = File::open(self.image(image)?).map_err(fail())?;
        let image_size = source.metadata().map_err(fail())?.len();
        let size = size_mb << 20;
        if size < image_size {
            return Err(DiskError::TooSmall { asked_mb: size_mb, image_mb: image_size.div_ceil(1 << 20) });
        }
        let beside = Beside::new(&target, 0o600).map_err(fail())?;
        self.fill(&source, &beside.file).map_err(fail())?;
        beside.file.set_len(size).map_err(fail())?;
        fchown(&beside.file, Some(owner), Some(owner)).map_err(fail())?;
        // Not synced: a volume whose host lost power belongs to a microVM that is gone.
        beside.rename().map_err(fail())?;
        Ok(BlockDevice { path: target, size })
    }
}

/// A file that is written beside its final name and removed unless it is kept.
struct Beside {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Beside {
    fn new(target: &Path, mode: u32) -> io::Result<Self> {
        let path = target.with_extension("partial");
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).mode(mode).open(&path)?;
        Ok(Self { file, path, target: target.to_owned() })
    }

    fn keep(self) -> io::Result<()> {
        self.file.sync_all()?;
        let dir = self.target.parent().map(File::open).transpose()?;
        self.rename()?;
        dir.map_or(Ok(()), |dir| dir.sync_all())
    }

    fn rename(self) -> io::Result<()> {
        fs::rename(&self.path, &self.target)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After the rename there is nothing of this name.
        let _ = fs::remove_file(&self.path);
    }
}

fn names(dir: &Path, suffix: &str) -> Result<Vec<String>, DiskError> {
    let entries = fs::read_dir(dir).map_err(failed("list the volume store"))?;
    let name = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(suffix).map(str::to_owned);
    let mut names: Vec<_> = entries.flatten().filter_map(name).collect();
    names.sort();
    Ok(names)
}

#[async_trait]
impl Volumes for Store {
    fn backend(&self) -> &'static str {
        if self.reflink { "reflink" } else { "copy" }
    }

    async fn prepare(&self, name: &str, source: &Path) -> Result<(), DiskError> {
        let (store, name, source) = (self.clone(), name.to_owned(), source.to_owned());
        blocking(move || store.prepare_now(&name, &source)).await
    }

    async fn images(&self) -> Result<Vec<String>, DiskError> {
        let dir = self.dir.join("images");
        blocking(move || names(&dir, "")).await
    }

    async fn clone_image(
        &self,
        image: &str,
        id: &str,
        size_mb: u64,
        owner: u32,
    ) -> Result<BlockDevice, DiskError> {
        let (store, image, id) = (self.clone(), image.to_owned(), id.to_owned());
        blocking(move || store.clone_now(&image, &id, size_mb, owner)).await
    }

    async fn usage(&self, id: &str) -> Result<u64, DiskError> {
        let path = self.volume(id)?;
        blocking(move || Ok(fs::metadata(path).map_err(failed("measure the volume"))?.blocks() * 512)).await
    }

    async fn list(&self) -> Result<Vec<String>, DiskError> {
        let dir = self.dir.join("volumes");
        blocking(move || names(&dir, ".img")).await
    }

    async fn remove(&self, id: &str) -> Result<(), DiskError> {
        let path = self.volume(id)?;
        blocking(move || match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove the volume")(error)),
            _ => Ok(()),
        })
        .await
    }

    async fn space(&self) -> Result<(u64, u64), DiskError> {
        let dir = self.dir.clone();
        blocking(move || {
            let stat =
                rustix::fs::statvfs(&*dir).map_err(|e| failed("measure the volume store")(e.into()))?;
            Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
        })
        .await
    }
}
