// SPDX-License-Identifier: Apache-2.0
//! Parts of a file that are not holes.

use std::{fs::File, os::unix::fs::MetadataExt as _};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::header::Segment;

/// Maximum number of parts; a file with more of them is packed as a whole.
const PARTS: usize = 4096;

/// Returns the parts of a file with holes, ended by an empty one if the file ends with a hole; `None` if it has none, too
/// many, or its file system does not tell.
pub(crate) fn parts(file: &File, size: u64) -> Option<Vec<Segment>> {
    if file.metadata().ok()?.blocks().saturating_mul(512) >= size {
        return None;
    }
    let (mut parts, mut at) = (Vec::new(), 0);
    while at < size {
        let begin = match seek(file, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let end = seek(file, SeekFrom::Hole(begin)).ok()?.min(size);
        if begin >= end || parts.len() == PARTS {
            return None;
        }
        parts.push((begin, end - begin));
        at = end;
    }
    seek(file, SeekFrom::Start(0)).ok()?;
    if parts.last().is_none_or(|(begin, length)| begin + length < size) {
        parts.push((size, 0));
    }
    Some(parts)
}
