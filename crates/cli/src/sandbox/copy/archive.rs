// SPDX-License-Identifier: Apache-2.0
//! Local directories as archives: packed and unpacked on a thread that may wait, and streamed to and from the API.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::{sync::mpsc, task::JoinHandle};
use wrenn_archive::{ArchiveError, Rules};

use crate::{
    pieces::{PENDING, Piece, written},
    progress::Counter,
};

/// Finds out whether a directory can be packed.
pub(super) async fn check(directory: &Path) -> Result<()> {
    let directory = directory.to_owned();
    tokio::task::spawn_blocking(move || wrenn_archive::check(&directory)).await??;
    Ok(())
}

/// Packs a directory; returns the archive and the work, whose error is the cause if the archive breaks off.
pub(super) fn pack(
    directory: PathBuf,
    counter: Counter,
) -> (impl Stream<Item = Piece> + Send + 'static, JoinHandle<Result<(), ArchiveError>>) {
    written(counter, move |sink| wrenn_archive::pack(&directory, sink, false).map(drop))
}

/// Unpacks an archive into a directory, which is made unless it exists.
pub(super) async fn unpack(
    mut archive: impl Stream<Item = wrenn_client::Result<Bytes>> + Unpin,
    directory: &Path,
    counter: &Counter,
) -> Result<()> {
    let fresh = match tokio::fs::create_dir(directory).await {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", directory.display())),
    };
    let (pieces, given) = mpsc::channel::<Piece>(PENDING);
    let into = directory.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || {
        let rules = Rules { fresh, ..Rules::default() };
        wrenn_archive::unpack(Source { pieces: given, piece: Bytes::new() }, &into, rules)
    });
    let mut broken = None;
    while let Some(piece) = archive.next().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                broken = Some(error);
                let _ = pieces.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
                break;
            }
        };
        counter.add(piece.len());
        if pieces.send(Ok(piece)).await.is_err() {
            // Its error says why it takes no more.
            break;
        }
    }
    drop(pieces);
    let unpacked = unpacking.await?;
    if let Some(error) = broken {
        return Err(error.into());
    }
    unpacked.map(drop).with_context(|| format!("cannot copy to {}", directory.display()))
}

/// Reads from the connection.
struct Source {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = into.len().min(self.piece.len());
        into[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}
