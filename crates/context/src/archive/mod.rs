// SPDX-License-Identifier: Apache-2.0
//! Reads uploaded archives. Their first bytes tell the format; what a file is called or declared to be does not count.

mod counted;
mod tar;
mod zip;
mod zip_end;

use std::{
    fs::File,
    io::{BufReader, Read as _, Seek as _},
};

use flate2::bufread::MultiGzDecoder;

use crate::{
    error::{ContextError, unreadable},
    intake::Intake,
};

/// Number of bytes that tell the format.
const FIRST: u64 = 6;
/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// Takes in all entries of an archive.
pub(crate) fn read(upload: &File, intake: &mut Intake) -> Result<(), ContextError> {
    let (mut input, mut first) = (upload, Vec::new());
    input.by_ref().take(FIRST).read_to_end(&mut first).map_err(unreadable)?;
    input.rewind()?;
    let not = |problem| Err(ContextError::NotAnArchive { problem });
    let buffered = BufReader::with_capacity(PIECE, upload);
    match first.as_slice() {
        [] => not("it is empty"),
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => zip::read(upload, intake),
        [0x1f, 0x8b, ..] => tar::read(MultiGzDecoder::new(buffered), intake),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => not("it is compressed with xz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => not("it is compressed with zstd"),
        [b'B', b'Z', b'h', ..] => not("it is compressed with bzip2"),
        _ => tar::read(buffered, intake),
    }
}
