// SPDX-License-Identifier: Apache-2.0
//! What a thread that may wait writes, as a stream for a request.

use std::io::{self, Write};

use bytes::Bytes;
use futures::{Stream, stream};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::progress::Counter;

/// Number of pieces between the thread and the connection.
pub(crate) const PENDING: usize = 4;

/// A piece, or why there are no more.
pub(crate) type Piece = io::Result<Bytes>;

/// Runs work that writes, on a thread of its own; returns what it writes, and the work, whose error is the cause if the stream
/// breaks off.
pub(crate) fn written<E: Send + 'static>(
    counter: Counter,
    work: impl FnOnce(&mut Sink) -> Result<(), E> + Send + 'static,
) -> (impl Stream<Item = Piece> + Send + 'static, JoinHandle<Result<(), E>>) {
    let (pieces, sent) = mpsc::channel(PENDING);
    let work = tokio::task::spawn_blocking(move || {
        let mut sink = Sink { pieces, counter };
        let done = work(&mut sink);
        if done.is_err() {
            // What was sent must not be taken for the whole.
            let _ = sink.pieces.blocking_send(Err(io::Error::other("the archive could not be completed")));
        }
        done
    });
    let stream = stream::unfold(sent, async |mut sent| Some((sent.recv().await?, sent)));
    (stream, work)
}

/// Writes to the stream.
pub(crate) struct Sink {
    pieces: mpsc::Sender<Piece>,
    counter: Counter,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.pieces.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.counter.add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
