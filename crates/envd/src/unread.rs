// SPDX-License-Identifier: Apache-2.0
//! What is not read of the body of a request, because it is refused: it is read and discarded after the answer. A connection
//! that is closed with bytes to read breaks, and its client may not see the answer.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Error,
    body::{Body, BodyDataStream, Bytes},
    extract::Request,
};
use futures::{Stream, StreamExt as _};
use tokio::{runtime::Handle, time::timeout};

/// Maximum number of bytes that are discarded, and maximum time that it may take.
const DISCARDED: usize = 64 << 20;
const TIME: Duration = Duration::from_secs(10);

/// The request, of whose body the rest is discarded when it is dropped.
pub(crate) fn discarding(request: Request) -> Request {
    request.map(|body| Body::from_stream(Discarding(Some(body.into_data_stream()))))
}

/// Pieces of a body; none once it has ended.
struct Discarding(Option<BodyDataStream>);

impl Stream for Discarding {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(pieces) = &mut self.0 else { return Poll::Ready(None) };
        let piece = ready!(pieces.poll_next_unpin(context));
        if !matches!(piece, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(piece)
    }
}

impl Drop for Discarding {
    fn drop(&mut self) {
        // Without a runtime, envd ends.
        let (Some(pieces), Ok(runtime)) = (self.0.take(), Handle::try_current()) else { return };
        runtime.spawn(timeout(TIME, discard(pieces)));
    }
}

/// Reads the rest of a body, up to [`DISCARDED`] bytes.
pub(crate) async fn discard(mut pieces: BodyDataStream) {
    let mut left = DISCARDED;
    while let Some(Ok(piece)) = pieces.next().await
        && piece.len() <= left
    {
        left -= piece.len();
    }
}
