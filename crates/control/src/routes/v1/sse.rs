// SPDX-License-Identifier: Apache-2.0
//! Responses of server-sent events, which reach the client as they come.

use std::convert::Infallible;

use axum::response::{
    IntoResponse as _, Response,
    sse::{Event, KeepAlive, Sse},
};
use futures::Stream;
use http::{HeaderName, HeaderValue};

/// Header that keeps reverse proxies from holding events back until a buffer is full.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Responds with these events. A comment comes every 15 seconds without one, so that nobody takes the connection for dead.
pub(super) fn respond(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let mut response = Sse::new(events).keep_alive(KeepAlive::default()).into_response();
    response.headers_mut().insert(BUFFERING, HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_on_the_way_keeps_events_back() {
        let response = respond(stream::pending());
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        let begun = tokio::time::Instant::now();
        let frame = response.into_body().frame().await.expect("a comment").expect("no error");
        assert!(frame.into_data().is_ok_and(|data| data.starts_with(b":")));
        assert_eq!(begun.elapsed().as_secs(), 15);
    }
}
