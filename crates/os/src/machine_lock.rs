// SPDX-License-Identifier: Apache-2.0
//! Machine-wide locks, in a directory that only root can write to, so that no other user can take them.
//!
//! The kernel releases a lock when its process ends; after an orderly end the file is removed, too.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    ops::Range,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

/// Directory of the lock files.
pub const DIR: &str = "/run/wrenn";
/// Number of attempts to open a file that another process may remove at the same time.
const RACES: usize = 100;
/// Maximum length of a holder's description, in bytes.
const HOLDER_MAX: u64 = 4096;

/// A lock; dropping it releases it.
#[derive(Debug)]
pub struct MachineLock {
    file: File,
    path: PathBuf,
}

/// Errors of taking a lock.
#[derive(Debug)]
pub enum LockError {
    /// Another process has the lock; with the description by the last process that took a lock of this file.
    Taken(String),
    /// The lock file cannot be used.
    Io(io::Error),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken(holder) => write!(f, "it is held by {holder}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LockError {}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl MachineLock {
    /// Takes the lock `name` without waiting. `holder` describes this process for others.
    pub fn take(name: &str, holder: &str) -> Result<Self, LockError> {
        Self::take_in(Path::new(DIR), name, 0..0, holder)
    }

    /// Takes a range of numbers without waiting; each number can be taken once on this machine.
    pub fn take_range(name: &str, range: Range<u64>, holder: &str) -> Result<Self, LockError> {
        Self::take_in(Path::new(DIR), name, range, holder)
    }

    fn take_in(dir: &Path, name: &str, range: Range<u64>, holder: &str) -> Result<Self, LockError> {
        for _ in 0..RACES {
            let Some(mut file) = open(dir, name)? else { continue };
            if !lock(&file, &range)? {
                let mut text = String::new();
                let _ = (&file).take(HOLDER_MAX).read_to_string(&mut text);
                let text = text.trim();
                return Err(LockError::Taken(
                    if text.is_empty() { "another process" } else { text }.to_owned(),
                ));
            }
            let path = dir.join(name);
            // A former holder may have removed the file between open and lock.
            if fs::metadata(&path).is_ok_and(|there| {
                file.metadata().is_ok_and(|ours| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
            }) {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "process {} ({holder})", std::process::id())?;
                return Ok(Self { file, path });
            }
        }
        Err(io::Error::other(format!("{} comes and goes", dir.join(name).display())).into())
    }
}

impl Drop for MachineLock {
    fn drop(&mut self) {
        // Not by closing the file: a child between fork and exec has it, too.
        let _ = set(&self.file, &(0..0), libc::F_UNLCK);
        // While other processes have ranges of the file, it stays.
        if lock(&self.file, &(0..0)).is_ok_and(|all| all) {
            let _ = fs::remove_file(&self.path);
            let _ = set(&self.file, &(0..0), libc::F_UNLCK);
            if let Some(dir) = self.path.parent() {
                let _ = fs::remove_dir(dir);
            }
        }
    }
}

/// Opens a lock file; `None` if the directory was removed meanwhile.
fn open(dir: &Path, name: &str) -> io::Result<Option<File>> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match fs::symlink_metadata(dir) {
        Ok(meta) => check_own(dir, &meta)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    match options.open(dir.join(name)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fails if other users can create files in the directory.
fn check_own(dir: &Path, meta: &fs::Metadata) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if meta.is_dir() && meta.uid() == own && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    let dir = dir.display();
    Err(io::Error::other(format!("{dir} is not a directory that only user {own} can write to: remove it")))
}

/// Locks a range of a file, or all of it if the range is empty; false if another process has a part of it.
fn lock(file: &File, range: &Range<u64>) -> io::Result<bool> {
    set(file, range, libc::F_WRLCK)
}

/// Sets a lock of this type on a range of a file.
fn set(file: &File, range: &Range<u64>, kind: libc::c_int) -> io::Result<bool> {
    let number = |value: u64| libc::off_t::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    // SAFETY: a structure of numbers, for which zero is a value.
    let mut wish: libc::flock = unsafe { std::mem::zeroed() };
    wish.l_type = kind as libc::c_short;
    wish.l_whence = libc::SEEK_SET as libc::c_short;
    wish.l_start = number(range.start)?;
    wish.l_len = number(range.end.saturating_sub(range.start))?;
    // SAFETY: the descriptor is open, the structure outlives the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const wish) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) { Ok(false) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn take(dir: &Path, range: Range<u64>) -> Result<MachineLock, LockError> {
        MachineLock::take_in(&dir.join("locks"), "name", range, "a test")
    }

    #[test]
    fn what_one_holds_no_other_gets_until_it_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let held = take(dir.path(), 0..0).unwrap();
        let refused = take(dir.path(), 0..0).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {} (a test)", std::process::id())), "{refused}");
        drop(held);
        assert!(!dir.path().join("locks").exists(), "nothing is left");
        take(dir.path(), 0..0).unwrap();
    }

    #[test]
    fn ranges_exclude_each_other_where_they_meet() {
        let dir = tempfile::tempdir().unwrap();
        let low = take(dir.path(), 100..200).unwrap();
        assert!(matches!(take(dir.path(), 199..300), Err(LockError::Taken(_))));
        let high = take(dir.path(), 200..300).unwrap();
        drop(low);
        assert!(dir.path().join("locks/name").exists(), "another has a part of it");
        assert!(matches!(take(dir.path(), 150..201), Err(LockError::Taken(_))));
        take(dir.path(), 150..200).unwrap();
        drop(high);
        assert!(!dir.path().join("locks").exists());
    }

    #[test]
    fn a_directory_that_others_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let locks = dir.path().join("locks");
        fs::create_dir(&locks).unwrap();
        fs::set_permissions(&locks, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(take(dir.path(), 0..0), Err(LockError::Io(_))));
        fs::remove_dir(&locks).unwrap();
        std::os::unix::fs::symlink(dir.path(), &locks).unwrap();
        assert!(matches!(take(dir.path(), 0..0), Err(LockError::Io(_))));
    }
}
