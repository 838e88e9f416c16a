// SPDX-License-Identifier: Apache-2.0
//! Entries of a tar archive, read one after the other. All that an archive can make grow is bounded.

use std::io::{self, Read};

use super::{
    attributes::{self, Attributes, Extended},
    header::{BLOCK, Block, Header, Kind, Segment, segments, segments_of_more},
};

/// Maximum number of parts of a sparse file.
const PARTS_MAX: usize = 65_536;
/// Maximum number of headers that an entry has before its own.
const HEADERS_MAX: usize = 16;

const NO_ENTRY: &str = "what should be an entry is none; it is no tar archive, or damaged";

/// Limits of what an archive says of an entry, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Length of a name or a link.
    pub(crate) name: u64,
    /// Size of the attributes, extended ones included.
    pub(crate) attributes: u64,
}

/// Why an archive could not be read on.
#[derive(Debug)]
pub(crate) enum TarError {
    Malformed(&'static str),
    Stream(io::Error),
}

/// An entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) header: Header,
    /// Nanoseconds of its time.
    pub(crate) nanoseconds: u32,
    pub(crate) extended: Vec<Extended>,
    pub(crate) sparse: Option<Sparse>,
}

/// Parts of a sparse file that are stored, in order, and the size of the whole file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) parts: Vec<Segment>,
    pub(crate) size: u64,
}

/// Reads an archive.
pub(crate) struct Reader<R> {
    input: R,
    bounds: Bounds,
    /// Passes over content that is not wanted.
    pass: fn(&mut R, u64) -> io::Result<()>,
    /// Bytes of the input that were read or passed.
    position: u64,
    /// Bytes of content that were not read yet.
    left: u64,
    /// Bytes that fill the content's last block.
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(input: R, bounds: Bounds) -> Self {
        Self::passing(input, bounds, read_past)
    }

    /// Makes a reader that passes over content in its own way.
    pub(crate) fn passing(input: R, bounds: Bounds, pass: fn(&mut R, u64) -> io::Result<()>) -> Self {
        Self { input, bounds, pass, position: 0, left: 0, padding: 0 }
    }

    /// Returns the offset in the archive of what is read next.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Returns the input, of which everything after the end mark was not read.
    pub(crate) fn into_input(self) -> R {
        self.input
    }

    /// Reads the next entry, and passes over what was not read of the previous one. `None` at the end mark, or where the input
    /// ends between entries: some tools write no mark.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut own = Attributes::default();
        for _ in 0..=HEADERS_MAX {
            self.skip()?;
            let Some(block) = self.block()?.filter(|block| block.iter().any(|byte| *byte != 0)) else {
                return Ok(None);
            };
            let header = Header::parse(&block).ok_or(TarError::Malformed(NO_ENTRY))?;
            self.follow(header.size);
            match header.kind {
                Kind::LongName => own.name = Some(self.long_name()?),
                Kind::LongLink => own.link = Some(self.long_name()?),
                Kind::Attributes => {
                    let too_large = "the attributes of an entry are larger than the limit";
                    let text = self.all(self.bounds.attributes, too_large)?;
                    attributes::parse(&text, &mut own).map_err(TarError::Malformed)?;
                }
                Kind::GlobalAttributes => {}
                _ => return self.entry(header, &block, own).map(Some),
            }
        }
        Err(TarError::Malformed("an entry has more than 16 headers"))
    }

    /// Reads content of the entry; 0 at its end.
    pub(crate) fn content(&mut self, piece: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.left).unwrap_or(piece.len()).min(piece.len());
        let read = self.read(&mut piece[..most])?;
        if read == 0 && most > 0 {
            return Err(TarError::Malformed("it ends within an entry"));
        }
        self.left -= read as u64;
        Ok(read)
    }

    /// Completes an entry with what came before it.
    fn entry(&mut self, mut header: Header, block: &Block, own: Attributes) -> Result<Entry, TarError> {
        header.size = own.size.unwrap_or(header.size);
        if header.kind.is_header_only() {
            header.size = 0;
        }
        self.follow(header.size);
        header.name = own.name.unwrap_or(header.name);
        header.link = own.link.unwrap_or(header.link);
        let most = self.bounds.name;
        if header.name.len() as u64 > most || header.link.len() as u64 > most {
            return Err(TarError::Malformed("a name is longer than the limit"));
        }
        let sparse = match (header.kind, own.sparse_size) {
            (Kind::Sparse, _) => Some(self.old_parts(block, header.size)?),
            (Kind::File, Some(size)) => Some(self.parts(size)?),
            _ => None,
        };
        if sparse.is_some() {
            header.kind = Kind::File;
        }
        // Archives of V7 name directories so.
        if header.kind == Kind::File && header.name.ends_with(b"/") {
            header.kind = Kind::Directory;
        }
        header.uid = own.uid.unwrap_or(header.uid);
        header.gid = own.gid.unwrap_or(header.gid);
        let (seconds, nanoseconds) = own.mtime.unwrap_or((header.mtime, 0));
        header.mtime = seconds;
        Ok(Entry { header, nanoseconds, extended: own.extended, sparse })
    }

    fn follow(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Reads some bytes; 0 at the end of the input.
    fn read(&mut self, piece: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.input.read(piece) {
                Ok(read) => {
                    self.position += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Stream(error)),
            }
        }
    }

    /// Reads a block, `None` if the input ends before it.
    fn block(&mut self) -> Result<Option<Block>, TarError> {
        let (mut block, mut at) = ([0; BLOCK], 0);
        while at < BLOCK {
            match self.read(&mut block[at..])? {
                0 if at == 0 => return Ok(None),
                0 => return Err(TarError::Malformed("it ends within a header")),
                read => at += read,
            }
        }
        Ok(Some(block))
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let bytes =
            self.left.checked_add(self.padding).ok_or(TarError::Malformed("an entry is too large"))?;
        (self.left, self.padding) = (0, 0);
        (self.pass)(&mut self.input, bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Malformed("it ends within an entry"),
            _ => TarError::Stream(error),
        })?;
        self.position = self.position.saturating_add(bytes);
        Ok(())
    }

    /// Reads the whole content.
    fn all(&mut self, most: u64, too_large: &'static str) -> Result<Vec<u8>, TarError> {
        if self.left > most {
            return Err(TarError::Malformed(too_large));
        }
        let mut text = vec![0; self.left as usize];
        let mut at = 0;
        while at < text.len() {
            at += self.content(&mut text[at..])?;
        }
        Ok(text)
    }

    fn long_name(&mut self) -> Result<Vec<u8>, TarError> {
        let mut text = self.all(self.bounds.name + 1, "a name is longer than the limit")?;
        if text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    /// Reads where the parts of a sparse file are that is in the old GNU format: in its header and in blocks that follow.
    fn old_parts(&mut self, header: &Block, stored: u64) -> Result<Sparse, TarError> {
        const WRONG: TarError = TarError::Malformed("the parts of a sparse file are malformed");
        let (mut parts, mut more, size) = segments(header).ok_or(WRONG)?;
        while more {
            let block = self.block()?.ok_or(WRONG)?;
            let (some, further) = segments_of_more(&block).ok_or(WRONG)?;
            parts.extend(some);
            more = further;
            if parts.len() > PARTS_MAX {
                return Err(TarError::Malformed("a sparse file has more than 65536 parts"));
            }
        }
        self.follow(stored);
        self.checked(parts, size)
    }

    /// Reads where the parts of a sparse file are that is in the format 1.0 of GNU: in numbers, one a line, that are the first
    /// blocks of its content. The first number says how many parts there are.
    fn parts(&mut self, size: u64) -> Result<Sparse, TarError> {
        const WRONG: TarError = TarError::Malformed("the parts of a sparse file are malformed");
        let (mut numbers, mut digits) = (Vec::new(), Vec::new());
        loop {
            let mut block = [0; BLOCK];
            let mut at = 0;
            while at < BLOCK {
                match self.content(&mut block[at..])? {
                    0 => return Err(WRONG),
                    read => at += read,
                }
            }
            for byte in block {
                match byte {
                    // As many as the largest number has.
                    b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                    b'\n' if !digits.is_empty() => {
                        numbers.push(attributes::number(&digits).ok_or(WRONG)?);
                        digits.clear();
                        if numbers[0] > PARTS_MAX as u64 {
                            return Err(TarError::Malformed("a sparse file has more than 65536 parts"));
                        }
                        if numbers.len() as u64 == 1 + 2 * numbers[0] {
                            let parts = numbers[1..].chunks(2).map(|pair| (pair[0], pair[1])).collect();
                            return self.checked(parts, size);
                        }
                    }
                    _ => return Err(WRONG),
                }
            }
        }
    }

    /// Finds out whether parts are in order, within the file, and all that is stored.
    fn checked(&self, parts: Vec<Segment>, size: u64) -> Result<Sparse, TarError> {
        let (mut at, mut stored) = (0_u64, 0_u64);
        for (offset, length) in &parts {
            let end = offset.checked_add(*length).filter(|end| *offset >= at && *end <= size);
            let wrong = TarError::Malformed("the parts of a sparse file are not in order, or not within it");
            at = end.ok_or(wrong)?;
            stored += length;
        }
        if stored != self.left {
            return Err(TarError::Malformed("the parts of a sparse file are not what is stored of it"));
        }
        Ok(Sparse { parts, size })
    }
}

/// Reads this many bytes and drops them.
fn read_past<R: Read>(input: &mut R, bytes: u64) -> io::Result<()> {
    if bytes > 0 && io::copy(&mut input.take(bytes), &mut io::sink())? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ::tar::EntryType;
    use proptest::{collection::vec, prelude::any, prop_assert, proptest};

    use super::*;

    const BOUNDS: Bounds = Bounds { name: 4096, attributes: 64 << 10 };

    fn read(bytes: &[u8]) -> Result<Vec<Entry>, TarError> {
        let (mut reader, mut all) = (Reader::new(bytes, BOUNDS), Vec::new());
        while let Some(entry) = reader.next_entry()? {
            all.push(entry);
        }
        Ok(all)
    }

    fn entry(kind: u8, name: &str, content: &[u8]) -> Vec<u8> {
        let mut header = ::tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_size(content.len() as u64);
        header.set_cksum();
        let mut bytes = [&header.as_bytes()[..], content].concat();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn names(entries: &[Entry]) -> Vec<&[u8]> {
        entries.iter().map(|entry| entry.header.name.as_slice()).collect()
    }

    #[test]
    fn long_names_and_attributes_are_those_of_the_next_entry() {
        let long = "n/".repeat(150);
        let bytes = [
            entry(b'g', "global", b"12 path=bad\n"),
            entry(b'L', "././@LongLink", format!("{long}\0").as_bytes()),
            entry(b'0', "short", b"one"),
            entry(b'x', "pax", b"19 path=from/\xff/pax\n\0"),
            entry(b'0', "short", b"two"),
            entry(b'0', "plain", b""),
        ]
        .concat();
        let all = read(&bytes).unwrap();
        assert_eq!(names(&all), [long.as_bytes(), b"from/\xff/pax", b"plain"]);
        assert_eq!(all[0].header.kind, Kind::Directory, "its name ends with a slash");
    }

    #[test]
    fn what_never_has_content_has_none_whatever_its_size() {
        let mut link = entry(b'1', "link", &[]);
        let mut header = ::tar::Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&link[..BLOCK]);
        header.set_size(600);
        header.set_cksum();
        link[..BLOCK].copy_from_slice(header.as_bytes());
        let all = read(&[link, entry(b'0', "next", b"x")].concat()).unwrap();
        assert_eq!(names(&all), [&b"link"[..], b"next"]);
    }

    #[test]
    fn sparse_files_of_gnu_1_0_have_their_map_in_front() {
        let attributes = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n24 GNU.sparse.name=real\n\
            30 GNU.sparse.realsize=100000\n";
        let mut content = b"2\n512\n3\n90000\n2\n".to_vec();
        content.resize(BLOCK, 0);
        content.extend(b"abcde");
        let bytes = [entry(b'x', "pax", attributes), entry(b'0', "GNUSparseFile.0/real", &content)].concat();
        let mut reader = Reader::new(&bytes[..], BOUNDS);
        let entry_read = reader.next_entry().unwrap().unwrap();
        assert_eq!(entry_read.header.name, b"real");
        assert_eq!(entry_read.sparse, Some(Sparse { parts: vec![(512, 3), (90_000, 2)], size: 100_000 }));
        let mut piece = [0; 10];
        assert_eq!((reader.content(&mut piece).unwrap(), &piece[..5]), (5, &b"abcde"[..]));
        let long = "18446744073709551615\n";
        for map in ["1\n0\n6\n", "1\n99999\n5\n", "2\n10\n3\n5\n2\n", "70000\n", "x", "1\n0\n", "\n", long] {
            let mut content = map.as_bytes().to_vec();
            content.resize(BLOCK, 0);
            content.extend(b"abcde");
            let bytes = [entry(b'x', "pax", attributes), entry(b'0', "f", &content)].concat();
            assert!(read(&bytes).is_err(), "{map:?}");
        }
    }

    #[test]
    fn what_is_cut_is_refused_except_between_entries() {
        let bytes = [entry(b'0', "name", b"content"), vec![0; 2 * BLOCK]].concat();
        for length in [1, BLOCK - 1, BLOCK, BLOCK + 3] {
            assert!(matches!(read(&bytes[..length]), Err(TarError::Malformed(_))), "{length} bytes");
        }
        for length in [2 * BLOCK, 3 * BLOCK, 4 * BLOCK] {
            assert_eq!(read(&bytes[..length]).unwrap().len(), 1);
        }
    }

    #[test]
    fn what_an_archive_makes_grow_is_bounded() {
        let (name, attributes) = (b"a".repeat(8192), b"a".repeat(70_000));
        for (kind, content) in [(b'L', &name[..]), (b'x', &attributes[..]), (b'L', &b"a"[..])] {
            let bytes = entry(kind, "x", content).repeat(20);
            assert!(matches!(read(&bytes), Err(TarError::Malformed(_))), "{}", content.len());
        }
    }

    proptest! {
        /// Whatever bytes come, they are read or refused.
        #[test]
        fn whatever_comes_is_read_or_refused(at in 0_usize..5000, change in vec(any::<u8>(), 1..40)) {
            let mut bytes = [
                entry(b'L', "././@LongLink", b"a/name\0"),
                entry(b'0', "name", &[7; 700]),
                entry(b'x', "x", b"9 path=a\n"),
                entry(b'S', "sparse", b""),
                entry(b'3', "device", b""),
            ].concat();
            for (place, new) in bytes.iter_mut().skip(at).zip(change) {
                *place = new;
            }
            if let Ok(all) = read(&bytes) {
                prop_assert!(all.len() <= bytes.len() / BLOCK);
            }
        }
    }
}
