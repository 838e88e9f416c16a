// SPDX-License-Identifier: Apache-2.0
//! The unpacked tree of an image: completes it for a guest, and measures what a file system of it needs.
//!
//! Everything in it is of a stranger. Paths are opened from its top and stay within, and no symbolic link is followed but
//! those on the way to the working directory.

use std::{
    collections::HashSet,
    ffi::CStr,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, chmodat, flistxattr_query, mkdirat, openat,
        openat2, statat,
    },
    io::Errno,
};
use wrenn_os::sparse_file;

use super::job::{Failure, Kind};

/// Directories of a guest that images may lack: those that its kernel and envd mount on, that of temporary files, which all
/// users share, and that in which envd writes the machine's names.
const DIRECTORIES: [(&str, u32); 6] =
    [("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755), ("tmp", 0o1777), ("etc", 0o755)];
/// Mode of the working directory, if the image lacks it.
const WORKDIR: Mode = Mode::from_raw_mode(0o755);
/// Mode of a directory that has not its own yet.
const INCOMPLETE: Mode = Mode::from_raw_mode(0o700);
/// Maximum number of directories within each other, that of unpacking. Two files are open for each.
const DEPTH: usize = 300;
/// Number of times that a path is opened again. The kernel asks for it if anything on the machine was renamed meanwhile.
const TRIES: usize = 256;
/// Size of the file system's blocks in bytes.
pub(super) const BLOCK: u64 = 4096;
/// Bytes of an entry of a directory beside its name, and what they may be larger by, because blocks are not full.
const ENTRY: u64 = 12;
const PARTS: (u64, u64) = (4, 3);

/// What a tree needs in a file system.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    /// Number of files, directories and others.
    pub(super) inodes: u64,
    /// Bytes of them, in whole blocks: without holes, with directories and extended attributes, and at least a block for
    /// each.
    pub(super) bytes: u64,
}

/// Makes the directories that a guest needs, unless something of their names is there, and the working directory.
pub(super) fn complete(root: &File, workdir: &str) -> io::Result<()> {
    for (name, mode) in DIRECTORIES {
        make(root, name, Mode::from_raw_mode(mode))?;
    }
    make_workdir(root, workdir)
}

/// Makes a directory; returns whether it was absent.
fn make(above: &File, name: &str, mode: Mode) -> io::Result<bool> {
    match mkdirat(above, name, INCOMPLETE) {
        Err(Errno::EXIST) => Ok(false),
        made => {
            made?;
            chmodat(above, name, mode, AtFlags::empty())?;
            Ok(true)
        }
    }
}

/// Makes the working directory with those that it is in, as Docker does when it starts a container. Symbolic links on the way
/// are followed as in the guest. Where something else is in the way, nothing is made.
fn make_workdir(root: &File, workdir: &str) -> io::Result<()> {
    let (mut above, mut path) = (root.try_clone()?, String::from("."));
    for name in workdir.split('/').filter(|name| !name.is_empty()) {
        path.push('/');
        path.push_str(name);
        let opened = match open_within(root, &path) {
            Err(Errno::NOENT) if make(&above, name, WORKDIR)? => open_within(root, &path)?,
            // A link to nothing, or no directory; a command in it is refused by the guest.
            Err(_) => return Ok(()),
            Ok(opened) => opened,
        };
        above = File::from(opened);
    }
    Ok(())
}

/// Opens a directory as if the tree were the whole file system.
fn open_within(root: &File, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    for _ in 0..TRIES {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// Measures a tree.
pub(super) fn measure(root: &File) -> Result<Content, Failure> {
    let mut measure = Measure { content: Content::default(), linked: HashSet::new() };
    measure.directory(root, 0)?;
    Ok(measure.content)
}

struct Measure {
    content: Content,
    /// Inodes with several names that were seen.
    linked: HashSet<u64>,
}

impl Measure {
    fn directory(&mut self, directory: &File, depth: usize) -> Result<(), Failure> {
        if depth == DEPTH {
            let message = format!("the image has more than {DEPTH} directories within each other");
            return Err(Failure::new(Kind::Damaged, message));
        }
        let mut size = 0;
        for entry in Dir::read_from(directory).map_err(|error| failed(&error.into()))? {
            let entry = entry.map_err(|error| failed(&error.into()))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            size += ENTRY + name.to_bytes().len() as u64;
            self.entry(directory, name, depth)?;
        }
        let attributes = attributes(directory).map_err(|error| failed(&error))?;
        self.count(size * PARTS.0 / PARTS.1, attributes);
        Ok(())
    }

    fn entry(&mut self, directory: &File, name: &CStr, depth: usize) -> Result<(), Failure> {
        let stat =
            statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| failed(&error.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let inner = open(directory, name).map_err(|error| failed(&error))?;
            return self.directory(&inner, depth + 1);
        }
        if stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
            return Ok(());
        }
        if kind != FileType::RegularFile {
            self.count(0, 0);
            return Ok(());
        }
        let file = open(directory, name).map_err(|error| failed(&error))?;
        let measured = stored(&file).and_then(|bytes| Ok((bytes, attributes(&file)?)));
        let (bytes, attributes) = measured.map_err(|error| failed(&error))?;
        self.count(bytes, attributes);
        Ok(())
    }

    fn count(&mut self, bytes: u64, attributes: u64) {
        self.content.inodes += 1;
        self.content.bytes += bytes.next_multiple_of(BLOCK).max(BLOCK) + attributes;
    }
}

/// Opens a file or a directory that is no symbolic link.
fn open(directory: &File, name: &CStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(openat(directory, name, flags, Mode::empty())?))
}

/// Returns the bytes of a file in whole blocks, without its holes.
fn stored(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    if meta.blocks() * 512 >= meta.len() {
        return Ok(meta.len());
    }
    let blocks = |start: u64, end: u64| end.next_multiple_of(BLOCK).saturating_sub(start / BLOCK * BLOCK);
    let extents = sparse_file::own_extents(file)?;
    Ok(extents.iter().map(|extent| blocks(extent.start, extent.end.min(meta.len()))).sum())
}

/// Returns the bytes that the extended attributes of a file need at most, if it has any.
fn attributes(file: &File) -> io::Result<u64> {
    match flistxattr_query(file) {
        Ok(0) | Err(Errno::OPNOTSUPP) => Ok(0),
        queried => queried.map(|_| BLOCK).map_err(io::Error::from),
    }
}

fn failed(error: &io::Error) -> Failure {
    Failure::new(Kind::Host, format!("cannot measure the unpacked image: {error}"))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{FileExt as _, PermissionsExt as _, symlink},
        path::Path,
    };

    use super::*;

    fn mode(path: &Path) -> Option<u32> {
        Some(fs::symlink_metadata(path).ok()?.permissions().mode() & 0o7777)
    }

    #[test]
    fn what_a_guest_needs_is_made_and_what_is_there_stays() -> anyhow::Result<()> {
        let home = tempfile::tempdir()?;
        let root = File::open(home.path())?;
        complete(&root, "/srv/app")?;
        for (name, expected) in DIRECTORIES.into_iter().chain([("srv", 0o755), ("srv/app", 0o755)]) {
            assert_eq!(mode(&home.path().join(name)), Some(expected), "{name}");
        }
        let (image, outside) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let path = |name: &str| image.path().join(name);
        fs::create_dir_all(path("var/tmp"))?;
        fs::create_dir(path("proc"))?;
        fs::set_permissions(path("proc"), fs::Permissions::from_mode(0o700))?;
        fs::write(path("dev"), "a file")?;
        symlink("var/tmp", path("tmp"))?;
        symlink(outside.path(), path("run"))?;
        symlink("/var", path("srv"))?;
        complete(&File::open(image.path())?, "/srv/app/deep")?;
        assert_eq!(mode(&path("proc")), Some(0o700));
        assert_eq!(fs::read_to_string(path("dev"))?, "a file");
        assert_eq!(fs::read_link(path("tmp"))?, Path::new("var/tmp"));
        assert_eq!(fs::read_link(path("run"))?, outside.path());
        assert_eq!(mode(&path("var/app/deep")), Some(0o755), "links are followed as in the guest");
        assert_eq!(fs::read_dir(outside.path())?.count(), 0);
        Ok(())
    }

    #[test]
    fn a_working_directory_leads_out_of_no_image() -> anyhow::Result<()> {
        let (image, outside) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let path = |name: &str| image.path().join(name);
        symlink(outside.path(), path("out"))?;
        symlink("../../../../../../..", path("up"))?;
        fs::write(path("file"), "")?;
        let root = File::open(image.path())?;
        for workdir in ["/out/a", "/up/b", "/file/c", "/"] {
            make_workdir(&root, workdir)?;
        }
        assert_eq!(fs::read_dir(outside.path())?.count(), 0);
        assert!(path("b").is_dir(), "the top is above itself");
        assert_eq!(fs::read_link(path("out"))?, outside.path());
        Ok(())
    }

    #[test]
    fn content_is_counted_in_blocks_once_and_without_holes() -> anyhow::Result<()> {
        let home = tempfile::tempdir()?;
        let path = |name: &str| home.path().join(name);
        assert_eq!(measure(&File::open(home.path())?), Ok(Content { inodes: 1, bytes: BLOCK }));
        fs::create_dir(path("d"))?;
        fs::write(path("d/empty"), "")?;
        fs::write(path("d/large"), vec![7; 10_000])?;
        fs::hard_link(path("d/large"), path("again"))?;
        symlink("/nowhere", path("link"))?;
        let sparse = File::create(path("sparse"))?;
        sparse.set_len(1 << 30)?;
        sparse.write_all_at(b"middle", 1 << 29)?;
        sparse.sync_all()?;
        let content =
            measure(&File::open(home.path())?).map_err(|failure| anyhow::anyhow!(failure.message))?;
        assert_eq!(content.inodes, 6);
        // File systems may have larger blocks.
        let least = 5 * BLOCK + 3 * BLOCK;
        assert!((least..least + (1 << 20)).contains(&content.bytes), "{content:?}");
        Ok(())
    }

    #[test]
    fn a_tree_that_is_too_deep_is_refused() -> anyhow::Result<()> {
        let home = tempfile::tempdir()?;
        let mut at = File::open(home.path())?;
        for _ in 0..=DEPTH {
            make(&at, "d", WORKDIR)?;
            at = open(&at, c"d")?;
        }
        let refused = measure(&File::open(home.path())?).map_err(|failure| failure.kind);
        assert_eq!(refused, Err(Kind::Damaged));
        super::super::remove::all(&home.path().join("d"))?;
        assert_eq!(fs::read_dir(home.path())?.count(), 0);
        Ok(())
    }
}
