// SPDX-License-Identifier: Apache-2.0
//! Removal of directories that strangers filled, however deep they are within each other.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, unlinkat},
    io::Errno,
};

/// Number of directories within each other that are removed where they are. Two files are open for each.
const DEPTH: usize = 64;
/// How directories are opened that are no symbolic links.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Number of directories that were moved by this process.
static MOVED: AtomicU64 = AtomicU64::new(0);

/// Removes a file, or a directory with all that is in it. Does nothing if there is none. Blocks. Nobody else may change it
/// meanwhile; what is left of an interrupted removal is beside it, too, with the extension `gone`.
pub(super) fn all(path: &Path) -> io::Result<()> {
    let missing =
        || io::Error::new(io::ErrorKind::InvalidInput, "the path names nothing that can be removed");
    let (above, name) = path.parent().zip(path.file_name()).ok_or_else(missing)?;
    let above = match File::open(above) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let mut removal = Removal { above: &above, deep: vec![CString::new(name.as_bytes())?] };
    while let Some(name) = removal.deep.pop() {
        removal.remove(&above, &name, 0)?;
    }
    Ok(())
}

struct Removal<'a> {
    /// Directory that everything is below of.
    above: &'a File,
    /// Names in it that are still to be removed.
    deep: Vec<CString>,
}

impl Removal<'_> {
    fn remove(&mut self, directory: &File, name: &CStr, depth: usize) -> io::Result<()> {
        let inner = match openat(directory, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlinkat(directory, name, AtFlags::empty())?),
            opened => File::from(opened?),
        };
        if depth == DEPTH {
            // Its content is removed later, so that neither files nor stack are used up.
            let number = MOVED.fetch_add(1, Ordering::Relaxed);
            let moved = CString::new(format!("{}-{number}.gone", std::process::id()))?;
            renameat(directory, name, self.above, &moved)?;
            self.deep.push(moved);
            return Ok(());
        }
        for entry in Dir::read_from(&inner)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                self.remove(&inner, entry.file_name(), depth + 1)?;
            }
        }
        Ok(unlinkat(directory, name, AtFlags::REMOVEDIR)?)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn whatever_is_in_a_directory_goes_and_nothing_else() -> anyhow::Result<()> {
        let home = tempfile::tempdir()?;
        let path = |name: &str| home.path().join(name);
        fs::create_dir_all(path("kept"))?;
        fs::write(path("kept/file"), "as it was")?;
        fs::create_dir_all(path("tree/a/b"))?;
        fs::write(path("tree/a/file"), "")?;
        fs::write(path("tree/a/b/.hidden"), "")?;
        symlink("../../kept", path("tree/a/link"))?;
        symlink("/does/not/exist", path("tree/dangling"))?;
        fs::set_permissions(path("tree/a/file"), fs::Permissions::from_mode(0o000))?;
        for _ in 0..2 {
            all(&path("tree"))?;
        }
        all(&path("absent/too"))?;
        assert_eq!(fs::read_dir(home.path())?.count(), 1);
        assert_eq!(fs::read_to_string(path("kept/file"))?, "as it was");
        symlink("kept", path("link"))?;
        all(&path("link"))?;
        all(&path("kept/file"))?;
        assert!(path("kept").is_dir() && !path("kept/file").exists());
        assert!(all(Path::new("/")).is_err());
        Ok(())
    }

    #[test]
    fn directories_that_are_too_deep_for_any_recursion_go_too() -> anyhow::Result<()> {
        let home = tempfile::tempdir()?;
        let mut at = File::open(home.path())?;
        for number in 0..5000 {
            let name = if number == 0 { c"tree" } else { c"d" };
            mkdirat(&at, name, Mode::from_raw_mode(0o700))?;
            at = File::from(openat(&at, name, DIRECTORY, Mode::empty())?);
        }
        all(&home.path().join("tree"))?;
        assert_eq!(fs::read_dir(home.path())?.count(), 0);
        Ok(())
    }
}
