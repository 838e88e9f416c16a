// SPDX-License-Identifier: Apache-2.0
//! Unpacks an archive into a directory. Each file appears when it is complete.

use std::{
    fs::File,
    hash::{BuildHasher as _, RandomState},
    io::{Read, Seek as _, SeekFrom, Write as _},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, chmodat, fchmod, futimens, linkat, mkdirat,
        mknodat, openat, renameat, statat, symlinkat, syncfs, unlinkat, utimensat,
    },
    io::Errno,
};

use crate::{
    directory::{Directory, Inner},
    error::{ArchiveError, failed, refused},
    header::{Header, Kind, Segment},
    owner::{Owner, Owners, own, own_at},
    reader::Reader,
};

/// Bytes that are written at once.
const PIECE: usize = 64 << 10;
/// Maximum number of directories of an archive; their modes and times are set at the end.
const DIRECTORIES: usize = 200_000;
/// Mode of what is not complete.
const INCOMPLETE: Mode = Mode::from_raw_mode(0o600);

/// How an archive is unpacked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Whom what is unpacked belongs to.
    pub owners: Owners,
    /// Whether the directory was made for the archive, so that it gets the mode and time that this has for it.
    pub fresh: bool,
    /// Whether to write everything to the disk before this returns.
    pub sync: bool,
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Number of entries.
    pub entries: u64,
    /// Bytes of their content.
    pub bytes: u64,
}

/// Unpacks an archive into a directory that exists. Entries replace regular files and symbolic links; directories are merged
/// and keep their modes. What is unpacked before an error stays.
pub fn unpack(input: impl Read, directory: &Path, rules: Rules) -> Result<Unpacked, ArchiveError> {
    let mut work = Work {
        reader: Reader::new(input),
        directory: Directory::open(directory, rules.owners.of_missing())?,
        rules,
        made: Vec::new(),
        names: RandomState::new(),
        count: 0,
        bytes: 0,
        piece: vec![0; PIECE],
    };
    let unpacked = work.all();
    // Else directories of an archive that is refused would stay closed.
    let settled = work.settle();
    unpacked?;
    settled?;
    if rules.sync {
        syncfs(work.directory.top()).map_err(failed("write to the disk", b"."))?;
    }
    Ok(Unpacked { entries: work.reader.entries(), bytes: work.bytes })
}

struct Work<R> {
    reader: Reader<R>,
    directory: Directory,
    rules: Rules,
    /// Directories that were made, with mode and time.
    made: Vec<(Inner, Mode, i64)>,
    names: RandomState,
    count: u64,
    bytes: u64,
    piece: Vec<u8>,
}

impl<R: Read> Work<R> {
    fn all(&mut self) -> Result<(), ArchiveError> {
        while let Some(entry) = self.reader.next()? {
            let header = entry.header;
            let inner = Inner::of(&header.name)?;
            match header.kind {
                Kind::Directory => self.make(inner, &header)?,
                // Archives of V7 name directories so.
                Kind::File if header.name.ends_with(b"/") => self.make(inner, &header)?,
                _ if inner.is_top() => return Err(refused(&header.name, "it has no name")),
                Kind::File | Kind::Sparse => self.file(&inner, &header, entry.sparse)?,
                Kind::Symlink | Kind::HardLink | Kind::Fifo => self.other(&inner, &header)?,
                Kind::Device => return Err(refused(&header.name, "it is a device, which is not unpacked")),
                _ => return Err(refused(&header.name, "it is of a kind that is not supported")),
            }
        }
        Ok(())
    }

    fn make(&mut self, inner: Inner, header: &Header) -> Result<(), ArchiveError> {
        if self.made.len() == DIRECTORIES {
            return Err(refused(&header.name, "the archive has more than 200000 directories"));
        }
        if inner.is_top() {
            if self.rules.fresh {
                let owner = self.owner(header);
                own(self.directory.top(), owner).map_err(failed("make", b"."))?;
                self.made.push((inner, self.mode(header), header.mtime));
            }
            return Ok(());
        }
        let owner = self.owner(header);
        let (parent, name) = self.parent(&inner)?;
        // Nobody else changes what is in it before it has its owner and mode.
        match mkdirat(parent, &name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                own_at(parent, &name, owner).map_err(failed("make", &header.name))?;
                self.made.push((inner, self.mode(header), header.mtime));
                Ok(())
            }
            Err(Errno::EXIST) => {
                let stat = statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW);
                let stat = stat.map_err(failed("stat", &header.name))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    return Ok(());
                }
                Err(refused(&header.name, "it is a directory, and something else has its name already"))
            }
            Err(error) => Err(failed("make", &header.name)(error)),
        }
    }

    fn file(
        &mut self,
        inner: &Inner,
        header: &Header,
        sparse: Option<(Vec<Segment>, u64)>,
    ) -> Result<(), ArchiveError> {
        let (temporary, owner, mode) = (self.temporary(), self.owner(header), self.mode(header));
        let (parent, name) = self.parent(inner)?;
        replaceable(parent, &name, &header.name)?;
        let parent = parent.try_clone_to_owned().map_err(failed("open", &header.name))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&parent, &temporary, flags, INCOMPLETE).map_err(failed("write", &header.name))?;
        let begun = Begun { parent: parent.as_fd(), name: &temporary, done: false };
        let mut file = File::from(file);
        match sparse {
            None => self.content(&mut file, header, header.size)?,
            Some((parts, size)) => {
                file.set_len(size).map_err(failed("write", &header.name))?;
                for (offset, length) in parts {
                    file.seek(SeekFrom::Start(offset)).map_err(failed("write", &header.name))?;
                    self.content(&mut file, header, length)?;
                }
            }
        }
        // The mode after the owner, because chown clears the set-id bits.
        let finished = own(file.as_fd(), owner)
            .and_then(|()| fchmod(&file, mode))
            .and_then(|()| futimens(&file, &times(header.mtime)));
        finished.map_err(failed("write", &header.name))?;
        begun.place(&name).map_err(failed("write", &header.name))
    }

    fn content(&mut self, file: &mut File, header: &Header, length: u64) -> Result<(), ArchiveError> {
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let read = self.reader.content(&mut self.piece[..most])?;
            if read == 0 {
                return Err(self.reader.malformed("it ends within an entry"));
            }
            file.write_all(&self.piece[..read]).map_err(failed("write", &header.name))?;
            left -= read as u64;
            self.bytes += read as u64;
        }
        Ok(())
    }

    /// Makes a link or a pipe.
    fn other(&mut self, inner: &Inner, header: &Header) -> Result<(), ArchiveError> {
        let (temporary, owner, mode) = (self.temporary(), self.owner(header), self.mode(header));
        let first = match header.kind {
            Kind::HardLink => Some(Inner::of(&header.link)?),
            _ => None,
        };
        let source = match first.filter(|first| !first.is_top()) {
            Some(first) => {
                let (parent, name) = self.parent(&first)?;
                Some((parent.try_clone_to_owned().map_err(failed("open", &header.name))?, name))
            }
            None if header.kind == Kind::HardLink => {
                return Err(refused(&header.name, "it is a link to nothing"));
            }
            None => None,
        };
        let (parent, name) = self.parent(inner)?;
        let there = statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW);
        let is_pipe = |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo;
        if header.kind == Kind::Fifo && there.is_ok_and(is_pipe) {
            return Ok(());
        }
        replaceable(parent, &name, &header.name)?;
        let made = match (&source, header.kind) {
            (Some((from, first)), _) => linkat(from, first, parent, &temporary, AtFlags::empty()),
            (None, Kind::Symlink) => symlinkat(header.link.as_slice(), parent, &temporary),
            (None, _) => mknodat(parent, &temporary, FileType::Fifo, mode, 0),
        };
        made.map_err(failed("make", &header.name))?;
        let begun = Begun { parent, name: &temporary, done: false };
        // Owner and times of a hard link are those of the first name.
        if source.is_none() {
            // The mode of a new pipe lacks the bits of the process's mask.
            let moded = match header.kind {
                Kind::Fifo => chmodat(parent, &temporary, mode, AtFlags::empty()),
                _ => Ok(()),
            };
            let finished = moded.and_then(|()| own_at(parent, &temporary, owner)).and_then(|()| {
                utimensat(parent, &temporary, &times(header.mtime), AtFlags::SYMLINK_NOFOLLOW)
            });
            finished.map_err(failed("make", &header.name))?;
        }
        begun.place(&name).map_err(failed("make", &header.name))
    }

    fn parent(&mut self, inner: &Inner) -> Result<(BorrowedFd<'_>, PathBuf), ArchiveError> {
        self.directory.parent(inner)
    }

    fn owner(&self, header: &Header) -> Owner {
        self.rules.owners.of_entry(header.uid, header.gid)
    }

    /// Mode of an entry. Set-id bits are only for whom they were meant, or who was named.
    fn mode(&self, header: &Header) -> Mode {
        let kept = if self.owner(header).is_none() { 0o1777 } else { 0o7777 };
        Mode::from_raw_mode(header.mode & kept)
    }

    fn temporary(&mut self) -> PathBuf {
        self.count += 1;
        format!(".wrenn-{:016x}", self.names.hash_one(self.count)).into()
    }

    /// Sets modes and times of directories, the innermost first, because filling a directory changes its time.
    fn settle(&mut self) -> Result<(), ArchiveError> {
        let mut first = Ok(());
        for (inner, mode, mtime) in std::mem::take(&mut self.made).into_iter().rev() {
            let set = self.directory.directory(&inner).and_then(|fd| {
                let set = fchmod(&fd, mode).and_then(|()| futimens(&fd, &times(mtime)));
                set.map_err(failed("set the mode of", inner.bytes()))
            });
            first = first.and(set);
        }
        first
    }
}

/// Something that has a temporary name; removed when dropped, unless it got its own.
struct Begun<'a> {
    parent: BorrowedFd<'a>,
    name: &'a Path,
    done: bool,
}

impl Begun<'_> {
    fn place(mut self, name: &Path) -> rustix::io::Result<()> {
        renameat(self.parent, self.name, self.parent, name)?;
        // Nothing is renamed if both are names of one file.
        if matches!(statat(self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT)) {
            self.done = true;
        }
        Ok(())
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.done {
            let _ = unlinkat(self.parent, self.name, AtFlags::empty());
        }
    }
}

/// Fails if something is there that an entry does not replace.
fn replaceable(parent: BorrowedFd<'_>, name: &Path, path: &[u8]) -> Result<(), ArchiveError> {
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(failed("stat", path))?,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Symlink => Ok(()),
        FileType::Directory => Err(refused(path, "a directory has its name already, which is not replaced")),
        _ => Err(refused(path, "a device, a pipe or a socket has its name already, which is not replaced")),
    }
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs,
        io::Cursor,
        os::unix::{
            ffi::OsStrExt as _,
            fs::{MetadataExt as _, PermissionsExt as _, symlink},
        },
    };

    use proptest::{collection::vec, prelude::any, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::{
        header::BLOCK,
        pack::{check, pack},
    };

    fn packed(directory: &Path) -> Vec<u8> {
        check(directory).expect("it can be packed");
        let mut bytes = Vec::new();
        pack(directory, &mut bytes, true).expect("it is packed");
        bytes
    }

    fn archive(entries: &[(Kind, &str, &str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, name, link, content) in entries {
            let (name, link) = (name.as_bytes().to_vec(), link.as_bytes().to_vec());
            let size = content.len() as u64;
            let header = Header { name, link, kind: *kind, mode: 0o644, uid: 0, gid: 0, size, mtime: 1 };
            bytes.extend(header.block());
            bytes.extend(*content);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes.extend([0; 2 * BLOCK]);
        bytes
    }

    /// Mode, time, number of names, link and content.
    type Shown = (u32, i64, u64, Option<PathBuf>, Vec<u8>);

    /// All of a tree, by path.
    fn tree(directory: &Path) -> BTreeMap<PathBuf, Shown> {
        let (mut all, mut open) = (BTreeMap::new(), vec![PathBuf::new()]);
        while let Some(at) = open.pop() {
            for entry in fs::read_dir(directory.join(&at)).expect("a directory") {
                let path = at.join(entry.expect("an entry").file_name());
                let full = directory.join(&path);
                let meta = fs::symlink_metadata(&full).expect("metadata");
                let content = if meta.is_file() { fs::read(&full).expect("content") } else { Vec::new() };
                let links = if meta.is_dir() { 0 } else { meta.nlink() };
                all.insert(
                    path.clone(),
                    (meta.mode(), meta.mtime(), links, fs::read_link(&full).ok(), content),
                );
                if meta.is_dir() {
                    open.push(path);
                }
            }
        }
        all
    }

    #[test]
    fn a_tree_comes_back_as_it_went_in() {
        let (from, to) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let top = from.path();
        fs::create_dir_all(top.join("deep/er")).expect("made");
        let (long, nines) = ("n".repeat(180), vec![9; 70_000]);
        for (name, content) in
            [("a", &b"content"[..]), ("deep/er/ä \n\u{1}name", b""), ("-rf", &nines), (&long, b"x")]
        {
            fs::write(top.join(name), content).expect("written");
        }
        let odd = std::ffi::OsStr::from_bytes(b"odd \xff\xfe");
        fs::write(top.join(odd), b"?").expect("written");
        fs::set_permissions(top.join("a"), fs::Permissions::from_mode(0o451)).expect("mode");
        fs::hard_link(top.join("a"), top.join("deep/link")).expect("link");
        symlink("../".repeat(60), top.join("up")).expect("link");
        symlink("/etc", top.join("deep/away")).expect("link");
        let sparse = File::create(top.join("sparse")).expect("made");
        sparse.set_len(3 << 20).expect("size");
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 1 << 20).expect("written");
        drop(sparse);
        mknodat(rustix::fs::CWD, top.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)
            .expect("pipe");
        fs::set_permissions(top.join("pipe"), fs::Permissions::from_mode(0o622)).expect("mode");
        fs::set_permissions(top.join("deep/er"), fs::Permissions::from_mode(0o550)).expect("mode");
        for path in ["a", "deep/er", "deep"] {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
            File::open(top.join(path)).and_then(|file| file.set_modified(time)).expect("time");
        }
        let bytes = packed(top);
        assert!(bytes.len() < 1 << 20, "{} bytes with holes", bytes.len());
        let unpacked = unpack(Cursor::new(&bytes), to.path(), Rules { fresh: true, ..Rules::default() });
        let unpacked = unpacked.expect("it is unpacked");
        let (before, after) = (tree(top), tree(to.path()));
        assert!(before == after, "{:?} became {:?}", before.keys(), after.keys());
        // The directory itself is an entry, too.
        assert_eq!(unpacked.entries, before.len() as u64 + 1);
        assert!(
            fs::metadata(to.path().join("sparse")).expect("there").blocks() < 2048,
            "its holes are filled"
        );
        // Once more over what is there now.
        unpack(Cursor::new(&bytes), to.path(), Rules::default()).expect("it is unpacked");
        // Directories that are there get no times.
        let timeless = |directory| {
            let mut all = tree(directory);
            all.values_mut().filter(|entry| entry.2 == 0).for_each(|entry| entry.1 = 0);
            all
        };
        assert!(timeless(top) == timeless(to.path()), "it became another");
    }

    #[test]
    fn nothing_is_written_outside() {
        let home = tempfile::tempdir().expect("a directory");
        let (outside, inside) = (home.path().join("outside"), home.path().join("inside"));
        let outer = outside.to_str().expect("UTF-8").to_owned();
        let victim = format!("{outer}/victim");
        let hostile: Vec<(&str, Vec<u8>)> = vec![
            ("absolute", archive(&[(Kind::File, &victim, "", b"bad")])),
            ("dots", archive(&[(Kind::File, "../outside/victim", "", b"bad")])),
            (
                "dots within",
                archive(&[
                    (Kind::Directory, "a", "", b""),
                    (Kind::File, "a/../../outside/victim", "", b"bad"),
                ]),
            ),
            (
                "through a link",
                archive(&[(Kind::Symlink, "a", &outer, b""), (Kind::File, "a/victim", "", b"bad")]),
            ),
            (
                "through a relative link",
                archive(&[(Kind::Symlink, "a", "../outside", b""), (Kind::File, "a/new", "", b"bad")]),
            ),
            (
                "a directory through a link",
                archive(&[(Kind::Symlink, "a", &outer, b""), (Kind::Directory, "a/new", "", b"")]),
            ),
            (
                "a directory over a link",
                archive(&[
                    (Kind::Symlink, "a", &outer, b""),
                    (Kind::Directory, "a", "", b""),
                    (Kind::File, "a/new", "", b"bad"),
                ]),
            ),
            (
                "a hard link out",
                archive(&[(Kind::HardLink, "a", "../outside/victim", b""), (Kind::File, "a", "", b"bad")]),
            ),
            ("an absolute hard link", archive(&[(Kind::HardLink, "a", &victim, b"")])),
            (
                "a hard link through a link",
                archive(&[(Kind::Symlink, "a", &outer, b""), (Kind::HardLink, "b", "a/victim", b"")]),
            ),
            ("no name", archive(&[(Kind::File, ".", "", b"bad")])),
            ("a device", {
                let mut bytes = archive(&[(Kind::File, "null", "", b"")]);
                bytes[156] = b'3';
                bytes[148..156].fill(b' ');
                let sum: u32 = bytes[..BLOCK].iter().map(|byte| u32::from(*byte)).sum();
                bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                bytes
            }),
        ];
        for (what, bytes) in hostile {
            let _ = (fs::remove_dir_all(&outside), fs::remove_dir_all(&inside));
            fs::create_dir(&outside).and_then(|()| fs::create_dir(&inside)).expect("made");
            fs::write(&victim, "as it was").expect("written");
            let before = tree(&outside);
            let error = unpack(Cursor::new(bytes), &inside, Rules::default()).err();
            assert!(matches!(error, Some(ArchiveError::Refused { .. })), "{what}: {error:?}");
            assert_eq!(tree(&outside), before, "{what}");
            assert!(!inside.join("null").exists(), "{what}");
        }
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let home = tempfile::tempdir().expect("a directory");
        let inside = home.path().join("inside");
        fs::create_dir(&inside).expect("made");
        fs::write(home.path().join("victim"), "as it was").expect("written");
        symlink("../victim", inside.join("a")).expect("link");
        unpack(Cursor::new(archive(&[(Kind::File, "a", "", b"new")])), &inside, Rules::default())
            .expect("unpacked");
        assert_eq!(fs::read(home.path().join("victim")).expect("read"), b"as it was");
        assert_eq!(fs::read(inside.join("a")).expect("read"), b"new");
    }

    #[test]
    fn what_is_no_regular_file_is_not_replaced() {
        let home = tempfile::tempdir().expect("a directory");
        fs::create_dir(home.path().join("a")).expect("made");
        mknodat(rustix::fs::CWD, home.path().join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .expect("pipe");
        fs::write(home.path().join("file"), "x").expect("written");
        for entry in
            [(Kind::File, "a"), (Kind::Symlink, "a"), (Kind::File, "pipe"), (Kind::Directory, "file")]
        {
            let bytes = archive(&[(entry.0, entry.1, "x", b"")]);
            let error = unpack(Cursor::new(bytes), home.path(), Rules::default()).err();
            assert!(
                matches!(&error, Some(ArchiveError::Refused { name, .. }) if name.to_string() == entry.1),
                "{error:?}"
            );
        }
        assert_eq!(tree(home.path()).len(), 3, "temporary names are left");
    }

    #[test]
    fn an_archive_that_breaks_off_leaves_no_half_file() {
        let home = tempfile::tempdir().expect("a directory");
        let bytes = archive(&[(Kind::File, "first", "", b"1"), (Kind::File, "second", "", &[2; 2000])]);
        for length in (0..bytes.len() - BLOCK).step_by(100) {
            assert!(unpack(Cursor::new(&bytes[..length]), home.path(), Rules::default()).is_err());
            assert!(
                tree(home.path()).values().all(|entry| entry.4 == b"1" || entry.4 == [2; 2000]),
                "{length}"
            );
        }
    }

    #[test]
    fn set_id_bits_need_the_owner() {
        let (from, to) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        fs::write(from.path().join("a"), "").expect("written");
        fs::set_permissions(from.path().join("a"), fs::Permissions::from_mode(0o6755)).expect("mode");
        unpack(Cursor::new(packed(from.path())), to.path(), Rules::default()).expect("unpacked");
        assert_eq!(fs::metadata(to.path().join("a")).expect("there").mode() & 0o7777, 0o755);
    }

    #[test]
    fn a_given_owner_gets_what_is_made_or_replaced_and_nothing_else() {
        let home = tempfile::tempdir().expect("a directory");
        // Only root can give files away.
        if fs::metadata(home.path()).expect("there").uid() != 0 {
            return;
        }
        fs::create_dir(home.path().join("kept")).expect("made");
        for file in ["replaced", "kept/old", "victim"] {
            fs::write(home.path().join(file), "before").expect("written");
        }
        symlink("kept/old", home.path().join("link")).expect("link");
        let mut bytes = archive(&[
            (Kind::Directory, "kept", "", b""),
            (Kind::Directory, "made", "", b""),
            (Kind::File, "kept/deep/er/file", "", b"new"),
            (Kind::File, "replaced", "", b"new"),
            (Kind::Symlink, "link", "victim", b""),
            (Kind::Fifo, "pipe", "", b""),
            (Kind::HardLink, "again", "replaced", b""),
            (Kind::File, "tool", "", b""),
        ]);
        // The last entry has the bits that make a program run as its owner.
        let end = bytes.len();
        let header = Header {
            name: b"tool".to_vec(),
            link: Vec::new(),
            kind: Kind::File,
            mode: 0o4755,
            uid: 9,
            gid: 9,
            size: 0,
            mtime: 1,
        };
        bytes[end - 3 * BLOCK..end - 2 * BLOCK].copy_from_slice(&header.block());
        let owners = Owners::Given { user: 3, group: 4 };
        let rules = Rules { owners, ..Rules::default() };
        unpack(Cursor::new(bytes), home.path(), rules).expect("it is unpacked");
        let owner = |path: &str| {
            let meta = fs::symlink_metadata(home.path().join(path)).expect(path);
            (meta.uid(), meta.gid())
        };
        for path in ["made", "kept/deep", "kept/deep/er", "kept/deep/er/file"] {
            assert_eq!(owner(path), (3, 4), "{path}");
        }
        for path in ["replaced", "again", "link", "pipe", "tool"] {
            assert_eq!(owner(path), (3, 4), "{path}");
        }
        for path in ["", "kept", "kept/old", "victim"] {
            assert_eq!(owner(path), (0, 0), "{path:?} was there");
        }
        assert_eq!(fs::metadata(home.path().join("tool")).expect("there").mode() & 0o7777, 0o4755);
    }

    #[test]
    fn set_id_bits_are_not_for_the_process_when_the_owner_is_nobody() {
        let home = tempfile::tempdir().expect("a directory");
        // Only root can give files away.
        if fs::metadata(home.path()).expect("there").uid() != 0 {
            return;
        }
        let rules = Rules { owners: Owners::OfArchive, ..Rules::default() };
        for (uid, owner, mode) in [(9, 9, 0o4755), (u64::from(u32::MAX), 0, 0o755)] {
            let mut bytes = archive(&[(Kind::File, "tool", "", b"")]);
            let (name, link, end) = (b"tool".to_vec(), Vec::new(), bytes.len());
            let header =
                Header { name, link, kind: Kind::File, mode: 0o4755, uid, gid: 9, size: 0, mtime: 1 };
            bytes[end - 3 * BLOCK..end - 2 * BLOCK].copy_from_slice(&header.block());
            unpack(Cursor::new(bytes), home.path(), rules).expect("it is unpacked");
            let meta = fs::metadata(home.path().join("tool")).expect("there");
            assert_eq!((meta.uid(), meta.mode() & 0o7777), (owner, mode), "{uid}");
        }
    }

    proptest! {
        /// Whatever an archive has, it stays within its directory, and leaves no temporary names.
        #[test]
        fn whatever_is_unpacked_stays_within(entries in vec((0_usize..5, "[ab./]{1,6}", "[ab./]{0,6}"), 1..8)) {
            let home = tempfile::tempdir()?;
            let inside = home.path().join("x/inside");
            fs::create_dir_all(&inside)?;
            let kinds = [Kind::File, Kind::Directory, Kind::Symlink, Kind::HardLink, Kind::Fifo];
            let entries: Vec<_> = entries.iter().map(|(kind, name, link)| (kinds[*kind], name.as_str(), link.as_str(), &b""[..])).collect();
            let _ = unpack(Cursor::new(archive(&entries)), &inside, Rules::default());
            prop_assert_eq!(fs::read_dir(home.path())?.count(), 1);
            prop_assert_eq!(fs::read_dir(home.path().join("x"))?.count(), 1);
            prop_assert!(!tree(&inside).keys().any(|path| path.to_string_lossy().contains(".wrenn-")));
        }

        #[test]
        fn whatever_bytes_come_they_are_unpacked_or_refused(at in 0_usize..3000, change in vec(any::<u8>(), 1..24)) {
            let home = tempfile::tempdir()?;
            let mut bytes = archive(&[(Kind::Directory, "d", "", b""), (Kind::File, "d/f", "", &[1; 600]), (Kind::Symlink, "l", "x", b"")]);
            for (place, new) in bytes.iter_mut().skip(at).zip(change) {
                *place = new;
            }
            let _ = unpack(Cursor::new(bytes), home.path(), Rules::default());
            prop_assert!(tree(home.path()).len() <= 8);
        }
    }
}
