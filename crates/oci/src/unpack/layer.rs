// SPDX-License-Identifier: Apache-2.0
//! Applies a layer to the tree, entry by entry.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _},
    os::fd::{AsFd as _, BorrowedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Timespec, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
        fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
    },
    io::Errno,
};

use super::{
    Layer, Progress, Rules, Unpacked,
    error::{TooManyBytes, Trouble, UnpackError, failed},
    name::{self, Named, Place},
    tree::{DIRECTORY, Open, Tree, times},
};
use crate::{
    decompress::Decompressed,
    digest::{Digest, Hashing},
    tar::{Bounds, Entry, Header, Kind, Reader},
};

/// Bytes that are read and written at once.
const PIECE: usize = 128 << 10;
/// After how many entries, or bytes, progress is told.
const ENTRIES_TOLD: u64 = 4096;
const BYTES_TOLD: u64 = 8 << 20;
/// Maximum bytes of the extended attributes of an entry, names included: what fits in one block of ext4 with its header.
const EXTENDED_MAX: usize = 3584;
/// Modes of what has not its own yet.
const INCOMPLETE: Mode = Mode::from_raw_mode(0o600);
const INCOMPLETE_DIRECTORY: Mode = Mode::from_raw_mode(0o700);

/// The unpacking of an image.
pub(super) struct Work<'a> {
    tree: Tree<'a>,
    rules: &'a Rules,
    progress: &'a mut dyn FnMut(Progress),
    /// How often progress was due.
    told: u64,
    unpacked: Unpacked,
    /// Bytes that layers may still have.
    left: u64,
    piece: Vec<u8>,
    /// Digest of the layer that is or was unpacked last.
    layer: Digest,
}

impl<'a> Work<'a> {
    pub(super) fn new(root: BorrowedFd<'a>, rules: &'a Rules, progress: &'a mut dyn FnMut(Progress)) -> Self {
        Self {
            tree: Tree::new(root),
            rules,
            progress,
            told: 0,
            unpacked: Unpacked::default(),
            left: rules.limits.bytes,
            piece: vec![0; PIECE],
            layer: Digest::of(b""),
        }
    }

    /// Unpacks a layer.
    pub(super) fn apply<R: Read>(&mut self, layer: Layer<R>) -> Result<(), UnpackError> {
        self.layer = layer.digest;
        self.tree.begin();
        self.unpacked.layers += 1;
        let most = self.rules.limits.layers;
        if self.unpacked.layers > most {
            return Err(self.error(Trouble::TooLarge("layers below it", most as u64), b""));
        }
        self.tell();
        let input = Decompressed::new(layer.input).map_err(|error| self.error(error.into(), b""))?;
        let limit = self.rules.limits.bytes;
        let input = Limited { input: Hashing::new(input), left: self.left, limit };
        let limits = &self.rules.limits;
        let bounds = Bounds { name: limits.name_bytes, attributes: limits.attribute_bytes };
        let mut reader = Reader::new(BufReader::with_capacity(PIECE, input), bounds);
        while let Some(entry) = reader.next_entry().map_err(|error| self.error(error.into(), b""))? {
            self.count()?;
            self.entry(&mut reader, &entry).map_err(|trouble| self.error(trouble, &entry.header.name))?;
            self.tell_if_due();
        }
        // What follows the end of the archive is part of its digest.
        let mut input = reader.into_input();
        io::copy(&mut input, &mut io::sink()).map_err(|error| self.error(error.into(), b""))?;
        let input = input.into_inner();
        self.left = input.left;
        let (expected, found) = (layer.diff_id, input.input.finish());
        if found == expected {
            Ok(())
        } else {
            Err(UnpackError::Content { layer: self.layer, expected, found })
        }
    }

    /// Sets what could not be set before all layers were unpacked.
    pub(super) fn finish(self) -> Result<Unpacked, UnpackError> {
        self.tree.settle().map_err(|trouble| self.error(trouble, b"."))?;
        Ok(self.unpacked)
    }

    fn error(&self, trouble: Trouble, entry: &[u8]) -> UnpackError {
        UnpackError::of(trouble, self.layer, self.unpacked.entries, entry)
    }

    fn count(&mut self) -> Result<(), UnpackError> {
        let most = self.rules.limits.entries;
        if self.unpacked.entries == most {
            return Err(self.error(Trouble::TooLarge("entries with the layers below it", most), b""));
        }
        self.unpacked.entries += 1;
        Ok(())
    }

    fn tell(&mut self) {
        let Unpacked { layers, entries, bytes, .. } = self.unpacked;
        (self.progress)(Progress { layer: layers, entries, bytes });
    }

    fn tell_if_due(&mut self) {
        let due = self.unpacked.entries / ENTRIES_TOLD + self.unpacked.bytes / BYTES_TOLD;
        if due > self.told {
            self.told = due;
            self.tell();
        }
    }

    fn entry<R: Read>(&mut self, reader: &mut Reader<R>, entry: &Entry) -> Result<(), Trouble> {
        match name::read(&entry.header.name, self.rules.limits.depth).map_err(Trouble::Refused)? {
            Named::Nothing => Ok(()),
            Named::Top if entry.header.kind == Kind::Directory => {
                let top = self.tree.top()?;
                self.complete_directory(&top, entry)
            }
            Named::Top => Err(Trouble::Refused("it has no name")),
            Named::Whiteout(place) => match self.tree.existing(&place.directory)? {
                Some(directory) => self.tree.hide(&directory, &place.name),
                None => Ok(()),
            },
            Named::Opaque(path) => match self.tree.existing(&path)? {
                Some(directory) => self.tree.hide_content(&directory),
                None => Ok(()),
            },
            Named::Entry(place) => self.place(reader, entry, &place),
        }
    }

    fn place<R: Read>(
        &mut self,
        reader: &mut Reader<R>,
        entry: &Entry,
        place: &Place,
    ) -> Result<(), Trouble> {
        let kind = entry.header.kind;
        let left_out = match kind {
            Kind::CharacterDevice | Kind::BlockDevice if !self.rules.devices => "devices are not made",
            Kind::Unknown => "it is of a kind that is not known",
            _ => "",
        };
        if !left_out.is_empty() {
            self.unpacked.skip(&entry.header.name, left_out);
            return Ok(());
        }
        let directory = self.tree.directory(&place.directory)?;
        let name = place.name.as_slice();
        match kind {
            Kind::Directory => self.make_directory(&directory, name, entry)?,
            Kind::File => self.make_file(reader, &directory, name, entry)?,
            Kind::HardLink => self.link(&directory, name, entry)?,
            _ => self.make_other(&directory, name, entry)?,
        }
        self.tree.keep(&directory, name);
        Ok(())
    }

    /// Makes something, after what has its name was removed.
    fn make<T>(
        &mut self,
        directory: &Open,
        name: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, Trouble> {
        let made = match make() {
            Err(Errno::EXIST) => {
                self.tree.remove(directory, name)?;
                make()
            }
            made => made,
        };
        made.map_err(failed("make"))
    }

    fn make_directory(&mut self, directory: &Open, name: &[u8], entry: &Entry) -> Result<(), Trouble> {
        let open = || openat(&directory.fd, name, DIRECTORY, Mode::empty());
        let opened = match open() {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.make(directory, name, || mkdirat(&directory.fd, name, INCOMPLETE_DIRECTORY))?;
                open()
            }
            opened => opened,
        };
        self.complete_directory(&Open::new(opened.map_err(failed("open"))?)?, entry)
    }

    fn complete_directory(&mut self, directory: &Open, entry: &Entry) -> Result<(), Trouble> {
        self.complete(directory.fd.as_fd(), entry)?;
        self.tree.keep_time(directory, time(entry));
        Ok(())
    }

    fn make_file<R: Read>(
        &mut self,
        reader: &mut Reader<R>,
        directory: &Open,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), Trouble> {
        let size = entry.sparse.as_ref().map_or(entry.header.size, |sparse| sparse.size);
        let most = self.rules.limits.file_bytes;
        if size > most {
            return Err(Trouble::TooLarge("bytes in a file", most));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file =
            File::from(self.make(directory, name, || openat(&directory.fd, name, flags, INCOMPLETE))?);
        match &entry.sparse {
            None => self.content(reader, &mut file, entry.header.size)?,
            Some(sparse) => {
                file.set_len(sparse.size).map_err(failed("write"))?;
                for (offset, length) in &sparse.parts {
                    file.seek(SeekFrom::Start(*offset)).map_err(failed("write"))?;
                    self.content(reader, &mut file, *length)?;
                }
            }
        }
        self.complete(file.as_fd(), entry)
    }

    fn content<R: Read>(
        &mut self,
        reader: &mut Reader<R>,
        file: &mut File,
        length: u64,
    ) -> Result<(), Trouble> {
        let mut left = length;
        while left > 0 {
            let most = left.min(PIECE as u64) as usize;
            let read = reader.content(&mut self.piece[..most])?;
            if read == 0 {
                return Err(Trouble::Malformed("it ends within an entry"));
            }
            file.write_all(&self.piece[..read]).map_err(failed("write"))?;
            left -= read as u64;
            self.unpacked.bytes += read as u64;
            self.tell_if_due();
        }
        Ok(())
    }

    /// Makes a hard link. Owner, mode and time are those of the first name.
    fn link(&mut self, directory: &Open, name: &[u8], entry: &Entry) -> Result<(), Trouble> {
        const NOTHING: Trouble = Trouble::Refused("it is a hard link to nothing in the image");
        let depth = self.rules.limits.depth;
        let Named::Entry(first) = name::read(&entry.header.link, depth).map_err(Trouble::Refused)? else {
            return Err(NOTHING);
        };
        let from = self.tree.existing(&first.directory)?.ok_or(NOTHING)?;
        let link = || linkat(&from.fd, &first.name, &directory.fd, name, AtFlags::empty());
        let is_itself = from.inode == directory.inode && first.name == name;
        let linked = match link() {
            // What is linked must not be removed for its link.
            Err(Errno::EXIST) if is_itself => Ok(()),
            Err(Errno::EXIST) => self.make(directory, name, link),
            linked => linked.map_err(failed("make")),
        };
        match linked {
            Err(Trouble::Files(_, error)) if error.kind() == io::ErrorKind::NotFound => Err(NOTHING),
            // The kernel says so of directories, whoever asks.
            Err(Trouble::Files(_, error)) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                Err(Trouble::Refused("it is a hard link to a directory"))
            }
            linked => linked,
        }
    }

    /// Makes a symbolic link, a pipe or a device.
    fn make_other(&mut self, directory: &Open, name: &[u8], entry: &Entry) -> Result<(), Trouble> {
        let header = &entry.header;
        let (fd, mode) = (directory.fd.as_fd(), Mode::from_raw_mode(header.mode));
        let device = makedev(header.device.0, header.device.1);
        self.make(directory, name, || match header.kind {
            Kind::Symlink => symlinkat(header.link.as_slice(), fd, name),
            Kind::CharacterDevice => mknodat(fd, name, FileType::CharacterDevice, INCOMPLETE, device),
            Kind::BlockDevice => mknodat(fd, name, FileType::BlockDevice, INCOMPLETE, device),
            _ => mknodat(fd, name, FileType::Fifo, INCOMPLETE, 0),
        })?;
        let (user, group) = owner(header)?;
        let owned = chownat(fd, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW);
        owned.map_err(failed("set the owner of"))?;
        if header.kind != Kind::Symlink {
            chmodat(fd, name, mode, AtFlags::empty()).map_err(failed("set the mode of"))?;
        }
        for (attribute, _) in &entry.extended {
            // There is no call that sets them without following a path.
            kept(attribute)?;
            self.unpacked.skip(&header.name, "extended attributes are kept of files and directories only");
        }
        utimensat(fd, name, &times(time(entry)), AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set the time of"))
    }

    /// Sets owner, mode, attributes and time of a file or a directory.
    fn complete(&mut self, fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), Trouble> {
        let (user, group) = owner(&entry.header)?;
        // In this order: a new owner takes away the set-id bits and the capabilities.
        fchown(fd, Some(user), Some(group)).map_err(failed("set the owner of"))?;
        fchmod(fd, Mode::from_raw_mode(entry.header.mode)).map_err(failed("set the mode of"))?;
        // More has no room in the ext4 of a guest; file systems say "no space" of it, whatever is free.
        if entry.extended.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > EXTENDED_MAX {
            return Err(Trouble::Refused("its extended attributes have more than 3584 bytes"));
        }
        for (name, value) in &entry.extended {
            let set = if kept(name)? {
                fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())
            } else {
                self.unpacked.skip(&entry.header.name, "an extended attribute of this kind is left out");
                Ok(())
            };
            match set {
                Err(Errno::OPNOTSUPP) if name.starts_with(b"user.") => {
                    let cause = "the file system has no extended attributes of users";
                    self.unpacked.skip(&entry.header.name, cause);
                }
                set => set.map_err(failed("set an extended attribute of"))?,
            }
        }
        futimens(fd, &times(time(entry))).map_err(failed("set the time of"))
    }
}

/// Returns whether an extended attribute is kept.
fn kept(name: &[u8]) -> Result<bool, Trouble> {
    if name.starts_with(b"trusted.") {
        return Err(Trouble::Refused(
            "it has an extended attribute `trusted.*`, which is for file systems of the host",
        ));
    }
    let lists = [&b"system.posix_acl_access"[..], b"system.posix_acl_default"];
    Ok(name.starts_with(b"user.") || name == b"security.capability" || lists.contains(&name))
}

fn owner(header: &Header) -> Result<(Uid, Gid), Trouble> {
    let number = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    let owner = number(header.uid).zip(number(header.gid));
    let (user, group) = owner.ok_or(Trouble::Refused("its owner has a number that Linux does not have"))?;
    Ok((Uid::from_raw(user), Gid::from_raw(group)))
}

fn time(entry: &Entry) -> Timespec {
    Timespec { tv_sec: entry.header.mtime, tv_nsec: entry.nanoseconds.into() }
}

/// Reader of what layers may still have.
struct Limited<R> {
    input: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        let left = self.left.checked_sub(read as u64);
        self.left = left.ok_or_else(|| io::Error::other(TooManyBytes(self.limit)))?;
        Ok(read)
    }
}
