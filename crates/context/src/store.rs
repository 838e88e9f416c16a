// SPDX-License-Identifier: Apache-2.0
//! Contexts that are kept in a directory, each by its digest: `<digest>.tar` has the contents, and `<digest>.json` says what
//! is in it and where. The second file is written when the first one is complete, and a context is one only with both.
//!
//! Several servers may share the directory. What a server left when it died is removed when it is an hour old, because
//! another one may be writing what is younger.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use uuid::Uuid;
use wrenn_os::atomic_file;

use crate::{
    archive, context::Context, error::ContextError, hash::is_digest, intake::Intake, limits::Limits,
    tree::Tree,
};

/// Suffixes of the names of files: contents, what is in them, and uploads.
const CONTENT: &str = ".tar";
const INDEX: &str = ".json";
const UPLOAD: &str = ".upload";
/// Name of the file that is locked while files of a digest appear or vanish.
const LOCK: &str = "lock";
/// Age of a file that nobody writes any more.
const LEFT: Duration = Duration::from_secs(3600);

/// Contexts that are kept in a directory, by digest.
#[derive(Debug)]
pub struct Contexts {
    directory: PathBuf,
    limits: Limits,
}

impl Contexts {
    /// Opens the directory, or makes it, and removes what was left in it, as [`clean`](Self::clean) does.
    pub fn open(dir: &Path, limits: Limits) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let contexts = Self { directory: dir.to_owned(), limits };
        contexts.clean()?;
        Ok(contexts)
    }

    /// Takes an archive: tar, tar.gz or zip by its content. The file is removed, whether the archive is taken or not.
    pub fn add(&self, upload: &Path) -> Result<Context, ContextError> {
        let taken = self.take(upload);
        let _ = fs::remove_file(upload);
        taken
    }

    /// Returns a context that is kept.
    pub fn get(&self, digest: &str) -> Result<Option<Context>, ContextError> {
        if !is_digest(digest) {
            return Ok(None);
        }
        let Some(index) = there(fs::read(self.path(digest, INDEX)))? else { return Ok(None) };
        let Some(file) = there(File::open(self.path(digest, CONTENT)))? else { return Ok(None) };
        let damaged = |cause: String| io::Error::new(io::ErrorKind::InvalidData, cause);
        let tree: Tree = serde_json::from_slice(&index).map_err(|error| damaged(error.to_string()))?;
        if tree.digest() != digest {
            return Err(damaged("their list is damaged; upload them again".to_owned()).into());
        }
        Ok(Some(Context::new(digest.to_owned(), tree, file, self.limits)))
    }

    /// Removes a context. One that is not there is fine, and who reads it goes on.
    pub fn remove(&self, digest: &str) -> io::Result<()> {
        if !is_digest(digest) {
            return Ok(());
        }
        let _lock = self.lock()?;
        for suffix in [INDEX, CONTENT] {
            there(fs::remove_file(self.path(digest, suffix)))?;
        }
        Ok(())
    }

    /// Returns the digests of all contexts.
    pub fn list(&self) -> io::Result<Vec<String>> {
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let digest = name.to_str().and_then(|name| name.strip_suffix(INDEX));
            digests.extend(digest.filter(|digest| is_digest(digest)).map(str::to_owned));
        }
        Ok(digests)
    }

    /// Returns a fresh path for a file that is being uploaded.
    pub fn upload_path(&self) -> PathBuf {
        self.path(&fresh(), UPLOAD)
    }

    /// Removes what servers left that died: uploads, and contexts that are not complete. Only what is an hour old.
    pub fn clean(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let is_left = match name.strip_suffix(CONTENT) {
                Some(digest) => !self.path(digest, INDEX).exists(),
                None => name.ends_with(UPLOAD) || name.ends_with(atomic_file::SUFFIX),
            };
            if is_left && is_old(&entry.path())? {
                there(fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    fn take(&self, upload: &Path) -> Result<Context, ContextError> {
        let archive = File::open(upload)?;
        if archive.metadata()?.len() > self.limits.archive_bytes {
            return Err(ContextError::TooLarge { what: "the archive has", limit: self.limits.archive_bytes });
        }
        let (beside, file) = Beside::new(self.path(&fresh(), atomic_file::SUFFIX))?;
        let mut intake = Intake::new(file, self.limits);
        archive::read(&archive, &mut intake)?;
        let (tree, file) = intake.finish()?;
        file.sync_all()?;
        let digest = tree.digest();
        // Of two uploads with the same files the offsets may differ, so their files must not be mixed.
        let _lock = self.lock()?;
        // One that is damaged is replaced.
        if let Ok(Some(context)) = self.get(&digest) {
            return Ok(context);
        }
        there(fs::remove_file(self.path(&digest, INDEX)))?;
        beside.place(&self.path(&digest, CONTENT))?;
        let index = serde_json::to_vec(&tree).map_err(io::Error::other)?;
        // It syncs the directory.
        atomic_file::write(&self.path(&digest, INDEX), &index, 0o600, None)?;
        Ok(Context::new(digest, tree, file, self.limits))
    }

    fn path(&self, name: &str, suffix: &str) -> PathBuf {
        self.directory.join(format!("{name}{suffix}"))
    }

    /// Waits until no other server does what it protects. The lock ends with what is returned.
    fn lock(&self) -> io::Result<File> {
        let path = self.directory.join(LOCK);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.lock()?;
        Ok(file)
    }
}

/// A file beside the place that it will have; removed when dropped, unless it got there.
struct Beside {
    path: PathBuf,
    placed: bool,
}

impl Beside {
    fn new(path: PathBuf) -> io::Result<(Self, File)> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok((Self { path, placed: false }, file))
    }

    fn place(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn fresh() -> String {
    Uuid::now_v7().simple().to_string()
}

fn is_old(path: &Path) -> io::Result<bool> {
    let Some(metadata) = there(fs::metadata(path))? else { return Ok(false) };
    // A time in the future is no age.
    Ok(metadata.modified()?.elapsed().is_ok_and(|age| age > LEFT))
}

/// Makes of a file that is not there none.
fn there<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        outcome => outcome.map(Some),
    }
}
