// SPDX-License-Identifier: Apache-2.0
//! Response bodies, sent in small pieces, so that their resources are kept until nearly everything was read.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::{Buf as _, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::connection::Work;

/// Maximum size of a piece, in bytes.
const PIECE: usize = 32 << 10;

/// Response body on a connection.
pub(super) struct Answer {
    body: Body,
    /// Rest of a frame that is larger than a piece.
    rest: Bytes,
    work: Work,
}

impl Answer {
    pub(super) const fn new(body: Body, work: Work) -> Self {
        Self { body, rest: Bytes::new(), work }
    }

    /// Returns the next piece of the rest. It is copied, because a slice would keep the whole frame in
    /// memory.
    fn piece(&mut self) -> Bytes {
        let piece = Bytes::copy_from_slice(&self.rest[..PIECE.min(self.rest.len())]);
        self.rest.advance(piece.len());
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        piece
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.work.wait_for_client(false);
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    tracing::info!(%error, "an answer is broken off");
                    return Poll::Ready(Some(Err(error)));
                }
                None => return Poll::Ready(None),
            };
            match frame.into_data() {
                Ok(data) if data.len() > PIECE => self.rest = data,
                Ok(data) => {
                    self.work.wait_for_client(true);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
        self.work.wait_for_client(true);
        let piece = self.piece();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

/// A body that keeps a value, such as a permit, until it was sent or dropped.
pub(crate) struct Holding<T> {
    body: Body,
    _held: T,
}

impl<T: Send + Sync + Unpin + 'static> Holding<T> {
    /// Wraps `body`, so that it keeps `held`.
    pub(crate) fn body(body: Body, held: T) -> Body {
        Body::new(Self { body, _held: held })
    }
}

impl<T: Unpin> HttpBody for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
