// SPDX-License-Identifier: Apache-2.0
//! Stream of a connection: keeps its permit, counts received bytes, fails if the peer reads nothing, and is
//! closed only after the peer has stopped sending.

use std::{
    io::{self, ErrorKind, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::{Bounds, connection::Connection, places::Place};

/// Number of bytes that are discarded at once, and number of times before other tasks have their turn.
const DISCARDED: usize = 4 << 10;
const DISCARDS: usize = 16;

/// Stream of a connection.
pub(super) struct Io<T> {
    stream: T,
    connection: Arc<Connection>,
    _place: Place,
    stall: Duration,
    /// Timer for a peer that reads nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    linger: Duration,
    /// Timer of the linger after the write side was shut down.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<T> Io<T> {
    pub(super) const fn new(stream: T, connection: Arc<Connection>, place: Place, bounds: &Bounds) -> Self {
        let Bounds { stall, linger, .. } = *bounds;
        Self { stream, connection, _place: place, stall, stalled: None, linger, lingering: None }
    }

    /// Starts the timer while a write is blocked.
    fn written<R>(&mut self, written: Poll<io::Result<R>>, context: &mut Context<'_>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall = self.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        ready!(stalled.as_mut().poll(context));
        tracing::info!(peer = %self.connection.peer(), "a connection is closed: its client takes nothing");
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> Io<T> {
    /// Reads and discards until the peer closes, or the linger is over. The kernel answers bytes that arrive
    /// after a close, or are unread at it, with a reset, and a reset discards the answer that the peer has
    /// not read yet.
    fn discard(&mut self, timer: &mut Pin<Box<Sleep>>, context: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [MaybeUninit::uninit(); DISCARDED];
        for _ in 0..DISCARDS {
            if timer.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::uninit(&mut bytes);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Io<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.connection.came(buffer.filled().len() - before) {
            Poll::Ready(Ok(()))
        } else {
            Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, "too much came in at once")))
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Io<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.written(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut timer = if let Some(timer) = self.lingering.take() {
            timer
        } else {
            let down = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.written(down, context))?;
            Box::pin(sleep(self.linger))
        };
        let discarded = self.discard(&mut timer, context);
        self.lingering = Some(timer);
        discarded.map(Ok)
    }
}
