// SPDX-License-Identifier: Apache-2.0
//! Bodies of requests, which tell whether they were read to their end.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// Body of a request.
pub(super) struct RequestBody {
    body: Incoming,
    ended: Arc<AtomicBool>,
}

/// Whether a body was read to its end.
pub(super) struct Ended(Arc<AtomicBool>);

impl RequestBody {
    pub(super) fn new(body: Incoming) -> (Self, Ended) {
        let ended = Arc::new(AtomicBool::new(body.is_end_stream()));
        (Self { body, ended: ended.clone() }, Ended(ended))
    }
}

impl Ended {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
