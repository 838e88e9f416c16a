// SPDX-License-Identifier: Apache-2.0
//! Packs a directory: its entries in a tar archive, with paths from the directory on.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Read as _, Seek as _, Write},
    path::Path,
};

use rustix::{
    fs::{FileType, OFlags, fstat, readlinkat},
    io::Errno,
};

use crate::{
    error::{ArchiveError, failed, refused},
    header::{
        BLOCK, Header, Kind, NAME, SEGMENTS_FIRST, SEGMENTS_MORE, Segment, more_segments, put_segments,
    },
    sparse,
    walk::{Found, walk, walk_chosen},
};

/// Bytes that are written at once.
const PIECE: usize = 64 << 10;
/// Maximum number of files with several names whose first name is remembered; of further ones each name is a file.
const LINKS: usize = 65_536;

/// What was packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Number of entries.
    pub entries: u64,
}

/// What becomes of an entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// It is packed, and of what is in it each entry is chosen in turn.
    Packed,
    /// It is packed if something in it is.
    IfNeeded,
    /// It is left out, with all that is in it.
    LeftOut,
}

/// Finds out whether a directory can be packed: everything in it can be read, and is of a kind that an archive has. So an
/// archive that is begun ends well, unless something changes meanwhile.
pub fn check(directory: &Path) -> Result<(), ArchiveError> {
    walk(directory, &mut |found| match found.kind() {
        FileType::RegularFile => match found.open(OFlags::empty()) {
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("read", found.path)(error)),
        },
        FileType::CharacterDevice | FileType::BlockDevice => Err(device(found.path)),
        _ => Ok(()),
    })
}

/// Writes a directory with its content as a tar archive. Owners are kept if `owners`, else they are root's. Sockets are left
/// out.
pub fn pack(directory: &Path, output: impl Write, owners: bool) -> Result<Packed, ArchiveError> {
    let mut packing = Packing::new(output, owners);
    walk(directory, &mut |found| packing.add(found))?;
    packing.finish()
}

/// Writes what is chosen of a directory as a tar archive, as [`pack`] does. `choose` gets the path of an entry, from the
/// directory on, and whether it is a directory.
pub fn pack_chosen(
    directory: &Path,
    output: impl Write,
    choose: &mut dyn FnMut(&[u8], bool) -> Choice,
) -> Result<Packed, ArchiveError> {
    let mut packing = Packing::new(output, false);
    // Directories around what is visited that are not packed yet.
    let mut around: Vec<Header> = Vec::new();
    walk_chosen(directory, &mut |found| {
        around.retain(|outer| found.path.starts_with(&outer.name));
        let top = found.path == b".";
        let choice =
            if top { Choice::Packed } else { choose(found.path, found.kind() == FileType::Directory) };
        match choice {
            Choice::LeftOut => return Ok(false),
            Choice::IfNeeded => around.push(packing.header(found, Kind::Directory, b"", 0)),
            Choice::Packed => {
                for outer in around.drain(..) {
                    packing.directory(&outer)?;
                }
                packing.add(found)?;
            }
        }
        Ok(true)
    })?;
    packing.finish()
}

fn device(path: &[u8]) -> ArchiveError {
    refused(path, "it is a device, which an archive of files does not have; leave it out")
}

struct Packing<W: Write> {
    output: BufWriter<W>,
    owners: bool,
    /// First names of files with several names, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    packed: Packed,
    piece: Vec<u8>,
}

impl<W: Write> Packing<W> {
    fn new(output: W, owners: bool) -> Self {
        let output = BufWriter::with_capacity(PIECE, output);
        Self { output, owners, links: HashMap::new(), packed: Packed::default(), piece: vec![0; PIECE] }
    }

    fn finish(mut self) -> Result<Packed, ArchiveError> {
        let end = self.output.write_all(&[0; 2 * BLOCK]).and_then(|()| self.output.flush());
        end.map_err(ArchiveError::Stream)?;
        Ok(self.packed)
    }

    /// Packs a directory whose turn has been before.
    fn directory(&mut self, header: &Header) -> Result<(), ArchiveError> {
        self.long_names(header.name.strip_suffix(b"/").unwrap_or(&header.name), b"")?;
        self.write(&header.block())?;
        self.packed.entries += 1;
        Ok(())
    }

    fn add(&mut self, found: &Found<'_>) -> Result<(), ArchiveError> {
        match found.kind() {
            FileType::RegularFile => self.file(found)?,
            FileType::Symlink => {
                let link = match readlinkat(found.parent, found.name, Vec::new()) {
                    Err(Errno::NOENT) => return Ok(()),
                    other => other.map_err(failed("read", found.path))?,
                };
                self.head(found, Kind::Symlink, link.as_bytes(), 0)?;
            }
            FileType::Directory => self.head(found, Kind::Directory, b"", 0)?,
            FileType::Fifo => self.head(found, Kind::Fifo, b"", 0)?,
            FileType::CharacterDevice | FileType::BlockDevice => return Err(device(found.path)),
            // A socket is of use only to the process that made it.
            _ => return Ok(()),
        }
        self.packed.entries += 1;
        Ok(())
    }

    fn file(&mut self, found: &Found<'_>) -> Result<(), ArchiveError> {
        let stat = &found.stat;
        let key = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&key).cloned() {
                return self.head(found, Kind::HardLink, &first, 0);
            }
            if self.links.len() < LINKS {
                self.links.insert(key, found.path.to_vec());
            }
        }
        let opened = match found.open(OFlags::empty()) {
            Err(Errno::NOENT) => {
                self.links.remove(&key);
                return Ok(());
            }
            other => other.map_err(failed("read", found.path))?,
        };
        let stat = fstat(&opened).map_err(failed("stat", found.path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused(found.path, "it was replaced while it was packed"));
        }
        let (mut file, size) = (File::from(opened), u64::try_from(stat.st_size).unwrap_or_default());
        let found = Found { stat, ..*found };
        if let Some(parts) = sparse::parts(&file, size) {
            return self.sparse(&found, &mut file, &parts, size);
        }
        self.head(&found, Kind::File, b"", size)?;
        self.content(&found, &mut file, size)?;
        self.pad(size)
    }

    fn sparse(
        &mut self,
        found: &Found<'_>,
        file: &mut File,
        parts: &[Segment],
        size: u64,
    ) -> Result<(), ArchiveError> {
        let stored = parts.iter().map(|(_, length)| length).sum();
        let (first, rest) = parts.split_at(parts.len().min(SEGMENTS_FIRST));
        self.long_names(found.path, b"")?;
        let mut block = self.header(found, Kind::Sparse, b"", stored).block();
        put_segments(&mut block, first, !rest.is_empty(), size);
        self.write(&block)?;
        let mut rest = rest.chunks(SEGMENTS_MORE).peekable();
        while let Some(some) = rest.next() {
            let block = more_segments(some, rest.peek().is_some());
            self.write(&block)?;
        }
        for (offset, length) in parts {
            file.seek(io::SeekFrom::Start(*offset)).map_err(failed("read", found.path))?;
            self.content(found, file, *length)?;
        }
        self.pad(stored)
    }

    /// Copies this many bytes. A file that grows is packed as it was; one that shrinks ends the archive.
    fn content(&mut self, found: &Found<'_>, file: &mut File, length: u64) -> Result<(), ArchiveError> {
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let read = match file.read(&mut self.piece[..most]) {
                Ok(0) => return Err(refused(found.path, "it became shorter while it was packed")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(failed("read", found.path))?,
            };
            self.output.write_all(&self.piece[..read]).map_err(ArchiveError::Stream)?;
            left -= read as u64;
        }
        Ok(())
    }

    fn head(&mut self, found: &Found<'_>, kind: Kind, link: &[u8], size: u64) -> Result<(), ArchiveError> {
        self.long_names(found.path, link)?;
        let block = self.header(found, kind, link, size).block();
        self.write(&block)
    }

    fn header(&self, found: &Found<'_>, kind: Kind, link: &[u8], size: u64) -> Header {
        let stat = &found.stat;
        let (uid, gid) = if self.owners { (stat.st_uid, stat.st_gid) } else { (0, 0) };
        let mut name = found.path.to_vec();
        if kind == Kind::Directory {
            name.push(b'/');
        }
        Header {
            name,
            link: link.to_vec(),
            kind,
            mode: stat.st_mode & 0o7777,
            uid: uid.into(),
            gid: gid.into(),
            size,
            #[allow(clippy::useless_conversion, reason = "its type differs between machines")]
            mtime: stat.st_mtime.into(),
        }
    }

    /// Writes name and link as entries of their own, if they do not fit into a header.
    fn long_names(&mut self, path: &[u8], link: &[u8]) -> Result<(), ArchiveError> {
        for (kind, text) in [(Kind::LongLink, link), (Kind::LongName, path)] {
            // A directory's name has a slash more.
            if text.len() < NAME {
                continue;
            }
            let size = text.len() as u64 + 1;
            let name = b"././@LongLink".to_vec();
            let header = Header { name, link: Vec::new(), kind, mode: 0o644, uid: 0, gid: 0, size, mtime: 0 };
            self.write(&header.block())?;
            self.write(text)?;
            self.write(&[0])?;
            self.pad(size)?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.output.write_all(bytes).map_err(ArchiveError::Stream)
    }

    fn pad(&mut self, size: u64) -> Result<(), ArchiveError> {
        let over = (size % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.write(&[0; BLOCK][over..]) }
    }
}
