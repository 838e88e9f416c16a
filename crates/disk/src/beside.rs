//! A file that is written beside its final name: whoever sees the name sees the whole file.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// A file under a name of its own, removed unless it is kept.
pub(crate) struct Beside {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    target: PathBuf,
}

impl Beside {
    /// How the names end of files that nobody finished.
    pub(crate) const SUFFIX: &str = ".partial";

    pub(crate) fn new(target: &Path, mode: u32) -> io::Result<Self> {
        let mut name = target.as_os_str().to_owned();
        name.push(Self::SUFFIX);
        let path = PathBuf::from(name);
        // A former one may be read-only, or belong to somebody else.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = File::options().read(true).write(true).create_new(true).mode(mode).open(&path)?;
        Ok(Self { file, path, target: target.to_owned() })
    }

    /// Gives the file its name, and makes sure that both survive a loss of power.
    pub(crate) fn keep(self) -> io::Result<()> {
        self.file.sync_all()?;
        let dir = self.target.parent().map(File::open).transpose()?;
        self.rename()?;
        dir.map_or(Ok(()), |dir| dir.sync_all())
    }

    /// Gives the file its name.
    pub(crate) fn rename(self) -> io::Result<()> {
        fs::rename(&self.path, &self.target)
    }

    /// The name that it gets.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The same under another name in the same file system, known only when the content is.
    pub(crate) fn aimed_at(mut self, target: &Path) -> Self {
        target.clone_into(&mut self.target);
        self
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After the rename there is nothing of this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Puts `text` into `target`, whole or not at all.
pub(crate) fn write(target: &Path, text: &[u8]) -> io::Result<()> {
    let beside = Beside::new(target, 0o600)?;
    io::Write::write_all(&mut &beside.file, text)?;
    beside.keep()
}
