// SPDX-License-Identifier: Apache-2.0
//! Takes in the entries of an archive, whatever its format: keeps their content, and remembers what is where.

use std::{
    fs::File,
    io::{self, BufWriter},
};

use sha2::{Digest as _, Sha256};
use wrenn_archive::{Header, Kind, Segment};

use crate::{
    error::{ContextError, shown},
    hash::hex,
    limits::Limits,
    name::{first_of, misleading, path_of, stays, target_of},
    tree::{Entry, Stored, Tree, What},
    writer::{Writer, header},
};

/// Bytes that are read at once.
const PIECE: usize = 64 << 10;
static ZEROS: [u8; PIECE] = [0; PIECE];
/// Bits of a mode that are kept. Set-user-id and set-group-id are for files whose owner is known; here it is not.
const PERMISSIONS: u32 = 0o777;
const LINK_MODE: u32 = 0o777;

/// Reads content of an entry into a buffer; 0 at its end.
pub(crate) type Content<'a> = dyn FnMut(&mut [u8]) -> Result<usize, ContextError> + 'a;

/// Mode and time of an entry, as an archive has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    pub(crate) mode: u32,
    pub(crate) time: i64,
}

/// An archive that is being taken in.
pub(crate) struct Intake {
    limits: Limits,
    output: Writer<BufWriter<File>>,
    tree: Tree,
    entries: u32,
    /// Bytes of content so far.
    bytes: u64,
    piece: Vec<u8>,
}

impl Intake {
    /// Begins to write into an empty file.
    pub(crate) fn new(output: File, limits: Limits) -> Self {
        let output = Writer::new(BufWriter::with_capacity(PIECE, output));
        Self { limits, output, tree: Tree::default(), entries: 0, bytes: 0, piece: vec![0; PIECE] }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Begins an entry: counts it, and returns its path.
    pub(crate) fn begin(&mut self, name: &[u8]) -> Result<String, ContextError> {
        if self.entries >= self.limits.entries {
            return Err(ContextError::TooMany { what: "entries", limit: self.limits.entries.into() });
        }
        self.entries += 1;
        path_of(name, &self.limits)
    }

    pub(crate) fn directory(&mut self, path: String, about: About) -> Result<(), ContextError> {
        // That of the whole context is not copied with what is in it.
        if path.is_empty() {
            return Ok(());
        }
        let (mode, time) = (about.mode & PERMISSIONS, about.time);
        self.output.header(&header(Kind::Directory, &path, mode, time))?;
        self.tree.insert(path, Entry { mode, time, what: What::Directory }, &self.limits)
    }

    /// Takes a file of this size, of which only `parts` are in the archive: what is between them is zeros. They are in their
    /// order and within the file.
    pub(crate) fn file(
        &mut self,
        path: String,
        about: About,
        size: u64,
        parts: &[Segment],
        content: &mut Content<'_>,
    ) -> Result<(), ContextError> {
        self.charge(size)?;
        let (mode, time) = (about.mode & PERMISSIONS, about.time);
        self.output.header(&Header { size, ..header(Kind::File, &path, mode, time) })?;
        let (offset, mut sum, mut at) = (self.output.position(), Sha256::new(), 0);
        for (begin, length) in parts {
            self.hole(begin - at, &mut sum)?;
            self.copy(&path, *length, content, &mut sum)?;
            at = begin + length;
        }
        self.hole(size - at, &mut sum)?;
        self.output.pad(size)?;
        let stored = Stored { offset, size, digest: hex(&sum.finalize()) };
        self.tree.insert(path, Entry { mode, time, what: What::File(stored) }, &self.limits)
    }

    /// Takes a symbolic link.
    pub(crate) fn link(&mut self, path: String, target: &[u8], time: i64) -> Result<(), ContextError> {
        let target = target_of(&path, target, &self.limits)?;
        self.put_link(Kind::Symlink, &path, &target, LINK_MODE, time)?;
        self.tree.insert(path, Entry { mode: LINK_MODE, time, what: What::Link(target) }, &self.limits)
    }

    /// Takes another name of an entry that came before.
    pub(crate) fn hard_link(&mut self, path: String, target: &[u8]) -> Result<(), ContextError> {
        let first = first_of(&path, target, &self.limits)?;
        let refused = |problem: &str| Err(misleading(&path, target, problem));
        let entry = match self.tree.get(&first) {
            None => return refused("no entry before it has this name; pack both in one archive"),
            Some((_, entry)) => entry.clone(),
        };
        match &entry.what {
            What::Directory => return refused("it is a directory, which has only one name; pack it twice"),
            What::Link(target) if !stays(&path, target) => {
                return refused("from its own place that leads out of the archive; leave it out");
            }
            What::Link(target) => self.put_link(Kind::Symlink, &path, target, entry.mode, entry.time)?,
            What::File(stored) => {
                // Each name is copied as a file of its own.
                self.charge(stored.size)?;
                self.put_link(Kind::HardLink, &path, &first, entry.mode, entry.time)?;
            }
        }
        self.tree.insert(path, entry, &self.limits)
    }

    /// Ends the archive that is kept, which is not synced yet, and returns what is in it.
    pub(crate) fn finish(mut self) -> io::Result<(Tree, File)> {
        self.output.finish()?;
        let file = self.output.into_output().into_inner()?;
        Ok((self.tree, file))
    }

    fn put_link(&mut self, kind: Kind, path: &str, target: &str, mode: u32, time: i64) -> io::Result<()> {
        self.output.header(&Header { link: target.into(), ..header(kind, path, mode, time) })
    }

    fn charge(&mut self, size: u64) -> Result<(), ContextError> {
        self.bytes = self.bytes.saturating_add(size);
        let limit = self.limits.unpacked_bytes;
        if self.bytes > limit {
            return Err(ContextError::TooLarge { what: "the files in the archive have together", limit });
        }
        Ok(())
    }

    fn copy(
        &mut self,
        path: &str,
        length: u64,
        content: &mut Content<'_>,
        sum: &mut Sha256,
    ) -> Result<(), ContextError> {
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let read = content(&mut self.piece[..most])?;
            if read == 0 {
                let problem = format!("{} is shorter than the archive says", shown(path.as_bytes()));
                return Err(ContextError::Damaged { problem });
            }
            sum.update(&self.piece[..read]);
            self.output.write(&self.piece[..read])?;
            left -= read as u64;
        }
        Ok(())
    }

    fn hole(&mut self, length: u64, sum: &mut Sha256) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            sum.update(&ZEROS[..most]);
            left -= most as u64;
        }
        self.output.skip(length)
    }
}
