// SPDX-License-Identifier: Apache-2.0
//! Atomic replacement of a file: writes a temporary file, syncs it, renames it, and syncs the directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, fchown},
    path::Path,
};

/// Suffix of the names under which files are written, for whoever removes what a crash left.
pub const SUFFIX: &str = ".new";

/// Writes `content` to `path` with this mode, and owner (user, group) if given. After a loss of power the
/// file is either the former or the new one, complete.
pub fn write(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
    let mut name = path.file_name().ok_or_else(missing)?.to_owned();
    name.push(format!(".{}{SUFFIX}", std::process::id()));
    let beside = path.with_file_name(name);
    let written = write_beside(&beside, content, mode, owner).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

fn write_beside(beside: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Only a new file: a link of this name is not followed.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(beside)?;
    if let Some((user, group)) = owner {
        fchown(&file, Some(user), Some(group))?;
    }
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_new_content_takes_the_place_of_the_former_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, b"one", 0o644, None).unwrap();
        write(&path, b"two", 0o600, None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(&dir.path().join("absent/key"), b"x", 0o600, None).is_err());
        assert!(write(dir.path(), b"x", 0o600, None).is_err(), "a directory is not replaced");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
