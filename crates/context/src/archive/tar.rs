// SPDX-License-Identifier: Apache-2.0
//! Entries of tar archives.

use std::io::{Cursor, Read};

use wrenn_archive::{ArchiveError, Entry, Header, Kind, Reader};

use crate::{
    error::{ContextError, refused, shown, unreadable},
    intake::{About, Intake},
    writer::BLOCK,
};

use super::counted::Counted;

/// Takes in all entries of an archive, which is not compressed any more.
pub(super) fn read(input: impl Read, intake: &mut Intake) -> Result<(), ContextError> {
    let limit = intake.limits().unpacked_bytes;
    let mut input = Counted::new(input, limit);
    let outcome = all(&mut input, intake);
    if input.is_exceeded() {
        return Err(ContextError::TooLarge { what: "the unpacked archive has", limit });
    }
    outcome
}

fn all(mut input: impl Read, intake: &mut Intake) -> Result<(), ContextError> {
    let mut first = Vec::with_capacity(BLOCK);
    input.by_ref().take(BLOCK as u64).read_to_end(&mut first).map_err(unreadable)?;
    if !is_begin(&first) {
        let problem = "neither it nor what is compressed in it is an archive";
        return Err(ContextError::NotAnArchive { problem });
    }
    let mut reader = Reader::new(Cursor::new(first).chain(input));
    while let Some(next) = reader.next().map_err(of_archive)? {
        entry(&mut reader, next, intake)?;
    }
    Ok(())
}

/// Returns whether an archive begins with this: with a header, or with its end.
fn is_begin(first: &[u8]) -> bool {
    let block: Option<&[u8; BLOCK]> = first.try_into().ok();
    block.is_some_and(|block| Header::parse(block).is_some() || block.iter().all(|byte| *byte == 0))
}

fn entry<R: Read>(reader: &mut Reader<R>, entry: Entry, intake: &mut Intake) -> Result<(), ContextError> {
    let Entry { header, sparse } = entry;
    let path = intake.begin(&header.name)?;
    let about = About { mode: header.mode, time: header.mtime };
    match header.kind {
        Kind::Directory => intake.directory(path, about),
        // Archives of V7 name directories so.
        Kind::File if header.name.ends_with(b"/") => intake.directory(path, about),
        Kind::File | Kind::Sparse => {
            let (parts, size) = sparse.unwrap_or_else(|| (vec![(0, header.size)], header.size));
            intake.file(path, about, size, &parts, &mut |piece| reader.content(piece).map_err(of_archive))
        }
        Kind::Symlink => intake.link(path, &header.link, about.time),
        Kind::HardLink => intake.hard_link(path, &header.link),
        Kind::Device => Err(special(&header, "a device")),
        Kind::Fifo => Err(special(&header, "a pipe")),
        _ => Err(refused(&header.name, "it is of a kind that is not supported; leave it out")),
    }
}

fn special(header: &Header, kind: &'static str) -> ContextError {
    ContextError::Device { path: shown(&header.name), kind }
}

fn of_archive(error: ArchiveError) -> ContextError {
    match error {
        ArchiveError::Stream(error) => unreadable(error),
        ArchiveError::Malformed { cause, entries } => {
            ContextError::Damaged { problem: format!("after {entries} entries, {cause}") }
        }
        other => ContextError::Damaged { problem: other.to_string() },
    }
}
