// SPDX-License-Identifier: Apache-2.0
//! Responses with the content of a file or an archive, streamed to the client.

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header, response::Builder};
use utoipa::ToSchema;
use wrenn_api::ErrorCode;

use crate::{
    error::Fault,
    sandboxes::{Download, Sent},
};

/// Type of content of which nothing is known. A browser does not show it.
pub(super) const BYTES: &str = "application/octet-stream";
/// Type of a tar archive.
pub(super) const TAR: &str = "application/x-tar";

/// Content of a file.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "describes the body, which is streamed")]
pub(super) struct Content(Vec<u8>);

/// Renders a file as a response. If the content breaks off, so does the response: a client must not take it for the whole
/// file.
pub(super) fn render(file: Download, kind: &'static str) -> Result<Response, Fault> {
    let mut head = Response::builder();
    for (name, told) in [(header::ETAG, &file.etag), (header::LAST_MODIFIED, &file.last_modified)] {
        head = with(head, name, told);
    }
    let status = match file.sent {
        Sent::Whole => StatusCode::OK,
        Sent::Part(..) => StatusCode::PARTIAL_CONTENT,
        Sent::Unchanged => return finished(head.status(StatusCode::NOT_MODIFIED), Body::empty()),
        Sent::NoSuchPart => return Ok(no_such_part(file.size)),
    };
    head = head.status(status).header(header::CONTENT_TYPE, kind);
    let length = match (file.sent, file.size) {
        (Sent::Part(start, length), Some(size)) => {
            let end = start.saturating_add(length).saturating_sub(1);
            head = head.header(header::CONTENT_RANGE, format!("bytes {start}-{end}/{size}"));
            Some(length)
        }
        (_, size) => size,
    };
    if let Some(length) = length {
        head = head.header(header::CONTENT_LENGTH, length);
    }
    if kind == BYTES {
        head = head.header(header::ACCEPT_RANGES, "bytes");
    }
    finished(head, Body::from_stream(file.content))
}

/// Adds what a sandbox told of a version, unless it is no value of a field.
fn with(head: Builder, name: HeaderName, told: &str) -> Builder {
    match HeaderValue::from_str(told) {
        Ok(value) if !told.is_empty() => head.header(name, value),
        _ => head,
    }
}

fn no_such_part(size: Option<u64>) -> Response {
    let size = size.map_or_else(|| "*".to_owned(), |size| size.to_string());
    let message = format!("the file has {size} bytes, and no part as it is asked for");
    let mut response = Fault::new(ErrorCode::RangeNotSatisfiable, message).into_response();
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

fn finished(head: Builder, body: Body) -> Result<Response, Fault> {
    head.body(body).map_err(|error| {
        tracing::error!(%error, "an answer cannot be made");
        Fault::internal()
    })
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};

    use super::*;

    fn download(sent: Sent, size: Option<u64>, etag: &str) -> Response {
        let content = stream::empty().boxed();
        let file = Download { sent, size, etag: etag.to_owned(), last_modified: String::new(), content };
        render(file, BYTES).expect("a response")
    }

    #[test]
    fn parts_and_versions_are_told_as_http_has_them() {
        let field = |response: &Response, name| {
            response
                .headers()
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
                .map(str::to_owned)
        };
        let part = download(Sent::Part(2, 5), Some(100), "\"a\"");
        assert_eq!(part.status(), 206);
        assert_eq!(field(&part, header::CONTENT_RANGE).as_deref(), Some("bytes 2-6/100"));
        assert_eq!(field(&part, header::CONTENT_LENGTH).as_deref(), Some("5"));
        assert_eq!(field(&part, header::ETAG).as_deref(), Some("\"a\""));
        let none = download(Sent::NoSuchPart, Some(100), "");
        assert_eq!(
            (none.status().as_u16(), field(&none, header::CONTENT_RANGE).as_deref()),
            (416, Some("bytes */100"))
        );
        let same = download(Sent::Unchanged, None, "\"a\"");
        assert_eq!((same.status().as_u16(), field(&same, header::CONTENT_LENGTH)), (304, None));
        let hostile = download(Sent::Whole, None, "a\r\nSet-Cookie: x=y");
        assert_eq!((hostile.status().as_u16(), field(&hostile, header::ETAG)), (200, None));
        assert_eq!(field(&hostile, header::SET_COOKIE), None);
    }
}
