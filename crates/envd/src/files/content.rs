// SPDX-License-Identifier: Apache-2.0
//! Content of a file, opened for one response.

use std::{
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use axum::body::{Body, Bytes};
use futures::{Stream, StreamExt as _, stream, stream::BoxStream};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
};

use super::{PIECE, range::Part, version::Version};
use crate::regular;

/// Content of a file whose beginning has been read.
pub(super) struct Content {
    /// Positioned behind `start`.
    file: File,
    /// The first piece; all of the content if it is shorter than a piece.
    start: Bytes,
    /// Size when it was opened; unknown of longer files that the kernel makes up, such as in /proc.
    size: Option<u64>,
    /// Unknown of files that the kernel makes up.
    version: Option<Version>,
}

impl Content {
    /// Opens a regular file.
    pub(super) async fn open(path: &Path) -> io::Result<Self> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let mut file = regular::open(&path)?;
            let meta = file.metadata()?;
            let made_up = regular::is_pseudo(&file)?;
            // Files in /proc and /sys report a size of 0 or one page.
            let mut start = Vec::new();
            (&mut file).take(PIECE as u64).read_to_end(&mut start)?;
            let size = match meta.size() {
                // The file system's size is not used for a short file, which has been read completely.
                _ if start.len() < PIECE => Some(start.len() as u64),
                size if size >= PIECE as u64 && !made_up => Some(size),
                _ => None,
            };
            let version = (!made_up).then(|| Version::of(&meta));
            Ok(Self { file: File::from_std(file), start: start.into(), size, version })
        });
        opened.await.map_err(io::Error::other)?
    }

    /// Returns the size if it is known.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Returns the version if it is known.
    pub(super) fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// Returns the first piece.
    pub(super) fn start(&self) -> &Bytes {
        &self.start
    }

    /// Returns whether the first piece is all.
    pub(super) fn is_short(&self) -> bool {
        self.start.len() < PIECE
    }

    /// Returns all of the content, or a part of it.
    pub(super) async fn body(self, part: Option<Part>) -> io::Result<Body> {
        if !self.is_short() {
            return Ok(Body::from_stream(self.pieces(part).await?));
        }
        let part = part.and_then(|(start, length)| {
            let start = usize::try_from(start).ok()?;
            Some(start..start.checked_add(usize::try_from(length).ok()?)?)
        });
        Ok(Body::from(part.map_or(self.start.clone(), |part| self.start.slice(part))))
    }

    /// Streams all of longer content, or a part of it.
    pub(super) async fn pieces(
        mut self,
        part: Option<Part>,
    ) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        if let (Some((start, length)), Some(_)) = (part, self.size) {
            self.file.seek(io::SeekFrom::Start(start)).await?;
            return Ok(exactly(self.file, length).boxed());
        }
        let left = self.size.map(|size| size - self.start.len() as u64);
        let first = stream::iter([Ok(self.start)]);
        Ok(match left {
            Some(left) => first.chain(exactly(self.file, left)).boxed(),
            None => first.chain(to_end(self.file)).boxed(),
        })
    }
}

async fn piece(file: &mut File, most: usize) -> io::Result<Bytes> {
    let mut piece = vec![0; most];
    let read = file.read(&mut piece).await?;
    piece.truncate(read);
    Ok(piece.into())
}

fn to_end(file: File) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(file, |mut file| async move {
        let piece = piece(&mut file, PIECE).await?;
        Ok((!piece.is_empty()).then_some((piece, file)))
    })
}

/// Streams the next `length` bytes of a file. If the file grows meanwhile, only its bytes at opening are
/// sent; if it shrinks, the transfer fails visibly.
fn exactly(file: File, length: u64) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let piece = piece(&mut file, PIECE.min(usize::try_from(left).unwrap_or(PIECE))).await?;
        if piece.is_empty() {
            let text = format!("the file shrank while it was read: {left} bytes are missing");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let left = left - piece.len() as u64;
        Ok(Some((piece, (file, left))))
    })
}
