// SPDX-License-Identifier: Apache-2.0
//! Headers of tar entries: blocks of 512 bytes.

/// Size of a block in bytes.
pub(crate) const BLOCK: usize = 512;

/// A block.
pub(super) type Block = [u8; BLOCK];

/// Part of a sparse file that is stored: where it begins in the file, and its length.
pub(crate) type Segment = (u64, u64);

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// Old GNU format: only some parts of the file are stored.
    Sparse,
    /// Its content is the name of the next entry.
    LongName,
    /// Its content is the link of the next entry.
    LongLink,
    /// Its content are attributes of the next entry (pax).
    Attributes,
    /// Its content are attributes of all entries, which mean nothing in images.
    GlobalAttributes,
    Unknown,
}

impl Kind {
    const fn of(flag: u8) -> Self {
        match flag {
            0 | b'0' | b'7' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::CharacterDevice,
            b'4' => Self::BlockDevice,
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

    /// Returns whether such an entry never has content, whatever size it says. The tools that make images read it so, and two
    /// that read it in different ways would see different entries.
    pub(super) const fn is_header_only(self) -> bool {
        matches!(
            self,
            Self::HardLink
                | Self::Symlink
                | Self::CharacterDevice
                | Self::BlockDevice
                | Self::Directory
                | Self::Fifo
        )
    }
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Bytes of content that follow.
    pub(crate) size: u64,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
}

impl Header {
    /// Reads a header; `None` if its checksum is not right or a number in it is none.
    pub(super) fn parse(block: &Block) -> Option<Self> {
        // Some tars sum signed bytes.
        let told = number(&block[148..156])?;
        let signed: i128 = summed(block).map(|byte| i128::from(byte as i8)).sum();
        let unsigned: i128 = summed(block).map(i128::from).sum();
        if told != signed && told != unsigned {
            return None;
        }
        let kind = Kind::of(block[156]);
        let is_device = matches!(kind, Kind::CharacterDevice | Kind::BlockDevice);
        let device = if is_device {
            let (major, minor) = (number(&block[329..337])?, number(&block[337..345])?);
            (u32::try_from(major).ok()?, u32::try_from(minor).ok()?)
        } else {
            (0, 0)
        };
        let mut name = text(&block[..100]);
        let prefix = text(&block[345..500]);
        // The magic of POSIX; GNU's has other fields where the prefix is.
        if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
            name = [&prefix[..], b"/", &name].concat();
        }
        Some(Self {
            name,
            link: text(&block[157..257]),
            kind,
            mode: (number(&block[100..108])? & 0o7777) as u32,
            uid: u64::try_from(number(&block[108..116])?).ok()?,
            gid: u64::try_from(number(&block[116..124])?).ok()?,
            size: u64::try_from(number(&block[124..136])?).ok()?,
            mtime: i64::try_from(number(&block[136..148])?).ok()?,
            device,
        })
    }
}

/// Reads the segments in the header of a sparse file of the old GNU format, whether there are more, and the size of the file.
pub(super) fn segments(block: &Block) -> Option<(Vec<Segment>, bool, u64)> {
    let size = u64::try_from(number(&block[483..495])?).ok()?;
    Some((each(&block[386..482])?, block[482] != 0, size))
}

/// Reads the segments in a block that continues such a header, and whether there are more.
pub(super) fn segments_of_more(block: &Block) -> Option<(Vec<Segment>, bool)> {
    Some((each(&block[..504])?, block[504] != 0))
}

fn each(places: &[u8]) -> Option<Vec<Segment>> {
    let used = places.chunks(24).take_while(|place| place[0] != 0);
    let segment = |place: &[u8]| {
        let (offset, length) = (number(&place[..12])?, number(&place[12..])?);
        Some((u64::try_from(offset).ok()?, u64::try_from(length).ok()?))
    };
    used.map(segment).collect()
}

/// The bytes of the checksum, whose own place counts as spaces.
fn summed(block: &Block) -> impl Iterator<Item = u8> + '_ {
    block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte })
}

/// Returns what stands before the first NUL.
fn text(place: &[u8]) -> Vec<u8> {
    place.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// Reads a number in octal digits or in base 256.
fn number(place: &[u8]) -> Option<i128> {
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
    let mut digits = place.iter().filter(|byte| !matches!(byte, 0 | b' '));
    digits.try_fold(0_i128, |value, digit| match digit {
        b'0'..=b'7' => Some(value << 3 | i128::from(digit - b'0')),
        _ => None,
    })
}
