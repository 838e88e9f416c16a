// SPDX-License-Identifier: Apache-2.0
//! Streams of Connect calls to envd: one that breaks off between two messages ends with the error `unavailable`, since clients
//! take that, and no broken connection, for a sandbox that has ended. Source: the Connect protocol, "Streaming RPCs".

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body as HttpBody, Frame};

/// Beginning of the content types of streams.
const CONTENT_TYPE: &str = "application/connect+";
/// Flag of the last message of a stream, which has its error.
const END: u8 = 0b10;
/// The last message of a stream that broke off.
const BROKEN_OFF: &str = r#"{"error":{"code":"unavailable","message":"the sandbox was killed or reached its end of life, or it was paused, during the call"}}"#;

/// Returns the body of a response; if it is a stream of messages, it will end with one.
pub(super) fn ended(headers: &HeaderMap, body: Body) -> Body {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let sized = headers.contains_key(header::CONTENT_LENGTH);
    if sized || !kind.starts_with(CONTENT_TYPE) {
        return body;
    }
    Body::new(Stream { body, messages: Messages::default(), broken: false })
}

/// Body of messages.
struct Stream {
    body: Body,
    messages: Messages,
    /// Whether it broke off and was given its end.
    broken: bool,
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.broken {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    self.messages.follow(bytes);
                }
            }
            Some(Err(error)) if self.messages.may_end() => {
                tracing::debug!(%error, "a stream of envd broke off");
                self.broken = true;
                let mut message = vec![END];
                message.extend((BROKEN_OFF.len() as u32).to_be_bytes());
                message.extend(BROKEN_OFF.as_bytes());
                return Poll::Ready(Some(Ok(Frame::data(message.into()))));
            }
            Some(Err(_)) | None => {}
        }
        Poll::Ready(frame)
    }
}

/// Position in the messages of a stream: each is a byte of flags, four of its length, and its content.
#[derive(Default)]
struct Messages {
    head: [u8; 5],
    /// Number of bytes of the head that have come.
    known: usize,
    /// Number of bytes of the content that are to come.
    left: usize,
    /// Whether the last message began.
    last: bool,
}

impl Messages {
    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let content = self.left.min(bytes.len());
                self.left -= content;
                bytes = &bytes[content..];
                continue;
            }
            let head = (self.head.len() - self.known).min(bytes.len());
            self.head[self.known..self.known + head].copy_from_slice(&bytes[..head]);
            self.known += head;
            bytes = &bytes[head..];
            if self.known == self.head.len() {
                let [flags, length @ ..] = self.head;
                self.last |= flags & END != 0;
                (self.known, self.left) = (0, u32::from_be_bytes(length) as usize);
            }
        }
    }

    /// Whether the last message may come next.
    const fn may_end(&self) -> bool {
        self.known == 0 && self.left == 0 && !self.last
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http::HeaderValue;
    use http_body_util::BodyExt as _;

    use super::*;

    const MESSAGE: &[u8] = &[0, 0, 0, 0, 3, b'a', b'b', b'c'];

    /// Reads a stream that has these pieces and breaks off; returns what came, and whether its end was clean.
    async fn read(kind: &'static str, pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let broken = Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        let pieces: Vec<_> =
            pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece))).chain([broken]).collect();
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
        let mut body = ended(&headers, Body::from_stream(stream::iter(pieces)));
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => all.extend(frame.into_data().expect("data")),
                Err(_) => return (all, false),
            }
        }
        (all, true)
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_between_messages_ends_with_an_error() {
        let mut expected = MESSAGE.to_vec();
        expected.extend([END, 0, 0, 0, BROKEN_OFF.len() as u8]);
        expected.extend(BROKEN_OFF.as_bytes());
        for cut in 0..=MESSAGE.len() {
            let (head, tail) = MESSAGE.split_at(cut);
            assert_eq!(read("application/connect+proto", &[head, tail]).await, (expected.clone(), true));
        }
    }

    #[tokio::test]
    async fn other_streams_break_off() {
        for cut in 1..MESSAGE.len() {
            let part = &MESSAGE[..cut];
            assert!(!read("application/connect+json", &[MESSAGE, part]).await.1, "{cut}");
        }
        let last: &[u8] = &[END, 0, 0, 0, 2, b'{', b'}'];
        assert!(!read("application/connect+json", &[MESSAGE, last]).await.1);
        assert_eq!(read("application/octet-stream", &[MESSAGE]).await, (MESSAGE.to_vec(), false));
    }
}
