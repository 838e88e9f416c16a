// SPDX-License-Identifier: Apache-2.0
//! Parser of forms (`multipart/form-data`), part by part. The underlying parser buffers everything that is
//! not content, such as a part's headers, and scans it again whenever more arrives: so its size is limited.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Multipart, Request, multipart::Field},
};
use http_body::{Body as HttpBody, Frame};
use wrenn_api::ErrorCode;

use crate::{
    error::Fault,
    stall::{By, moving},
};

/// Maximum number of bytes between two pieces of content.
const OUTSIDE_MAX: usize = 16 << 10;

/// A form that is being received.
pub(super) struct Form {
    parts: Multipart,
    outside: Arc<AtomicUsize>,
}

/// One part of a form.
pub(super) struct Part<'a> {
    field: Field<'a>,
    outside: &'a AtomicUsize,
}

/// Converts an error of a form.
fn bad(error: &dyn std::fmt::Display) -> Fault {
    Fault::invalid(format!("the body is not the documented form: {error}"))
}

impl Form {
    pub(super) async fn of(request: Request) -> Result<Self, Fault> {
        let outside = Arc::new(AtomicUsize::new(0));
        let counted = outside.clone();
        let request = request.map(|body| Body::new(Counted { body, outside: counted, rests: false }));
        let parts = Multipart::from_request(request, &()).await.map_err(|_| {
            let message = "send the file as multipart/form-data, with the parts `path` and `file`";
            Fault::new(ErrorCode::UnsupportedMediaType, message)
        })?;
        Ok(Self { parts, outside })
    }

    /// Returns the next part, and skips the rest of the previous one.
    pub(super) async fn next(&mut self) -> Result<Option<Part<'_>>, Fault> {
        let field = moving(By::ClientSends, self.parts.next_field()).await?;
        self.outside.store(0, Ordering::Relaxed);
        let field = field.map_err(|error| bad(&error.body_text()))?;
        Ok(field.map(|field| Part { field, outside: &self.outside }))
    }
}

impl Part<'_> {
    pub(super) fn name(&self) -> Option<&str> {
        self.field.name()
    }

    /// Returns the next piece of content.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        let chunk = moving(By::ClientSends, self.field.chunk()).await?;
        self.outside.store(0, Ordering::Relaxed);
        chunk.map_err(|error| bad(&error.body_text()))
    }
}

/// A body that fails when too much arrives without a result of the parser.
struct Counted {
    body: Body,
    outside: Arc<AtomicUsize>,
    /// The parser reads as much as it can get before parsing, so it gets one frame at a time.
    rests: bool,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if std::mem::take(&mut self.rests) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.outside.load(Ordering::Relaxed) > OUTSIDE_MAX {
            let message = format!("more than {OUTSIDE_MAX} bytes that are no content of a part");
            return Poll::Ready(Some(Err(axum::Error::new(message))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.outside.fetch_add(data.len(), Ordering::Relaxed);
            self.rests = true;
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};
    use proptest::{prop_assert, proptest};
    use wrenn_testkit::fuzz;

    use super::*;

    fn form(pieces: impl futures::Stream<Item = Bytes> + Send + 'static) -> Request {
        let body = Body::from_stream(pieces.map(Ok::<_, std::io::Error>));
        Request::post("/")
            .header("content-type", "multipart/form-data; boundary=B")
            .body(body)
            .expect("a request")
    }

    /// Returns how much of an endless form is read before it is rejected.
    async fn read_of_endless(beginning: &'static [u8], piece: &'static [u8]) -> usize {
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        let endless = stream::once(async move { Bytes::from_static(beginning) }).chain(stream::repeat_with(
            move || {
                count.fetch_add(piece.len(), Ordering::Relaxed);
                Bytes::from_static(piece)
            },
        ));
        let mut form = Form::of(form(endless)).await.expect("a form");
        let refused = async {
            while let Some(mut part) = form.next().await? {
                while part.chunk().await?.is_some() {}
            }
            Ok::<_, Fault>(())
        };
        let error = refused.await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        sent.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn headers_and_preambles_without_end_are_refused() {
        const PIECE: &[u8] = &[b'a'; 4096];
        for beginning in [
            &b"--B\r\nContent-Disposition: form-data; name=\"path\"\r\nX: "[..],
            b"",
            b"--B\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\nx\r\n--B",
        ] {
            let read = read_of_endless(beginning, PIECE).await;
            assert!(read <= OUTSIDE_MAX + 2 * PIECE.len(), "{read} bytes");
        }
    }

    #[tokio::test]
    async fn content_of_any_size_and_in_any_pieces_passes() {
        const SIZE: usize = 1 << 20;
        let mut whole = b"--B\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n".to_vec();
        whole.extend(vec![b'-'; SIZE]);
        whole.extend(b"\r\n--B--\r\n");
        for size in [7, 4096, whole.len()] {
            let pieces: Vec<Bytes> = whole.chunks(size).map(Bytes::copy_from_slice).collect();
            let mut form = Form::of(form(stream::iter(pieces))).await.expect("a form");
            let mut part = form.next().await.expect("a part").expect("a part");
            assert_eq!(part.name(), Some("file"));
            let mut read = 0;
            while let Some(chunk) = part.chunk().await.expect("content") {
                read += chunk.len();
            }
            assert_eq!(read, SIZE);
            drop(part);
            assert!(form.next().await.expect("the end").is_none());
        }
    }

    const FORMS: &[&str] = &[
        "--B\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\nx\r\n--B\r\nContent-Disposition: form-data; \
         name=\"file\"; filename=\"f\"\r\nContent-Type: text/plain\r\n\r\nhello\r\n--B--\r\n",
        "preamble\r\n--B\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n--B-\r\n--BB\r\n--B--",
    ];

    /// Reads a form to its end, and returns the size of its content.
    async fn read(whole: Vec<u8>, pieces: usize) -> Result<usize, Fault> {
        let pieces: Vec<Bytes> = whole.chunks(pieces).map(Bytes::copy_from_slice).collect();
        let mut form = Form::of(form(stream::iter(pieces))).await?;
        let mut size = 0;
        while let Some(mut part) = form.next().await? {
            size += part.name().map_or(0, str::len);
            while let Some(chunk) = part.chunk().await? {
                size += chunk.len();
            }
        }
        Ok(size)
    }

    proptest! {
        #![proptest_config(fuzz::config())]

        /// Whatever a client sends, in whatever pieces, it is read or refused as invalid.
        #[test]
        fn whatever_is_sent_is_read_or_refused(whole in fuzz::damaged(FORMS), pieces in 1..64_usize) {
            let sent = whole.len();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            match runtime.block_on(read(whole, pieces)) {
                Ok(size) => prop_assert!(size <= sent, "{size} bytes of {sent}"),
                Err(error) => prop_assert!(error.code == ErrorCode::InvalidRequest, "{error:?}"),
            }
        }
    }
}
