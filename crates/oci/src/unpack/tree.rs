// SPDX-License-Identifier: Apache-2.0
//! The directory that layers are unpacked onto: opens and makes the directories that entries are in, removes what a layer
//! replaces or hides, and remembers what is needed for both.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    os::fd::{BorrowedFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{
        AtFlags, Dir, DirEntry, FileType, Mode, OFlags, Timespec, Timestamps, chmodat, fstat, futimens,
        mkdirat, openat, readlinkat, statat, unlinkat,
    },
    io::Errno,
};

use super::error::{Trouble, failed, unusable};
use crate::beneath;

/// Maximum number of directories within each other that are removed or visited. Two files are open for each.
const DEPTH: usize = 300;
/// Maximum number of symbolic links that are followed to a directory which is to be made, that of the kernel.
const LINKS: usize = 40;
/// Mode of a directory that no layer has itself.
const MISSING: Mode = Mode::from_raw_mode(0o755);
/// How directories are opened that are no symbolic links.
pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open directory.
pub(super) struct Open {
    pub(super) fd: OwnedFd,
    pub(super) inode: u64,
}

impl Open {
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Trouble> {
        let inode = fstat(&fd).map_err(failed("stat the directory of"))?.st_ino;
        Ok(Self { fd, inode })
    }
}

/// The tree.
pub(super) struct Tree<'a> {
    root: BorrowedFd<'a>,
    /// The directory that was opened last: entries of one directory usually follow each other.
    last: Option<(Vec<u8>, Rc<Open>)>,
    /// Names that the layer has itself, as hashes of the directory's inode and the name. Up to one for each entry, and for
    /// each directory made for it.
    own: HashSet<u64>,
    hashes: RandomState,
    /// Times of directories by inode, set at the end, because filling a directory changes its time.
    times: HashMap<u64, Timespec>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        let (own, times) = (HashSet::new(), HashMap::new());
        Self { root, last: None, own, hashes: RandomState::new(), times }
    }

    /// Begins a layer, which has nothing itself yet.
    pub(super) fn begin(&mut self) {
        self.own.clear();
    }

    /// Opens the top.
    pub(super) fn top(&self) -> Result<Open, Trouble> {
        Open::new(self.open(b"").map_err(unusable)?)
    }

    /// Opens a directory that an entry is in. Symbolic links are followed within the tree. What is missing is made.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Rc<Open>, Trouble> {
        if let Some((last, open)) = &self.last
            && last.as_slice() == path
        {
            return Ok(Rc::clone(open));
        }
        let open = match self.open(path) {
            Err(Errno::NOENT) => self.make(path)?,
            opened => Open::new(opened.map_err(unusable)?)?,
        };
        let open = Rc::new(open);
        self.last = Some((path.to_vec(), Rc::clone(&open)));
        Ok(open)
    }

    /// Opens a directory if it is there.
    pub(super) fn existing(&self, path: &[u8]) -> Result<Option<Open>, Trouble> {
        match self.open(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            opened => Open::new(opened.map_err(unusable)?).map(Some),
        }
    }

    /// Remembers that the layer has a name itself.
    pub(super) fn keep(&mut self, directory: &Open, name: &[u8]) {
        let hash = self.hash(directory, name);
        self.own.insert(hash);
    }

    /// Remembers the time of a directory.
    pub(super) fn keep_time(&mut self, directory: &Open, time: Timespec) {
        self.times.insert(directory.inode, time);
    }

    /// Removes what has a name, with all that is in it.
    pub(super) fn remove(&mut self, directory: &Open, name: &[u8]) -> Result<(), Trouble> {
        // It may be, or be behind, what is removed.
        self.last = None;
        self.drop_name(directory, name, true, 0)
    }

    /// Removes what lower layers have of a name and in it; what the layer has itself stays.
    pub(super) fn hide(&mut self, directory: &Open, name: &[u8]) -> Result<(), Trouble> {
        self.last = None;
        self.drop_name(directory, name, false, 0)
    }

    /// Removes what lower layers have in a directory; what the layer has itself stays.
    pub(super) fn hide_content(&mut self, directory: &Open) -> Result<(), Trouble> {
        self.last = None;
        self.drop_content(directory, false, 0)
    }

    /// Sets the times of all directories.
    pub(super) fn settle(&self) -> Result<(), Trouble> {
        if self.times.is_empty() { Ok(()) } else { self.settle_in(&self.top()?, 0) }
    }

    fn open(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        beneath::open(self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn hash(&self, directory: &Open, name: &[u8]) -> u64 {
        self.hashes.hash_one((directory.inode, name))
    }

    /// Makes a directory and those that it is in. A symbolic link on the way may lead to something that is not there yet, which
    /// is made, too: so containerd does it.
    fn make(&mut self, path: &[u8]) -> Result<Open, Trouble> {
        let mut coming: Vec<Vec<u8>> = names(path).rev().collect();
        // Path of what was found or made, without symbolic links.
        let (mut path, mut links) = (Vec::<u8>::new(), 0);
        while let Some(name) = coming.pop() {
            if name == b".." {
                let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
                path.truncate(end);
                continue;
            }
            let above = Open::new(self.open(&path).map_err(unusable)?)?;
            match statat(&above.fd, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {
                    let made = mkdirat(&above.fd, &name, MISSING)
                        .and_then(|()| chmodat(&above.fd, &name, MISSING, AtFlags::empty()));
                    made.map_err(failed("make the directory of"))?;
                    self.keep(&above, &name);
                }
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    links += 1;
                    if links > LINKS {
                        return Err(unusable(Errno::LOOP));
                    }
                    let target =
                        readlinkat(&above.fd, &name, Vec::new()).map_err(failed("read a link to"))?;
                    if target.as_bytes().first() == Some(&b'/') {
                        path.clear();
                    }
                    coming.extend(names(target.as_bytes()).rev());
                    continue;
                }
                // If it is no directory, the next opening fails.
                Ok(_) => {}
                Err(error) => return Err(failed("stat the directory of")(error)),
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name);
        }
        Open::new(self.open(&path).map_err(unusable)?)
    }

    fn drop_name(&mut self, directory: &Open, name: &[u8], all: bool, depth: usize) -> Result<(), Trouble> {
        if depth == DEPTH {
            return Err(Trouble::Refused("it removes directories that are too deep within each other"));
        }
        let stays = !all && self.own.contains(&self.hash(directory, name));
        match openat(&directory.fd, name, DIRECTORY, Mode::empty()) {
            Ok(fd) => {
                let inner = Open::new(fd)?;
                self.drop_content(&inner, all, depth)?;
                if stays {
                    return Ok(());
                }
                match unlinkat(&directory.fd, name, AtFlags::REMOVEDIR) {
                    Ok(()) => {
                        self.times.remove(&inner.inode);
                        Ok(())
                    }
                    // Something in it is the layer's own.
                    Err(Errno::NOTEMPTY) if !all => Ok(()),
                    Err(error) => Err(failed("remove what is replaced or hidden by")(error)),
                }
            }
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) if stays => Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => unlinkat(&directory.fd, name, AtFlags::empty())
                .map_err(failed("remove what is replaced or hidden by")),
            Err(error) => Err(failed("open what is replaced or hidden by")(error)),
        }
    }

    fn drop_content(&mut self, directory: &Open, all: bool, depth: usize) -> Result<(), Trouble> {
        let mut entries =
            Dir::read_from(&directory.fd).map_err(failed("list what is replaced or hidden by"))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(failed("list what is replaced or hidden by"))?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                self.drop_name(directory, name, all, depth + 1)?;
            }
        }
        Ok(())
    }

    fn settle_in(&self, directory: &Open, depth: usize) -> Result<(), Trouble> {
        if depth == DEPTH {
            return Err(Trouble::Refused("directories are too deep within each other"));
        }
        let mut entries = Dir::read_from(&directory.fd).map_err(failed("list the directories of"))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(failed("list the directories of"))?;
            if is_directory(directory, &entry)? {
                let fd = openat(&directory.fd, entry.file_name(), DIRECTORY, Mode::empty());
                self.settle_in(&Open::new(fd.map_err(failed("open the directories of"))?)?, depth + 1)?;
            }
        }
        match self.times.get(&directory.inode) {
            Some(time) => futimens(&directory.fd, &times(*time)).map_err(failed("set the times of")),
            None => Ok(()),
        }
    }
}

/// Makes the times of a file; nobody has read it yet.
pub(super) fn times(time: Timespec) -> Timestamps {
    Timestamps { last_access: time, last_modification: time }
}

/// Returns whether what was listed is a directory below.
fn is_directory(directory: &Open, entry: &DirEntry) -> Result<bool, Trouble> {
    let name = entry.file_name();
    if matches!(name.to_bytes(), b"." | b"..") {
        return Ok(false);
    }
    let kind = match entry.file_type() {
        FileType::Unknown => {
            let stat = statat(&directory.fd, name, AtFlags::SYMLINK_NOFOLLOW);
            FileType::from_raw_mode(stat.map_err(failed("stat the directories of"))?.st_mode)
        }
        kind => kind,
    };
    Ok(kind == FileType::Directory)
}

/// Splits a path into its names.
fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec)
}
