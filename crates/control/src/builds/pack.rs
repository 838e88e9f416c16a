// SPDX-License-Identifier: Apache-2.0
//! Copies of files into the sandbox of a build: an archive that is packed on a thread of its own while the host's agent takes it.
//! It is never in memory as a whole.

use std::{
    io::{self, Write},
    mem,
    time::Duration,
};

use futures::stream;
use tokio::sync::mpsc;
use wrenn_api::ErrorCode;
use wrenn_context::{ContextError, Selection};
use wrenn_recipe::User;
use wrenn_rpc::host::v1::{
    __buffa::oneof::write_file_request::Part,
    FileForm, WriteFileRequest,
    write_file_request::{Commit, Open},
};

use super::guest::{Guest, ROOT};
use crate::error::Fault;

/// Number of buffered pieces of an archive, and the size of one, in bytes.
const PENDING: usize = 4;
const PIECE: usize = 128 << 10;
/// Time limit of a copy, and that for its end after the sandbox has refused it.
const LIMIT: Duration = Duration::from_secs(3600);
const END: Duration = Duration::from_secs(5);

/// Copies files into the sandbox; they become the user's. Returns their number.
pub(super) async fn copy(guest: &Guest, files: Selection, owner: &User) -> Result<u64, Fault> {
    let open = Open {
        sandbox_id: guest.id().to_string(),
        path: files.directory.clone(),
        user: ROOT.to_owned(),
        form: FileForm::FILE_FORM_TAR.into(),
        owner: owner.account.to_string(),
        group: owner.group.as_ref().map(ToString::to_string).unwrap_or_default(),
        ..Default::default()
    };
    let (mut pieces, given) = Pieces::new();
    let packing = tokio::task::spawn_blocking(move || {
        pieces.send(Part::Open(open.into()))?;
        files.write_tar(&mut pieces)?;
        pieces.finish()?;
        Ok::<_, ContextError>(())
    });
    let requests = stream::unfold(given, |mut given| async move {
        let piece = given.recv().await?;
        Some((piece, given))
    });
    let late = |_| Fault::new(ErrorCode::Timeout, "the sandbox took too long to take the files: copy less");
    let written = tokio::time::timeout(LIMIT, guest.stream().write_file(requests)).await.map_err(late)?;
    let error = match written {
        Ok(written) => return Ok(written.into_owned().entries),
        Err(error) => error,
    };
    // The sandbox has refused them, or they broke off here: this has ended, or does so at once.
    match tokio::time::timeout(END, packing).await {
        Ok(Ok(Err(cause))) if !was_refused(&cause) => Err(unreadable(&cause)),
        _ => Err(error.into()),
    }
}

/// Returns whether the archive broke off because the sandbox took no more of it.
fn was_refused(error: &ContextError) -> bool {
    matches!(error, ContextError::Io(cause) if cause.kind() == io::ErrorKind::BrokenPipe)
}

/// The fault of uploaded files that cannot be read.
fn unreadable(error: &ContextError) -> Fault {
    tracing::error!(%error, "the files of a build cannot be read");
    Fault::new(
        ErrorCode::InternalError,
        "the uploaded files cannot be read any more: ask for the build again",
    )
}

/// An archive that is sent in pieces as it is written.
struct Pieces {
    sender: mpsc::Sender<WriteFileRequest>,
    piece: Vec<u8>,
}

impl Pieces {
    fn new() -> (Self, mpsc::Receiver<WriteFileRequest>) {
        let (sender, given) = mpsc::channel(PENDING);
        (Self { sender, piece: Vec::with_capacity(PIECE) }, given)
    }

    /// Sends the last piece, and that it was the last one.
    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Part::Commit(Commit::default().into()))
    }

    fn send(&self, part: Part) -> io::Result<()> {
        let request = WriteFileRequest { part: Some(part), ..Default::default() };
        self.sender.blocking_send(request).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.send(Part::Chunk(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes bytes in parts of this length, and returns the sizes of the pieces that are sent.
    async fn sent(bytes: usize, part: usize) -> Vec<usize> {
        let (mut pieces, mut given) = Pieces::new();
        let writing = tokio::task::spawn_blocking(move || {
            for part in vec![7; bytes].chunks(part) {
                pieces.write_all(part)?;
            }
            pieces.finish()
        });
        let mut sizes = Vec::new();
        while let Some(request) = given.recv().await {
            match request.part {
                Some(Part::Chunk(bytes)) => sizes.push(bytes.len()),
                Some(Part::Commit(_)) => sizes.push(0),
                other => panic!("{other:?}"),
            }
        }
        writing.await.expect("no panic").expect("written");
        sizes
    }

    #[tokio::test]
    async fn an_archive_is_sent_in_pieces_with_an_end() {
        assert_eq!(sent(0, 1).await, [0]);
        assert_eq!(sent(PIECE, 1000).await, [PIECE, 0]);
        assert_eq!(sent(3 * PIECE + 5, PIECE + 1).await, [PIECE, PIECE, PIECE, 5, 0]);
    }

    #[tokio::test]
    async fn an_archive_that_nobody_takes_is_not_packed() {
        let (mut pieces, given) = Pieces::new();
        drop(given);
        let written = tokio::task::spawn_blocking(move || pieces.write_all(&vec![7; PIECE])).await;
        let error = written.expect("no panic").expect_err("refused");
        assert!(was_refused(&ContextError::Io(error)));
    }
}
