// SPDX-License-Identifier: Apache-2.0
//! What a `COPY` takes: its digests, and an archive of it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use wrenn_archive::{Header, Kind};

use crate::{
    error::{ContextError, shown},
    hash::hex,
    tree::{Entry, Stored, What},
    writer::{Writer, header},
};

/// Bytes that are read and written at once.
const PIECE: usize = 64 << 10;

/// What a `COPY` takes.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The directory in the sandbox that names in the archive are relative to: an absolute path. It has no entry itself.
    pub directory: String,
    items: BTreeMap<String, Item>,
    file: Option<Arc<File>>,
}

/// Something that is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Its mode is that of the `COPY`, if this has one.
    pub(crate) entry: Entry,
    /// Content of a file of the recipe. Else it is in the archive that is kept.
    pub(crate) inline: Option<String>,
}

impl Selection {
    pub(crate) const fn new(
        directory: String,
        items: BTreeMap<String, Item>,
        file: Option<Arc<File>>,
    ) -> Self {
        Self { directory, items, file }
    }

    /// Returns for each file, directory and link, by its absolute path in the sandbox, a digest of what it is: its kind, and
    /// its mode, content or target. A cache key is made of it.
    pub fn digests(&self) -> BTreeMap<String, String> {
        let top = self.directory.trim_end_matches('/');
        self.items.iter().map(|(name, item)| (format!("{top}/{name}"), item.entry.digest())).collect()
    }

    /// Writes everything as a tar archive, and returns its size. Names are relative to [`directory`](Self::directory), and
    /// each directory comes before what is in it. User and group are 0. Times are those of the uploaded archive; what has
    /// none there is from 1980.
    pub fn write_tar(&self, output: &mut dyn Write) -> Result<u64, ContextError> {
        let mut piece = vec![0; PIECE];
        let mut writer = Writer::new(BufWriter::with_capacity(PIECE, output));
        for (name, item) in &self.items {
            let (mode, time) = (item.entry.mode, item.entry.time);
            match &item.entry.what {
                What::Directory => writer.header(&header(Kind::Directory, name, mode, time))?,
                What::Link(target) => {
                    let link = target.as_str().into();
                    writer.header(&Header { link, ..header(Kind::Symlink, name, mode, time) })?;
                }
                What::File(stored) => {
                    writer.header(&Header { size: stored.size, ..header(Kind::File, name, mode, time) })?;
                    match &item.inline {
                        Some(content) => writer.write(content.as_bytes())?,
                        None => self.copy(name, stored, &mut piece, &mut writer)?,
                    }
                    writer.pad(stored.size)?;
                }
            }
        }
        Ok(writer.finish()?)
    }

    /// Copies content from the archive that is kept, and compares it with its digest.
    fn copy(
        &self,
        name: &str,
        stored: &Stored,
        piece: &mut [u8],
        writer: &mut Writer<impl Write>,
    ) -> Result<(), ContextError> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "they are not there");
        let file = self.file.as_deref().ok_or_else(missing)?;
        let (mut sum, mut at) = (Sha256::new(), stored.offset);
        let mut left = stored.size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            file.read_exact_at(&mut piece[..most], at)?;
            sum.update(&piece[..most]);
            writer.write(&piece[..most])?;
            at += most as u64;
            left -= most as u64;
        }
        if hex(&sum.finalize()) != stored.digest {
            let problem = format!("{} is not as it was uploaded; upload it again", shown(name.as_bytes()));
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem).into());
        }
        Ok(())
    }
}
