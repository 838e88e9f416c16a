// SPDX-License-Identifier: Apache-2.0
//! Headers of tar entries: blocks of 512 bytes. Written in the format of GNU tar, which every tar reads; read in that of
//! GNU, POSIX (ustar) and V7.

/// Size of a block in bytes.
pub(crate) const BLOCK: usize = 512;
/// Segments in a header of a sparse file, and in each block that continues it.
pub(crate) const SEGMENTS_FIRST: usize = 4;
pub(crate) const SEGMENTS_MORE: usize = 21;

/// A block.
pub(crate) type Block = [u8; BLOCK];

/// Part of a sparse file that is stored: where it begins in the file, and its length.
pub type Segment = (u64, u64);

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of an entry before it.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character or block device.
    Device,
    /// A directory.
    Directory,
    /// A pipe with a name.
    Fifo,
    /// Old GNU format: only some parts of the file are stored.
    Sparse,
    /// Its content is the name of the next entry.
    LongName,
    /// Its content is the link of the next entry.
    LongLink,
    /// Its content are attributes of the next entry (POSIX).
    Attributes,
    /// Its content are attributes of all entries.
    GlobalAttributes,
    /// Something else.
    Unknown,
}

impl Kind {
    const fn of(flag: u8) -> Self {
        match flag {
            0 | b'0' | b'7' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' | b'4' => Self::Device,
            b'5' => Self::Directory,
            b'6' => Self::Fifo,
            b'S' => Self::Sparse,
            b'L' => Self::LongName,
            b'K' => Self::LongLink,
            b'x' | b'X' => Self::Attributes,
            b'g' => Self::GlobalAttributes,
            _ => Self::Unknown,
        }
    }

    const fn flag(self) -> u8 {
        match self {
            Self::HardLink => b'1',
            Self::Symlink => b'2',
            Self::Directory => b'5',
            Self::Fifo => b'6',
            Self::Sparse => b'S',
            Self::LongName => b'L',
            Self::LongLink => b'K',
            Self::File | Self::Device | Self::Attributes | Self::GlobalAttributes | Self::Unknown => b'0',
        }
    }
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name of the entry; that of a directory may end with a slash.
    pub name: Vec<u8>,
    /// Name of the entry that a hard link leads to, or target of a symbolic link.
    pub link: Vec<u8>,
    /// What the entry is.
    pub kind: Kind,
    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// User that it belongs to.
    pub uid: u64,
    /// Group that it belongs to.
    pub gid: u64,
    /// Bytes of content that follow.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
}

/// Maximum length of a name and of a link in a header.
pub(crate) const NAME: usize = 100;

impl Header {
    /// Writes the header. Name and link are cut to what fits.
    pub fn block(&self) -> Block {
        let mut block = [0; BLOCK];
        put(&mut block[..NAME], &self.name);
        number(&mut block[100..108], i128::from(self.mode & 0o7777));
        number(&mut block[108..116], i128::from(self.uid));
        number(&mut block[116..124], i128::from(self.gid));
        number(&mut block[124..136], i128::from(self.size));
        number(&mut block[136..148], i128::from(self.mtime));
        block[156] = self.kind.flag();
        put(&mut block[157..257], &self.link);
        block[257..265].copy_from_slice(b"ustar  \0");
        seal(&mut block);
        block
    }

    /// Reads a header; `None` if its checksum is not right or a number in it is none.
    pub fn parse(block: &Block) -> Option<Self> {
        // Some tars sum signed bytes.
        let told = parsed(&block[148..156])?;
        let signed: i128 = summed(block).map(|byte| i128::from(byte as i8)).sum();
        let unsigned: i128 = summed(block).map(i128::from).sum();
        if told != signed && told != unsigned {
            return None;
        }
        let mut name = text(&block[..NAME]);
        let prefix = text(&block[345..500]);
        // The magic of POSIX; GNU's has other fields where the prefix is.
        if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
            name = [&prefix[..], b"/", &name].concat();
        }
        Some(Self {
            name,
            link: text(&block[157..257]),
            kind: Kind::of(block[156]),
            mode: u32::try_from(parsed(&block[100..108])?).ok()? & 0o7777,
            uid: u64::try_from(parsed(&block[108..116])?).ok()?,
            gid: u64::try_from(parsed(&block[116..124])?).ok()?,
            size: u64::try_from(parsed(&block[124..136])?).ok()?,
            mtime: i64::try_from(parsed(&block[136..148])?).ok()?,
        })
    }
}

/// Writes the first segments of a sparse file into its header, and the size of the whole file.
pub(crate) fn put_segments(block: &mut Block, segments: &[Segment], more: bool, size: u64) {
    put_each(&mut block[386..482], &segments[..segments.len().min(SEGMENTS_FIRST)]);
    block[482] = u8::from(more);
    number(&mut block[483..495], i128::from(size));
    seal(block);
}

/// Writes a block with further segments.
pub(crate) fn more_segments(segments: &[Segment], more: bool) -> Block {
    let mut block = [0; BLOCK];
    put_each(&mut block[..504], &segments[..segments.len().min(SEGMENTS_MORE)]);
    block[504] = u8::from(more);
    block
}

/// Reads the segments of a header, whether there are more, and the size of the whole file.
pub(crate) fn segments(block: &Block) -> Option<(Vec<Segment>, bool, u64)> {
    let size = u64::try_from(parsed(&block[483..495])?).ok()?;
    Some((each(&block[386..482])?, block[482] != 0, size))
}

/// Reads the segments of a further block, and whether there are more.
pub(crate) fn segments_of_more(block: &Block) -> Option<(Vec<Segment>, bool)> {
    Some((each(&block[..504])?, block[504] != 0))
}

fn put_each(places: &mut [u8], segments: &[Segment]) {
    for (place, (offset, length)) in places.chunks_mut(24).zip(segments) {
        let (left, right) = place.split_at_mut(12);
        number(left, i128::from(*offset));
        number(right, i128::from(*length));
    }
}

fn each(places: &[u8]) -> Option<Vec<Segment>> {
    let used = places.chunks(24).take_while(|place| place[0] != 0);
    let segment = |place: &[u8]| {
        let (offset, length) = (parsed(&place[..12])?, parsed(&place[12..])?);
        Some((u64::try_from(offset).ok()?, u64::try_from(length).ok()?))
    };
    used.map(segment).collect()
}

/// Sets the checksum.
fn seal(block: &mut Block) {
    let sum: u32 = summed(block).map(u32::from).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// The bytes of the checksum, whose own place counts as spaces.
fn summed(block: &Block) -> impl Iterator<Item = u8> + '_ {
    block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte })
}

fn put(place: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(place.len());
    place[..length].copy_from_slice(&bytes[..length]);
}

/// Returns what stands before the first NUL.
fn text(place: &[u8]) -> Vec<u8> {
    place.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// Writes a number in octal digits, or in base 256 if it has too many.
fn number(place: &mut [u8], value: i128) {
    let digits = format!("{value:o}");
    if value >= 0 && digits.len() < place.len() {
        let padded = format!("{digits:0>width$}\0", width = place.len() - 1);
        place.copy_from_slice(padded.as_bytes());
        return;
    }
    let bytes = value.to_be_bytes();
    place.copy_from_slice(&bytes[bytes.len() - place.len()..]);
    place[0] |= 0x80;
}

/// Reads a number in octal digits or in base 256.
fn parsed(place: &[u8]) -> Option<i128> {
    if place[0] & 0x80 != 0 {
        // The first bit says that it is base 256, the next one is the sign.
        let negative = place[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in place.iter().enumerate() {
            let byte = if at == 0 && !negative { byte & 0x7f } else { *byte };
            value = value << 8 | i128::from(byte);
        }
        return Some(value);
    }
    let digits: Vec<u8> = place.iter().copied().filter(|byte| !matches!(byte, 0 | b' ')).collect();
    digits.iter().try_fold(0_i128, |value, digit| match digit {
        b'0'..=b'7' => Some(value << 3 | i128::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::any, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(mode in 0_u32..0o10000, uid in any::<u32>(), size in any::<u64>(), mtime in any::<i64>(),
            name in "[a-z/]{1,100}", link in "[a-z/]{0,100}") {
            let (name, link) = (name.into_bytes(), link.into_bytes());
            let uid = u64::from(uid);
            let header = Header { name, link, kind: Kind::Symlink, mode, uid, gid: uid / 2, size: size >> 1, mtime: mtime >> 1 };
            prop_assert_eq!(Header::parse(&header.block()), Some(header));
        }

        #[test]
        fn no_block_is_too_odd(bytes in proptest::collection::vec(any::<u8>(), BLOCK)) {
            let mut block: Block = bytes.try_into().unwrap_or([0; BLOCK]);
            seal(&mut block);
            let _ = (Header::parse(&block), segments(&block), segments_of_more(&block));
        }
    }

    #[test]
    fn a_prefix_of_posix_is_part_of_the_name() {
        let header = Header {
            name: b"name".to_vec(),
            link: vec![],
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
        };
        let mut block = header.block();
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[345..350].copy_from_slice(b"a/b/c");
        seal(&mut block);
        assert_eq!(Header::parse(&block).map(|header| header.name), Some(b"a/b/c/name".to_vec()));
        block[0] = b'x';
        assert_eq!(Header::parse(&block), None, "the checksum is wrong");
    }
}
