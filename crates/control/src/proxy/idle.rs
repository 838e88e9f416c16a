// SPDX-License-Identifier: Apache-2.0
//! Idle time of an exchange: it ends when nothing moves in either direction for too long.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Clock of an exchange.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    begin: Instant,
    /// Milliseconds from the begin to the last movement.
    last: Arc<AtomicU64>,
    limit: Duration,
}

impl Clock {
    pub(super) fn new(limit: Duration) -> Self {
        Self { begin: Instant::now(), last: Arc::default(), limit }
    }

    /// Notes a movement.
    pub(super) fn moved(&self) {
        self.last.store(self.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits until nothing has moved for the limit.
    pub(super) async fn expired(&self) {
        loop {
            let idle =
                self.begin.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)));
            let Some(left) = self.limit.checked_sub(idle).filter(|left| !left.is_zero()) else { return };
            tokio::time::sleep(left).await;
        }
    }
}

/// Body whose frames are movements, that breaks off at the end of the idle time, and that keeps a value.
pub(super) struct Timed<T> {
    body: Body,
    clock: Clock,
    expired: BoxFuture<'static, ()>,
    _held: T,
}

impl<T: Send + Unpin + 'static> Timed<T> {
    pub(super) fn body(body: Body, clock: Clock, held: T) -> Body {
        let own = clock.clone();
        let expired = async move { own.expired().await }.boxed();
        Body::new(Self { body, clock, expired, _held: held })
    }
}

impl<T: Unpin> HttpBody for Timed<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.clock.moved();
            return Poll::Ready(frame);
        }
        if self.expired.poll_unpin(context).is_ready() {
            let error = io::Error::new(io::ErrorKind::TimedOut, "nothing moved for too long");
            return Poll::Ready(Some(Err(axum::Error::new(error))));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Stream whose bytes are movements.
pub(super) struct Watched<T> {
    pub(super) stream: T,
    pub(super) clock: Clock,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.clock.moved();
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_moves_is_not_idle() {
        let clock = Clock::new(Duration::from_millis(200));
        let mut expired = Box::pin(clock.expired());
        for _ in 0..5 {
            let waited = tokio::time::timeout(Duration::from_millis(100), &mut expired).await;
            assert!(waited.is_err());
            clock.moved();
        }
        expired.await;
        assert!(clock.begin.elapsed() >= Duration::from_millis(700));
    }
}
