// SPDX-License-Identifier: Apache-2.0
//! Log files to which a VMM appends: reads their end, and frees their beginning when they are too large.
//!
//! Their directory belongs to the VMM's user, so symbolic links, hard links and special files are rejected.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate};

/// Maximum length of a kernel's last line, in bytes.
const LAST_LINE: u64 = 256;
/// Unit in bytes in which space is freed.
const BLOCK: u64 = 4096;

/// Log of the guest's console.
pub(crate) fn console_log(run_dir: &Path) -> PathBuf {
    run_dir.join("console.log")
}

/// Log of the VMM's standard error.
pub(crate) fn vmm_log(run_dir: &Path) -> PathBuf {
    run_dir.join("vmm.log")
}

/// Log file that some VMMs write themselves.
pub(crate) fn own_log(run_dir: &Path) -> PathBuf {
    run_dir.join("log")
}

/// Opens a log for appending. A previous VMM in this directory may have replaced it with anything, and the opened
/// file is then given to the VMM's user.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    own(OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path)?)
}

/// Opens a log that a VMM could have replaced.
fn reopen(path: &Path, write: bool) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    own(OpenOptions::new().read(!write).write(write).custom_flags(flags).open(path)?)
}

/// Fails unless the file is regular and has only one hard link: files of others can be linked into the
/// directory.
fn own(file: File) -> io::Result<File> {
    let meta = file.metadata()?;
    if meta.is_file() && meta.nlink() == 1 {
        Ok(file)
    } else {
        Err(io::Error::other("the log is not a regular file with one link"))
    }
}

/// Returns the last `max` bytes of a file, or nothing if it cannot be read.
pub(crate) fn tail(path: &Path, max: u64) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = reopen(path, false)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(max)))?;
        let mut content = Vec::new();
        file.take(max).read_to_end(&mut content)?;
        Ok(content)
    };
    read().unwrap_or_default()
}

/// Length of a log, punched holes included.
pub(crate) fn length(log: &Path) -> u64 {
    fs::symlink_metadata(log).map_or(0, |meta| meta.len())
}

/// Returns whether the last line of this log, without its timestamp, is `line`.
pub(crate) fn ends_with(log: &Path, line: &str) -> bool {
    let tail = tail(log, LAST_LINE);
    tail.trim_ascii_end().ends_with(line.as_bytes())
}

/// Frees the older half of a log that occupies more than `max` bytes. Punches a hole and keeps the length, so
/// that a writer that does not append loses nothing either.
pub(crate) fn cap(path: &Path, max: u64) -> io::Result<()> {
    let fits = |meta: &Metadata| meta.blocks() * 512 <= max;
    // Most do, and are looked at every second.
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && fits(&meta)) {
        return Ok(());
    }
    let file = reopen(path, true)?;
    let meta = file.metadata()?;
    let given_up = meta.len().saturating_sub(max / 2) / BLOCK * BLOCK;
    if fits(&meta) || given_up == 0 {
        return Ok(());
    }
    Ok(fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, given_up)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_followed_out_of_the_run_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, link) = (dir.path().join("secret"), dir.path().join("console.log"));
        fs::write(&secret, "secret").unwrap();
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        assert!(tail(&link, 100).is_empty());
        assert!(cap(&link, 0).is_err());
        assert!(open(&link).is_err());
        let second = dir.path().join("vmm.log");
        fs::hard_link(&secret, &second).unwrap();
        assert!(open(&second).is_err() && cap(&second, 0).is_err() && tail(&second, 100).is_empty());
    }

    #[test]
    fn a_long_log_keeps_its_end_and_gives_its_beginning_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let block = BLOCK as usize;
        fs::write(file.path(), [vec![b'a'; 20 * block], vec![b'b'; 200]].concat()).unwrap();
        let before = fs::metadata(file.path()).unwrap();
        cap(file.path(), 8 * BLOCK).unwrap();
        let after = fs::metadata(file.path()).unwrap();
        assert_eq!(after.len(), before.len());
        assert!(after.blocks() * 512 <= 8 * BLOCK, "{} blocks", after.blocks());
        assert_eq!(tail(file.path(), 203), [vec![b'a'; 3], vec![b'b'; 200]].concat());
        cap(file.path(), 8 * BLOCK).unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().blocks(), after.blocks());
    }

    #[test]
    fn a_farewell_is_the_last_line_and_no_other() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let said = |text: &str| {
            fs::write(log.path(), text).unwrap();
            ends_with(log.path(), "reboot: System halted")
        };
        assert!(said("Welcome\r\n[   12.345678] reboot: System halted\r\n"));
        assert!(!said("[   12.345678] reboot: System halted\r\nlogin: "));
        assert!(!said(""));
    }
}
