// SPDX-License-Identifier: Apache-2.0
//! Memory reservation of responses: keeps the memory reserved until the last byte of the response is sent.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{body::Body, extract::Request, middleware::Next, response::Response};
use bytes::Bytes;
use http_body_util::BodyExt as _;

use crate::memory::Held;

/// Memory of the response to one request; stored as an extension of the request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer(Arc<Mutex<Option<Held>>>);

impl Answer {
    /// Keeps the memory reserved until the response is sent.
    pub(crate) fn hold(&self, memory: Held) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
    }
}

/// Bytes of a response. The connection drops them after sending them, which releases the memory.
struct Unsent {
    bytes: Bytes,
    _answer: Answer,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Adds an [`Answer`] to each request and a reference to it to each piece of the response body.
pub(crate) async fn keep_memory(mut request: Request, next: Next) -> Response {
    let answer = Answer::default();
    request.extensions_mut().insert(answer.clone());
    let response = next.run(request).await;
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            frame.map_data(|bytes| Bytes::from_owner(Unsent { bytes, _answer: answer.clone() }))
        }))
    })
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware::from_fn, routing::get};
    use tower::ServiceExt as _;

    use super::*;
    use crate::memory::{Memory, STREAM};

    #[tokio::test]
    async fn memory_is_free_when_the_last_byte_of_the_answer_is_gone() -> anyhow::Result<()> {
        let memory = Memory::new(STREAM as usize);
        let of_handler = memory.clone();
        let handler = async move |request: Request| {
            let answer = request.extensions().get::<Answer>().cloned().unwrap_or_default();
            answer.hold(of_handler.reserve(STREAM).expect("free"));
            "output"
        };
        let router = Router::new().route("/", get(handler)).layer(from_fn(keep_memory));
        let response = router.oneshot(Request::new(Body::empty())).await?;
        let mut body = response.into_body();
        let bytes = body.frame().await.transpose()?.and_then(|frame| frame.into_data().ok());
        assert_eq!(bytes.as_deref(), Some(&b"output"[..]));
        drop(body);
        assert!(memory.reserve(STREAM).is_err(), "the bytes are still there");
        drop(bytes);
        assert!(memory.reserve(STREAM).is_ok());
        Ok(())
    }
}
