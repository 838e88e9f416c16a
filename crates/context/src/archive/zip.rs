// SPDX-License-Identifier: Apache-2.0
//! Entries of zip archives: those of the central directory, which is what counts.

use std::{
    fs::File,
    io::{self, BufReader, Read},
};

use ::zip::{
    CompressionMethod, ExtraField, ZipArchive,
    read::{ArchiveOffset, Config, ZipFile, ZipFileEntry},
    result::ZipError,
};

use crate::{
    error::{ContextError, refused, shown, unreadable},
    intake::{About, Intake},
    name::misleading,
    tree::{DIRECTORY_MODE, TIME},
};

use super::{PIECE, zip_end};

/// Mode of files whose archive has none, as those of Windows.
const FILE_MODE: u32 = 0o644;
/// Bits of a mode that say what an entry is, and their values.
const KIND: u32 = 0o170_000;
const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const PIPE: u32 = 0o010_000;
const SOCKET: u32 = 0o140_000;

/// Takes in all entries of an archive.
pub(super) fn read(upload: &File, intake: &mut Intake) -> Result<(), ContextError> {
    zip_end::check(upload, intake.limits())?;
    // The archive begins where the file begins, so nothing is searched for it.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let input = BufReader::with_capacity(PIECE, upload);
    let mut archive = ZipArchive::with_config(config, input).map_err(of_zip)?;
    for index in 0..archive.len() {
        let path = begin(&archive.by_index_data(index).map_err(of_zip)?, intake)?;
        let mut file = archive.by_index(index).map_err(of_zip)?;
        entry(path, &mut file, intake)?;
    }
    Ok(())
}

/// Begins an entry, if its content can be read.
fn begin(entry: &ZipFileEntry<'_>, intake: &mut Intake) -> Result<String, ContextError> {
    let name = entry.name_raw();
    if name.contains(&b'\\') {
        let problem =
            "its name has a backslash, but zip archives divide names by a slash; pack it with another tool";
        return Err(refused(name, problem));
    }
    if entry.encrypted() {
        return Err(refused(name, "it is encrypted; pack it without a password"));
    }
    if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
        return Err(refused(
            name,
            "it is neither stored nor compressed with deflate; pack it with another tool",
        ));
    }
    intake.begin(name)
}

fn entry<R: Read>(path: String, file: &mut ZipFile<'_, R>, intake: &mut Intake) -> Result<(), ContextError> {
    // Some tools have modes here and say that they are of a system without modes, so only what is here counts.
    let (given, time) = (file.external_attributes() >> 16, time(file));
    let about = |none: u32| About { mode: if given == 0 { none } else { given }, time };
    match (given & KIND, file.is_dir()) {
        (LINK, _) => link(path, file, time, intake),
        (DIRECTORY, _) | (0 | FILE, true) => intake.directory(path, about(DIRECTORY_MODE)),
        (0 | FILE, false) => {
            let size = file.size();
            intake.file(path, about(FILE_MODE), size, &[(0, size)], &mut |piece| some(file, piece))?;
            // Only at its end is the content compared with its checksum.
            some(file, &mut [0]).map(drop)
        }
        (PIPE, _) => Err(special(file, "a pipe")),
        (SOCKET, _) => Err(special(file, "a socket")),
        _ => Err(special(file, "a device")),
    }
}

/// Takes in a link, whose target is its content.
fn link<R: Read>(
    path: String,
    file: &mut ZipFile<'_, R>,
    time: i64,
    intake: &mut Intake,
) -> Result<(), ContextError> {
    let (mut target, limit) = (Vec::new(), intake.limits().path_bytes);
    file.take(limit as u64 + 1).read_to_end(&mut target).map_err(unreadable)?;
    if target.len() > limit {
        return Err(misleading(&path, &target, format!("its target has more than {limit} bytes")));
    }
    intake.link(path, &target, time)
}

/// Returns the time of an entry. The other time that it has is in a time zone that nobody knows.
fn time<R: Read>(file: &ZipFile<'_, R>) -> i64 {
    let of = |field: &ExtraField| match field {
        ExtraField::ExtendedTimestamp(times) => times.mod_time(),
        _ => None,
    };
    file.extra_data_fields().find_map(of).map_or(TIME, i64::from)
}

fn special<R: Read>(file: &ZipFile<'_, R>, kind: &'static str) -> ContextError {
    ContextError::Device { path: shown(file.name_raw()), kind }
}

/// Reads some bytes; 0 at the end.
fn some(input: &mut impl Read, piece: &mut [u8]) -> Result<usize, ContextError> {
    loop {
        match input.read(piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome.map_err(unreadable),
        }
    }
}

fn of_zip(error: ZipError) -> ContextError {
    match error {
        ZipError::Io(error) => unreadable(error),
        other => ContextError::Damaged { problem: other.to_string() },
    }
}
