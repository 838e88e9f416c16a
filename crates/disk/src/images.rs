// SPDX-License-Identifier: Apache-2.0
//! Images of a store: immutable files with a name and the hash of their content.
//!
//! `images/NAME/HASH.img` is the content, `HASH.seal` has its metadata to detect later changes, and `current`
//! has the current hash of the name and the origin of the content.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};
use wrenn_os::{atomic_file, sparse_file};

use crate::{
    DiskError, Image, checked, cloning::reflink, failed, free_space::FreeSpace, partial_file::PartialFile,
};

/// Granularity of image lengths, as device-mapper tables need it.
const GRAIN: u64 = 4096;

/// Images in one directory.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    dir: Arc<Path>,
    reflink: bool,
    free_space: FreeSpace,
}

/// Open image whose seal was verified.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: File,
    pub(crate) hash: String,
    pub(crate) size: u64,
}

fn hash(mut file: &File) -> io::Result<String> {
    io::Seek::rewind(&mut file)?;
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

/// Metadata that identifies the version of a file without reading it.
fn fingerprint(meta: &fs::Metadata) -> String {
    format!("{} {} {}.{}", meta.len(), meta.ino(), meta.mtime(), meta.mtime_nsec())
}

/// Lists the names in `dir` that end with `suffix`, without the suffix.
pub(crate) fn names(dir: &Path, suffix: &str) -> Result<Vec<String>, DiskError> {
    let fail = || failed("list the volume store");
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail())? {
        let name = entry.map_err(fail())?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(suffix)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Removes a file. Does nothing if there is none.
pub(crate) fn remove_file(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

impl Images {
    /// Creates the image collection of a store; `reflink` says whether its files can share extents.
    pub(crate) fn new(free_space: FreeSpace, reflink: bool) -> Self {
        Self { dir: free_space.dir.join("images").into(), reflink, free_space }
    }

    fn home(&self, name: &str) -> Result<PathBuf, DiskError> {
        Ok(self.dir.join(checked(name)?))
    }

    /// Copies the content of a file to another one, with shared extents if possible.
    pub(crate) fn fill(&self, source: &File, target: &File) -> io::Result<()> {
        if self.reflink && reflink(source, target).is_ok() {
            return Ok(());
        }
        sparse_file::copy(source, target, || self.free_space.check_piece())
    }

    /// Returns the current hash of `name`.
    fn current(&self, name: &str) -> Result<String, DiskError> {
        let text =
            fs::read_to_string(self.home(name)?.join("current")).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => DiskError::UnknownImage(name.to_owned()),
                _ => failed("read the image")(error),
            })?;
        Ok(checked(text.lines().next().unwrap_or_default())?.to_owned())
    }

    /// Opens the current content of `name`.
    pub(crate) fn open(&self, name: &str) -> Result<Opened, DiskError> {
        self.open_hash(name, &self.current(name)?)
    }

    /// Returns the current content of `name`.
    pub(crate) fn image(&self, name: &str) -> Result<Image, DiskError> {
        let Opened { hash, size, .. } = self.open(name)?;
        Ok(Image { name: name.to_owned(), hash, size })
    }

    /// Opens the content `hash`, current or former, of `name`.
    pub(crate) fn open_hash(&self, name: &str, hash: &str) -> Result<Opened, DiskError> {
        let path = self.home(name)?.join(format!("{}.img", checked(hash)?));
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DiskError::UnknownImage(name.to_owned()),
            _ => failed(format!("open image {name:?}"))(error),
        })?;
        let meta = file.metadata().map_err(failed("measure the image"))?;
        let seal = fs::read_to_string(path.with_extension("seal")).unwrap_or_default();
        if seal != fingerprint(&meta) {
            return Err(DiskError::ImageChanged(name.to_owned()));
        }
        Ok(Opened { file, hash: hash.to_owned(), size: meta.len() })
    }

    /// Imports `source` as image `name`.
    pub(crate) fn prepare(&self, name: &str, source: &Path) -> Result<(), DiskError> {
        let home = self.home(name)?;
        let action = format!("take in image {name:?} from {}", source.display());
        let fail = || failed(action.clone());
        let from = File::open(source).map_err(fail())?;
        let seen = fingerprint(&from.metadata().map_err(fail())?);
        let known = fs::read_to_string(home.join("current")).unwrap_or_default();
        if known.lines().nth(1) == Some(&seen) && self.open(name).is_ok() {
            return Ok(());
        }
        // Hash the copy, because `source` may change while it is read.
        let copy = self.begin(name, "file")?;
        self.fill(&from, &copy.file).map_err(fail())?;
        self.adopt(name, copy, &seen).map(drop)
    }

    /// Makes the file `source`, which is in the store's file system, the current content of `name`. It is moved.
    pub(crate) fn take(&self, name: &str, source: &Path) -> Result<Image, DiskError> {
        let mut made = self.begin(name, "moved")?;
        let moved = fs::rename(source, &made.path)
            .and_then(|()| File::options().read(true).write(true).open(&made.path));
        made.file = moved.map_err(failed(format!("take in image {name:?}")))?;
        self.adopt(name, made, "moved")
    }

    /// Makes a finished image read-only, gives it its final name and writes its seal. Returns its length.
    fn seal(image: PartialFile) -> io::Result<u64> {
        let length = image.file.metadata()?.len();
        image.file.set_permissions(fs::Permissions::from_mode(0o400))?;
        let seal = image.target().with_extension("seal");
        let seen = fingerprint(&image.file.metadata()?);
        image.keep()?;
        atomic_file::write(&seal, seen.as_bytes(), 0o600, None)?;
        Ok(length)
    }

    /// Creates a temporary file for the content of image `name`; `id` distinguishes concurrent creators.
    pub(crate) fn begin(&self, name: &str, id: &str) -> Result<PartialFile, DiskError> {
        let home = self.home(name)?;
        let made = fs::create_dir_all(&home)
            .and_then(|()| PartialFile::new(&home.join(format!("from-{id}")), 0o600));
        made.map_err(failed(format!("begin image {name:?}")))
    }

    /// Makes a finished file the current content of `name`; `origin` says where it came from.
    pub(crate) fn adopt(&self, name: &str, made: PartialFile, origin: &str) -> Result<Image, DiskError> {
        let home = self.home(name)?;
        let fail = || failed(format!("keep image {name:?}"));
        // The hash is that of what is kept, so that another host which gets that finds the same.
        let length = made.file.metadata().map_err(fail())?.len().next_multiple_of(GRAIN);
        made.file.set_len(length).map_err(fail())?;
        let hash = hash(&made.file).map_err(fail())?;
        let size = match self.open_hash(name, &hash) {
            Ok(present) => present.size,
            Err(_) => Self::seal(made.aimed_at(&home.join(format!("{hash}.img")))).map_err(fail())?,
        };
        atomic_file::write(&home.join("current"), format!("{hash}\n{origin}\n").as_bytes(), 0o600, None)
            .map_err(fail())?;
        Ok(Image { name: name.to_owned(), hash, size })
    }

    /// Lists the names of all images.
    pub(crate) fn list(&self) -> Result<Vec<String>, DiskError> {
        let mut names = names(&self.dir, "")?;
        names.retain(|name| self.current(name).is_ok());
        Ok(names)
    }

    /// Removes image `name` with all its contents. Does nothing if there is none.
    pub(crate) fn remove(&self, name: &str) -> Result<(), DiskError> {
        let home = self.home(name)?;
        // Remove `current` first, so that an interrupted removal leaves nothing that can be cloned.
        remove_file(&home.join("current"))?;
        match fs::remove_dir_all(home) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove the image")(error)),
            _ => Ok(()),
        }
    }

    /// Removes contents that are neither current nor `used` (name, hash), and temporary files. Returns their
    /// number.
    pub(crate) fn sweep(&self, used: impl Fn(&str, &str) -> bool) -> Result<usize, DiskError> {
        let mut removed = 0;
        for name in names(&self.dir, "")? {
            let Ok(home) = self.home(&name) else { continue };
            let current = match self.current(&name) {
                Ok(current) => current,
                Err(DiskError::UnknownImage(_)) => String::new(),
                // Which content is the current one is not known, so all of them stay.
                Err(error) => {
                    tracing::warn!(%error, image = name, "keeping all contents of an image");
                    continue;
                }
            };
            for suffix in [PartialFile::SUFFIX, atomic_file::SUFFIX] {
                for partial in names(&home, suffix)? {
                    remove_file(&home.join(format!("{partial}{suffix}")))?;
                    removed += 1;
                }
            }
            for hash in names(&home, ".img")? {
                if hash != current && !used(&name, &hash) {
                    remove_file(&home.join(format!("{hash}.img")))?;
                    remove_file(&home.join(format!("{hash}.seal")))?;
                    removed += 1;
                }
            }
            if current.is_empty() {
                // Fails while a content is still used, as intended.
                let _ = fs::remove_dir(&home);
            }
        }
        Ok(removed)
    }
}
