// SPDX-License-Identifier: Apache-2.0
//! Decompresses layers: gzip, zstd, or neither. The first bytes tell which, because media types are not always right.

use std::{
    fs::File,
    io::{self, BufReader, Chain, Cursor, Read, Seek as _},
    os::unix::fs::FileExt as _,
};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Number of bytes that tell the compression.
const FIRST: u64 = 6;
/// Bytes that are read at once.
const PIECE: usize = 64 << 10;
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Input whose first bytes were looked at.
type Begun<R> = Chain<Cursor<Vec<u8>>, R>;

/// A layer, decompressed while it is read.
pub(crate) enum Decompressed<R: Read> {
    Plain(Begun<R>),
    Gzip(Box<MultiGzDecoder<Begun<R>>>),
    Zstd(Box<Zstd<BufReader<Begun<R>>>>),
}

impl<R: Read> Decompressed<R> {
    /// Reads the first bytes and begins to decompress.
    pub(crate) fn new(mut input: R) -> io::Result<Self> {
        let first = first(&mut input)?;
        let unsupported = |name: &str| {
            let cause = format!("it is compressed with {name}; build the image with gzip or zstd");
            Err(io::Error::new(io::ErrorKind::InvalidData, cause))
        };
        let is_zstd = first.starts_with(&ZSTD) || is_skippable(&first);
        let (is_gzip, is_xz, is_bzip2) =
            (first.starts_with(&[0x1f, 0x8b]), first.starts_with(b"\xfd7zXZ"), first.starts_with(b"BZh"));
        let input = Cursor::new(first).chain(input);
        match (is_gzip, is_zstd) {
            (true, _) => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(input)))),
            (_, true) => Ok(Self::Zstd(Box::new(Zstd::new(BufReader::with_capacity(PIECE, input))))),
            _ if is_xz => unsupported("xz"),
            _ if is_bzip2 => unsupported("bzip2"),
            _ => Ok(Self::Plain(input)),
        }
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(input) => input.read(buffer),
            Self::Zstd(input) => input.read(buffer),
        }
    }
}

/// Begins to decompress an archive with an image, which is not read as long as it is compressed. Returns `None` if it is not.
/// Nothing bounds what comes out.
pub fn decompress(mut archive: File) -> io::Result<Option<impl Read>> {
    archive.rewind()?;
    let mut start = [0; FIRST as usize];
    let length = archive.read_at(&mut start, 0)?;
    if !is_compressed(&start[..length])? {
        return Ok(None);
    }
    Decompressed::new(archive).map(Some)
}

/// Returns whether something is compressed, by its first bytes.
pub(crate) fn is_compressed(mut input: impl Read) -> io::Result<bool> {
    let first = first(&mut input)?;
    Ok(first.starts_with(&[0x1f, 0x8b]) || first.starts_with(&ZSTD) || is_skippable(&first))
}

fn first(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut first = Vec::new();
    input.take(FIRST).read_to_end(&mut first)?;
    Ok(first)
}

/// Returns whether a zstd frame begins here that has no content.
fn is_skippable(bytes: &[u8]) -> bool {
    matches!(bytes, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Decompresses zstd frames that follow each other. A frame needs memory for its window, of which the library takes at most
/// about 100 MiB.
pub(crate) struct Zstd<R> {
    input: R,
    frame: FrameDecoder,
}

impl<R: Read> Zstd<R> {
    fn new(input: R) -> Self {
        Self { input, frame: FrameDecoder::new() }
    }

    /// Begins the next frame with content; returns whether there is one.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            let mut magic = Vec::new();
            (&mut self.input).take(4).read_to_end(&mut magic)?;
            if magic.is_empty() {
                return Ok(false);
            }
            if !is_skippable(&magic) {
                let start = Cursor::new(magic).chain(&mut self.input);
                self.frame.reset(start).map_err(io::Error::other)?;
                return Ok(true);
            }
            let mut length = [0; 4];
            self.input.read_exact(&mut length)?;
            let length = u64::from(u32::from_le_bytes(length));
            if io::copy(&mut (&mut self.input).take(length), &mut io::sink())? < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            if self.frame.can_collect() > 0 {
                return self.frame.read(buffer);
            }
            if self.frame.is_finished() {
                if !self.begin()? {
                    break;
                }
            } else {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.frame.decode_blocks(&mut self.input, one).map_err(io::Error::other)?;
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    fn all(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        Decompressed::new(bytes)?.read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn each_compression_is_recognised_also_in_several_parts() {
        let (one, two) = (b"one ".repeat(50_000), b"two".repeat(7));
        let both = [&one[..], &two].concat();
        let skipped = [&[0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"toc"].concat();
        for compressed in [
            both.clone(),
            gzip(&both),
            [gzip(&one), gzip(&two)].concat(),
            zstd(&both),
            [zstd(&one), zstd(&two)].concat(),
            [skipped.clone(), zstd(&one), skipped.clone(), zstd(&two), skipped].concat(),
        ] {
            assert!(all(&compressed).unwrap() == both);
            assert_eq!(is_compressed(&compressed[..]).unwrap(), compressed != both);
        }
        assert_eq!(all(b"").unwrap(), b"");
    }

    #[test]
    fn an_archive_is_decompressed_from_its_beginning() {
        let content = b"content".repeat(5000);
        for (compressed, is) in [(gzip(&content), true), (zstd(&content), true), (content.clone(), false)] {
            let mut file = tempfile::tempfile().unwrap();
            // What was written last is where the next read would begin.
            file.write_all(&compressed).unwrap();
            let begun = decompress(file).unwrap();
            assert_eq!(begun.is_some(), is);
            if let Some(mut begun) = begun {
                let mut all = Vec::new();
                begun.read_to_end(&mut all).unwrap();
                assert!(all == content);
            }
        }
        assert!(decompress(tempfile::tempfile().unwrap()).unwrap().is_none(), "an empty one");
    }

    #[test]
    fn what_is_damaged_or_of_another_kind_is_refused() {
        let content = b"content".repeat(5000);
        for compressed in [gzip(&content), zstd(&content)] {
            for length in [5, 20, compressed.len() - 1] {
                assert!(all(&compressed[..length]).is_err(), "{length} bytes");
            }
            assert!(all(&[&compressed[..], b"rest that is none"].concat()).is_err());
        }
        assert!(all(b"\xfd7zXZ\0 and so on").unwrap_err().to_string().contains("xz"));
        assert!(all(b"BZh91AY").unwrap_err().to_string().contains("bzip2"));
    }
}
