// SPDX-License-Identifier: Apache-2.0
//! Opens regular files without blocking: FIFOs, devices and terminals are rejected.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Magic numbers of file systems whose files report no size or a wrong one (linux/magic.h): proc, sysfs,
/// cgroup, cgroup2, debugfs, tracefs, securityfs, configfs, bpf, efivarfs, pstore, selinuxfs, binfmt_misc.
const PSEUDO: [i64; 13] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x6265_6570,
    0xcafe_4a11,
    0xde5e_81e4,
    0x6165_676c,
    0xf97c_ff8c,
    0x4249_4e4d,
];

/// Opens a regular file for reading.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    checked(file)
}

/// Opens a regular file for reading, unless a symbolic link is in its place.
pub(crate) fn open_itself(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    checked(OpenOptions::new().read(true).custom_flags(flags).open(path))
}

/// Opens an existing regular file for writing without truncating it.
pub(crate) fn open_to_write(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    checked(file)
}

fn checked(opened: io::Result<File>) -> io::Result<File> {
    let file = match opened {
        // A FIFO without reader, a socket, or a device without driver.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Err(not_regular()),
        other => other?,
    };
    check(&file.metadata()?)?;
    Ok(file)
}

/// Fails unless this is a regular file.
pub(crate) fn check(meta: &Metadata) -> io::Result<()> {
    if meta.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if meta.is_file() { Ok(()) } else { Err(not_regular()) }
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
}

/// Returns whether the kernel generates the file's content on reading.
pub(crate) fn is_pseudo(file: &File) -> io::Result<bool> {
    Ok(PSEUDO.contains(&rustix::fs::fstatfs(file)?.f_type))
}

/// Reads at most `most` bytes of a text file; replaces invalid UTF-8.
pub(crate) fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Replaces the content of a text file; a new file gets `mode`. It is not empty in between, because ext4 writes a file at
/// once to the disk that was emptied and written, and all wait for that.
pub(crate) fn write_text(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(mode);
    let mut file = checked(options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path))?;
    file.write_all(text.as_bytes())?;
    let length = text.len() as u64;
    if file.metadata()?.len() == length { Ok(()) } else { file.set_len(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
        assert_eq!(open(&fifo).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(open_to_write(&fifo).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(open(dir.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(open(Path::new("/dev/null")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_text_is_replaced_by_a_longer_or_a_shorter_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        for text in ["first", "longer than that", "short", ""] {
            write_text(&path, text, 0o600).unwrap();
            assert_eq!(read_text(&path, 64).unwrap(), text);
        }
    }

    #[test]
    fn files_that_the_kernel_makes_up_are_known() {
        assert!(is_pseudo(&open(Path::new("/proc/cpuinfo")).unwrap()).unwrap());
        assert!(!is_pseudo(&tempfile::tempfile().unwrap()).unwrap());
        assert!(read_text(Path::new("/proc/cpuinfo"), 64).unwrap().len() == 64);
    }
}
