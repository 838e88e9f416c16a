// SPDX-License-Identifier: Apache-2.0
//! Files of an image that is on this machine: each is a part of an open file.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};
use tokio::task::spawn_blocking;

use super::{Blob, SourceError};
use crate::{
    beneath,
    digest::{Digest, Hashing},
};

/// Bytes that are read at once.
const PIECE: u64 = 256 << 10;

/// Where the files of an image are.
pub(super) trait Files: Send + Sync + 'static {
    /// Finds a regular file by its path from the top of the image, `None` if there is none.
    fn find(&self, path: &str) -> io::Result<Option<Part>>;
}

/// Part of an open file.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Part {
    /// Reads all of it.
    pub(super) fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.clone().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Computes its digest.
    pub(super) fn digest(&self) -> io::Result<Digest> {
        let mut reader = Hashing::new(io::BufReader::with_capacity(PIECE as usize, self.clone()));
        io::copy(&mut reader, &mut io::sink())?;
        Ok(reader.finish())
    }

    /// Reads it in pieces on threads that may wait for the disk.
    pub(super) fn pieces(self, image: &str) -> Blob {
        let image = image.to_owned();
        let read = move |mut part: Self| {
            blocking(image.clone(), move || {
                let mut piece = vec![0; part.size.min(PIECE) as usize];
                let length = part.read(&mut piece)?;
                piece.truncate(length);
                Ok((length > 0).then(|| (Bytes::from(piece), part)))
            })
        };
        stream::try_unfold(self, read).boxed()
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.size).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += read as u64;
        self.size -= read as u64;
        Ok(read)
    }
}

/// A directory with the files of an image. Symbolic links in it are not followed out of it.
pub(super) struct Directory(OwnedFd);

impl Directory {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }
}

impl Files for Directory {
    fn find(&self, path: &str) -> io::Result<Option<Part>> {
        // A pipe or a device must not keep the opening waiting.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match beneath::open(self.0.as_fd(), path.as_bytes(), flags) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            file => File::from(file?),
        };
        let metadata = file.metadata()?;
        let part = || Part { file: Arc::new(file), offset: 0, size: metadata.len() };
        Ok(metadata.is_file().then(part))
    }
}

/// Does what waits for a disk on another thread.
pub(super) async fn blocking<T: Send + 'static>(
    image: String,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, SourceError> {
    let done = spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    done.map_err(|error| SourceError::files(&image, error))
}
