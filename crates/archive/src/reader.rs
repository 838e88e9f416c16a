// SPDX-License-Identifier: Apache-2.0
//! Entries of a tar archive, read one after the other. All that an archive can make grow is bounded.

use std::io::{self, Read};

use crate::{
    error::ArchiveError,
    header::{BLOCK, Block, Header, Kind, Segment, segments, segments_of_more},
};

/// Maximum length of a name or a link.
const NAME_MAX: u64 = 4096;
/// Maximum size of the attributes of an entry.
const ATTRIBUTES_MAX: u64 = 64 << 10;
/// Maximum number of parts of a sparse file.
const PARTS_MAX: usize = 65_536;
/// Maximum number of bytes behind the end of an archive, which are zeros.
const REST_MAX: u64 = 1 << 20;

/// An entry.
#[derive(Debug)]
pub struct Entry {
    /// Its header, with what an archive says of it before.
    pub header: Header,
    /// Parts of a sparse file that are stored, in their order, and the size of the whole file, which they are within.
    pub sparse: Option<(Vec<Segment>, u64)>,
}

/// Attributes that come before an entry.
#[derive(Debug, Default, Clone)]
struct Attributes {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
}

/// Reads an archive.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Bytes of content that were not read yet.
    left: u64,
    /// Bytes that fill the content's last block.
    padding: u64,
    entries: u64,
    of_all: Attributes,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, entries: 0, of_all: Attributes::default() }
    }

    /// Number of entries so far.
    pub(crate) const fn entries(&self) -> u64 {
        self.entries
    }

    /// Reads the next entry, and skips what was not read of the previous one. `None` at the end of the archive.
    #[allow(clippy::should_implement_trait, reason = "an error ends it, and content is read between entries")]
    pub fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut own = self.of_all.clone();
        loop {
            self.skip()?;
            let block = self.block()?;
            if block.iter().all(|byte| *byte == 0) {
                return self.end().map(|()| None);
            }
            let none =
                || self.malformed("what should be an entry is none; send a tar archive, not compressed");
            let mut header = Header::parse(&block).ok_or_else(none)?;
            self.follow(header.size);
            match header.kind {
                Kind::LongName => own.name = Some(self.name()?),
                Kind::LongLink => own.link = Some(self.name()?),
                Kind::Attributes => {
                    let text =
                        self.all(ATTRIBUTES_MAX, "the attributes of an entry are larger than 64 KiB")?;
                    self.attributes(&text, &mut own)?;
                }
                Kind::GlobalAttributes => {
                    let text =
                        self.all(ATTRIBUTES_MAX, "the attributes of entries are larger than 64 KiB")?;
                    let mut of_all = std::mem::take(&mut self.of_all);
                    self.attributes(&text, &mut of_all)?;
                    own = of_all.clone();
                    self.of_all = of_all;
                }
                _ => {
                    if let Some(size) = own.size {
                        self.follow(size);
                        header.size = size;
                    }
                    let sparse = if header.kind == Kind::Sparse {
                        let parts = self.parts(&block)?;
                        self.follow(header.size);
                        Some(parts)
                    } else {
                        None
                    };
                    header.name = own.name.take().unwrap_or(header.name);
                    header.link = own.link.take().unwrap_or(header.link);
                    header.uid = own.uid.unwrap_or(header.uid);
                    header.gid = own.gid.unwrap_or(header.gid);
                    header.mtime = own.mtime.unwrap_or(header.mtime);
                    self.entries += 1;
                    return Ok(Some(Entry { header, sparse }));
                }
            }
        }
    }

    /// Reads content of the entry; 0 at its end.
    pub fn content(&mut self, piece: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = usize::try_from(self.left).unwrap_or(piece.len()).min(piece.len());
        if most == 0 {
            return Ok(0);
        }
        loop {
            match self.input.read(&mut piece[..most]) {
                Ok(0) => return Err(self.malformed("it ends within an entry")),
                Ok(read) => {
                    self.left -= read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Stream(error)),
            }
        }
    }

    pub(crate) fn malformed(&self, cause: &'static str) -> ArchiveError {
        ArchiveError::Malformed { entries: self.entries, cause }
    }

    fn follow(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn block(&mut self) -> Result<Block, ArchiveError> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.malformed("it ends without its end mark"),
            _ => ArchiveError::Stream(error),
        })?;
        Ok(block)
    }

    fn skip(&mut self) -> Result<(), ArchiveError> {
        let mut piece = [0; 4096];
        while self.content(&mut piece)? > 0 {}
        self.left = std::mem::take(&mut self.padding);
        while self.content(&mut piece)? > 0 {}
        Ok(())
    }

    /// Reads what is behind the end, which fills the last record.
    fn end(&mut self) -> Result<(), ArchiveError> {
        let mut rest = (&mut self.input).take(REST_MAX + 1);
        let (mut piece, mut size) = ([0; 4096], 0);
        loop {
            let read = rest.read(&mut piece).map_err(ArchiveError::Stream)?;
            size += read as u64;
            if piece[..read].iter().any(|byte| *byte != 0) || size > REST_MAX {
                return Err(self.malformed("something follows its end"));
            }
            if read == 0 {
                return Ok(());
            }
        }
    }

    fn all(&mut self, most: u64, too_large: &'static str) -> Result<Vec<u8>, ArchiveError> {
        if self.left > most {
            return Err(self.malformed(too_large));
        }
        let mut text = vec![0; usize::try_from(self.left).unwrap_or_default()];
        let mut at = 0;
        while at < text.len() {
            at += self.content(&mut text[at..])?;
        }
        Ok(text)
    }

    fn name(&mut self) -> Result<Vec<u8>, ArchiveError> {
        let mut text = self.all(NAME_MAX + 1, "a name is longer than 4096 bytes")?;
        if text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    fn attributes(&self, text: &[u8], into: &mut Attributes) -> Result<(), ArchiveError> {
        let wrong = || self.malformed("the attributes of an entry are malformed");
        let mut rest = text;
        while rest.first().is_some_and(|byte| *byte != 0) {
            let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length: usize = number(&rest[..space]).and_then(|n| n.try_into().ok()).ok_or_else(wrong)?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(wrong());
            }
            let record = &rest[space + 1..length - 1];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            rest = &rest[length..];
            match key {
                b"path" if value.len() as u64 <= NAME_MAX => into.name = Some(value.to_vec()),
                b"linkpath" if value.len() as u64 <= NAME_MAX => into.link = Some(value.to_vec()),
                b"path" | b"linkpath" => return Err(self.malformed("a name is longer than 4096 bytes")),
                b"size" => into.size = Some(number(value).ok_or_else(wrong)?),
                b"uid" => into.uid = Some(number(value).ok_or_else(wrong)?),
                b"gid" => into.gid = Some(number(value).ok_or_else(wrong)?),
                b"mtime" => into.mtime = Some(seconds(value).ok_or_else(wrong)?),
                key if key.starts_with(b"GNU.sparse.") => {
                    let cause =
                        "a sparse file is in a format that is not supported; pack it with --format=gnu";
                    return Err(self.malformed(cause));
                }
                // Such as times of access, and names of users, which mean nothing here.
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads where the parts of a sparse file are.
    fn parts(&mut self, header: &Block) -> Result<(Vec<Segment>, u64), ArchiveError> {
        const WRONG: &str = "the parts of a sparse file are malformed";
        let (mut all, mut more, size) = segments(header).ok_or_else(|| self.malformed(WRONG))?;
        while more {
            let block = self.block()?;
            let (some, further) = segments_of_more(&block).ok_or_else(|| self.malformed(WRONG))?;
            all.extend(some);
            more = further;
            if all.len() > PARTS_MAX {
                return Err(self.malformed("a sparse file has more than 65536 parts"));
            }
        }
        // They are in their order, within the file, and all that is stored.
        let (mut at, mut stored) = (0_u64, 0_u64);
        for (offset, length) in &all {
            let end = offset.checked_add(*length).filter(|end| *offset >= at && *end <= size);
            at = end.ok_or_else(|| self.malformed(WRONG))?;
            stored += length;
        }
        if stored != self.left {
            return Err(self.malformed(WRONG));
        }
        Ok((all, size))
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Parses seconds, whose fraction is left out.
fn seconds(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::any, prop_assert, proptest};

    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<Entry>, ArchiveError> {
        let (mut reader, mut all) = (Reader::new(bytes), Vec::new());
        while let Some(entry) = reader.next()? {
            all.push(entry);
        }
        Ok(all)
    }

    fn entry(kind: Kind, name: &str, content: &[u8]) -> Vec<u8> {
        let size = content.len() as u64;
        let name = name.as_bytes().to_vec();
        let header = Header { name, link: vec![], kind, mode: 0o644, uid: 1, gid: 2, size, mtime: 3 };
        let mut bytes = header.block().to_vec();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn record(key: &str, value: &str) -> Vec<u8> {
        // The length counts its own two digits.
        let length = key.len() + value.len() + 5;
        assert!((10..100).contains(&length));
        format!("{length} {key}={value}\n").into_bytes()
    }

    fn with_flag(mut bytes: Vec<u8>, flag: u8) -> Vec<u8> {
        bytes[156] = flag;
        bytes[148..156].fill(b' ');
        let sum: u32 = bytes[..BLOCK].iter().map(|byte| u32::from(*byte)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    }

    #[test]
    fn attributes_of_posix_are_those_of_the_next_entry() {
        let text = [record("path", "a/long/name"), record("size", "4"), record("mtime", "12.75")].concat();
        let mut bytes = with_flag(entry(Kind::File, "x", &text), b'x');
        bytes.extend(entry(Kind::File, "short", b"1234"));
        bytes.extend(entry(Kind::File, "next", b""));
        bytes.extend([0; 2 * BLOCK]);
        let all = read(&bytes).unwrap_or_default();
        let names: Vec<_> = all.iter().map(|entry| entry.header.name.as_slice()).collect();
        assert_eq!(names, [&b"a/long/name"[..], b"next"]);
        assert_eq!((all[0].header.mtime, all[0].header.size, all[1].header.mtime), (12, 4, 3));
    }

    #[test]
    fn what_is_cut_or_goes_on_is_refused() {
        let mut bytes = entry(Kind::File, "name", b"content");
        bytes.extend([0; 2 * BLOCK]);
        assert!(read(&bytes).is_ok_and(|all| all.len() == 1));
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 3, 2 * BLOCK] {
            let cut = read(&bytes[..length]);
            assert!(matches!(cut, Err(ArchiveError::Malformed { .. })), "{length} bytes");
        }
        bytes.push(1);
        assert!(read(&bytes).is_err());
        assert!(read(b"\x1f\x8b and so on, of at least one block".repeat(32).as_slice()).is_err());
    }

    #[test]
    fn what_an_archive_makes_grow_is_bounded() {
        let long = entry(Kind::LongName, "x", &vec![b'a'; 8192]);
        assert!(read(&long).is_err_and(|error| error.to_string().contains("4096")));
        let large = with_flag(entry(Kind::File, "x", &vec![b'a'; 128 << 10]), b'x');
        assert!(read(&large).is_err_and(|error| error.to_string().contains("64 KiB")));
    }

    proptest! {
        /// Whatever bytes come, they are read or refused.
        #[test]
        fn whatever_comes_is_read_or_refused(at in 0_usize..4000, change in vec(any::<u8>(), 1..40)) {
            let mut bytes = entry(Kind::LongName, "././@LongLink", b"a/name\0");
            bytes.extend(entry(Kind::File, "name", &[7; 700]));
            bytes.extend(with_flag(entry(Kind::File, "x", b"9 path=a\n"), b'x'));
            bytes.extend(entry(Kind::Sparse, "sparse", b""));
            bytes.extend([0; 2 * BLOCK]);
            for (place, new) in bytes.iter_mut().skip(at).zip(change) {
                *place = new;
            }
            if let Ok(all) = read(&bytes) {
                prop_assert!(all.len() <= bytes.len() / BLOCK);
            }
        }
    }
}
