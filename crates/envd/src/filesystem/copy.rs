// SPDX-License-Identifier: Apache-2.0
//! Copies files and directories. A copy is made under a temporary name beside its destination, so that it is never seen
//! incomplete and nothing of it is left if it fails.

use std::{
    collections::HashMap,
    fs::{self, File, FileTimes, Metadata, OpenOptions, Permissions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, lchown, symlink},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use connectrpc::ConnectError;
use rustix::{
    fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with},
    io::Errno,
};

use super::{go_on, remove};
use crate::{entry::failed, metadata, parents::make_parents, regular, upload, users::User};

/// Bytes after which a copy notices that it was given up.
const STEP: u64 = 64 << 20;

/// To whom a copy belongs.
#[derive(Clone, Copy)]
pub(super) enum Owner<'a> {
    /// The user of the call. What is at the destination is not replaced.
    User(&'a User),
    /// Owners, groups and times are those of the source: it moves to another file system. As `rename` does, replaces a file.
    Kept,
}

/// Copies a file, or a directory with its content. Modes, symbolic links, hard links within it, and metadata are kept; the
/// set-id bits only if the owner is.
pub(super) fn copy(
    source: &Path,
    destination: &Path,
    owner: Owner<'_>,
    cancelled: &AtomicBool,
) -> Result<(), ConnectError> {
    let meta = fs::symlink_metadata(source).map_err(|e| failed("copy", source, &e))?;
    if let Owner::User(user) = owner {
        if fs::symlink_metadata(destination).is_ok() {
            let text =
                format!("{} exists already; remove it first, or choose another name", destination.display());
            return Err(ConnectError::already_exists(text));
        }
        if meta.is_dir() {
            outside(source, destination)?;
        }
        make_parents(destination, user).map_err(|e| failed("make the parents of", destination, &e))?;
    }
    let temporary = Temporary(upload::temporary_name(destination));
    let mut work = Work { owner, cancelled, links: HashMap::new(), directories: Vec::new() };
    work.tree(source, &temporary.0, &meta)?;
    let placed = match owner {
        Owner::Kept => fs::rename(&temporary.0, destination),
        Owner::User(_) => place(&temporary.0, destination).map_err(io::Error::from),
    };
    placed.map_err(|e| failed("copy to", destination, &e))
}

/// Fails if the destination is within the source: the copy would copy itself.
fn outside(source: &Path, destination: &Path) -> Result<(), ConnectError> {
    let real = fs::canonicalize(source).map_err(|e| failed("copy", source, &e))?;
    // The parents of the destination need not exist.
    let above = destination.ancestors().skip(1).find_map(|path| fs::canonicalize(path).ok());
    if above.is_some_and(|above| above.starts_with(real)) {
        let text = format!("{} is within {}", destination.display(), source.display());
        return Err(ConnectError::invalid_argument(text));
    }
    Ok(())
}

/// Renames unless the new name exists.
fn place(from: &Path, to: &Path) -> rustix::io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems cannot check and rename at once.
        Err(Errno::INVAL) if fs::symlink_metadata(to).is_err() => rustix::fs::rename(from, to),
        Err(Errno::INVAL) => Err(Errno::EXIST),
        other => other,
    }
}

/// What is being made; removed when dropped, unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = remove(&self.0);
    }
}

struct Work<'a> {
    owner: Owner<'a>,
    cancelled: &'a AtomicBool,
    /// Copies of files with several hard links, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    /// Directories whose times are set at the end, because filling them changes these.
    directories: Vec<(PathBuf, Metadata)>,
}

impl Work<'_> {
    fn tree(&mut self, source: &Path, destination: &Path, meta: &Metadata) -> Result<(), ConnectError> {
        self.one(source, destination, meta)?;
        // Not by recursion: the depth is the guest's to choose, that of the stack is not.
        let mut open =
            if meta.is_dir() { vec![(source.to_owned(), destination.to_owned())] } else { Vec::new() };
        while let Some((from, to)) = open.pop() {
            for item in fs::read_dir(&from).map_err(|e| failed("list", &from, &e))? {
                let item = item.map_err(|e| failed("list", &from, &e))?;
                let (from, to) = (item.path(), to.join(item.file_name()));
                let meta = match item.metadata() {
                    // Removed meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    other => other.map_err(|e| failed("stat", &from, &e))?,
                };
                self.one(&from, &to, &meta)?;
                if meta.is_dir() {
                    open.push((from, to));
                }
            }
        }
        for (path, meta) in self.directories.drain(..).rev() {
            let set = File::open(&path).and_then(|dir| dir.set_times(times(&meta)?));
            set.map_err(|e| failed("set the times of", &path, &e))?;
        }
        Ok(())
    }

    /// Copies one entry; of a directory, only itself.
    fn one(&mut self, source: &Path, destination: &Path, meta: &Metadata) -> Result<(), ConnectError> {
        go_on(self.cancelled)?;
        if meta.is_file() {
            return self.file(source, destination, meta);
        }
        self.other(source, destination, meta).map_err(|e| failed("copy", source, &e))
    }

    fn file(&mut self, source: &Path, destination: &Path, meta: &Metadata) -> Result<(), ConnectError> {
        let failed = |e: io::Error| failed("copy", source, &e);
        let key = (meta.dev(), meta.ino());
        if let Some(first) = self.links.get(&key) {
            return fs::hard_link(first, destination).map_err(failed);
        }
        let mut input = regular::open_itself(source).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        let mut output = options.open(destination).map_err(failed)?;
        // Within the kernel where that is possible.
        while io::copy(&mut (&mut input).take(STEP), &mut output).map_err(failed)? == STEP {
            go_on(self.cancelled)?;
        }
        let (uid, gid, mode) = self.rights(meta);
        // Set the mode after the owner, because chown clears the set-id bits.
        fchown(&output, Some(uid), Some(gid)).map_err(failed)?;
        output.set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
        let metadata = metadata::of_file(&input);
        if !metadata.is_empty() {
            metadata::replace(&output, &metadata).map_err(|e| failed(e.into()))?;
        }
        if matches!(self.owner, Owner::Kept) {
            output.set_times(times(meta).map_err(failed)?).map_err(failed)?;
        }
        if meta.nlink() > 1 {
            self.links.insert(key, destination.to_owned());
        }
        Ok(())
    }

    fn other(&mut self, source: &Path, destination: &Path, meta: &Metadata) -> io::Result<()> {
        let (uid, gid, mode) = self.rights(meta);
        if meta.is_symlink() {
            symlink(fs::read_link(source)?, destination)?;
            return lchown(destination, Some(uid), Some(gid));
        }
        if meta.is_dir() {
            fs::create_dir(destination)?;
            let metadata = metadata::of_path(source);
            if !metadata.is_empty() {
                metadata::replace(&File::open(destination)?, &metadata)?;
            }
            if matches!(self.owner, Owner::Kept) {
                self.directories.push((destination.to_owned(), meta.clone()));
            }
        } else {
            let kind = FileType::from_raw_mode(meta.mode());
            mknodat(CWD, destination, kind, Mode::from_raw_mode(0o600), meta.rdev())?;
        }
        lchown(destination, Some(uid), Some(gid))?;
        fs::set_permissions(destination, Permissions::from_mode(mode))
    }

    /// Owner, group and mode of a copy.
    fn rights(&self, meta: &Metadata) -> (u32, u32, u32) {
        match self.owner {
            Owner::User(user) if user.uid != meta.uid() => (user.uid, user.gid, meta.mode() & 0o1777),
            Owner::User(user) => (user.uid, user.gid, meta.mode() & 0o7777),
            Owner::Kept => (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        }
    }
}

fn times(meta: &Metadata) -> io::Result<FileTimes> {
    Ok(FileTimes::new().set_accessed(meta.accessed()?).set_modified(meta.modified()?))
}
