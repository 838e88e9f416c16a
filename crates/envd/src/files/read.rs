// SPDX-License-Identifier: Apache-2.0
//! `GET /files`: reads a file or a range of it, gzipped if the client asks for that.

use std::{path::Path, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header, response},
    response::Response,
};

use super::{
    Params, admit,
    coding::{Accepted, accepted},
    content::Content,
    gzip, range, unreadable,
};
use crate::{respond::error, settings::Settings};

/// Size up to which content is gzipped even if it does not get smaller.
const SMALL: usize = 1 << 10;

/// Reads a file or one range of it.
pub(crate) async fn get(
    State(settings): State<Arc<Settings>>,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Response {
    read(&settings, &params, &headers).await.unwrap_or_else(|response| response)
}

async fn read(settings: &Settings, params: &Params, headers: &HeaderMap) -> Result<Response, Response> {
    let caller = admit(settings, headers, params, "read").await?;
    let path = caller.resolve(params.path.as_deref().unwrap_or_default())?;
    let content = Content::open(&path).await.map_err(|e| unreadable(&path, &e))?;
    let accepted = accepted(headers).ok_or_else(|| {
        let text = "no acceptable encoding; accept identity or gzip";
        error(StatusCode::NOT_ACCEPTABLE, text)
    })?;
    let asked = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
    // Ranges are those of the file, so they are not compressed.
    let place = match asked {
        Some(_) => None,
        None => compression(accepted, &content).await.map_err(|e| unreadable(&path, &e))?,
    };
    let head = described(&path, &content, place.is_some());
    if content.version().is_some_and(|version| version.is_held(headers)) {
        return finished(head.status(StatusCode::NOT_MODIFIED), Body::empty());
    }
    if let Some(place) = place {
        let head = head.header(header::CONTENT_ENCODING, "gzip");
        if content.is_short() {
            let zipped = gzip::compress_all(content.start().clone()).await;
            let zipped = zipped.map_err(|e| unreadable(&path, &e))?;
            return finished(head.header(header::CONTENT_LENGTH, zipped.len()), Body::from(zipped));
        }
        let pieces = content.pieces(None).await.map_err(|e| unreadable(&path, &e))?;
        return finished(head, Body::from_stream(gzip::compress(pieces, place)));
    }
    let size = content.size();
    let part = match (asked, size) {
        (Some(asked), Some(size)) if content.version().is_none_or(|version| version.continues(headers)) => {
            range::parse(asked, size).map_err(|()| unsatisfiable(size))?
        }
        // A file without a known size has no ranges; returning all of it is valid.
        _ => None,
    };
    let mut head = head.header(header::ACCEPT_RANGES, "bytes");
    if let (Some((start, length)), Some(size)) = (part, size) {
        let end = start + length - 1;
        head = head
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {start}-{end}/{size}"));
    }
    if let Some(length) = part.map(|(_, length)| length).or(size) {
        head = head.header(header::CONTENT_LENGTH, length);
    }
    let body = content.body(part).await.map_err(|e| unreadable(&path, &e))?;
    finished(head, body)
}

/// Decides whether to compress: a place to do so is returned if it is wanted, and makes the content smaller.
async fn compression(
    accepted: Accepted,
    content: &Content,
) -> std::io::Result<Option<tokio::sync::SemaphorePermit<'static>>> {
    let start: &Bytes = content.start();
    match accepted {
        Accepted::Plain => Ok(None),
        Accepted::OnlyGzip => Ok(gzip::place(true).await),
        Accepted::Gzip => {
            let Some(place) = gzip::place(false).await else { return Ok(None) };
            // The beginning of packed or encrypted content shows that compressing it costs time only.
            let gains =
                start.len() < SMALL || gzip::compress_all(start.clone()).await?.len() < start.len() / 10 * 9;
            Ok(gains.then_some(place))
        }
    }
}

/// Headers that all answers about the file have.
fn described(path: &Path, content: &Content, coded: bool) -> response::Builder {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut head = Response::builder()
        .header(header::CONTENT_TYPE, kind(path))
        .header(header::CONTENT_DISPOSITION, format!("inline; filename*=UTF-8''{}", percent_encode(&name)))
        .header(header::VARY, "Accept-Encoding");
    if let Some(version) = content.version() {
        head = head.header(header::ETAG, version.tag(coded));
        if let Some(date) = version.date() {
            head = head.header(header::LAST_MODIFIED, date);
        }
    }
    head
}

/// Media type by the extension of the name.
fn kind(path: &Path) -> String {
    match mime_guess::from_path(path).first_raw() {
        Some(kind) if kind.starts_with("text/") => format!("{kind}; charset=utf-8"),
        Some(kind) => kind.into(),
        None => "application/octet-stream".into(),
    }
}

fn finished(head: response::Builder, body: Body) -> Result<Response, Response> {
    head.body(body).map_err(|e| error(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

fn unsatisfiable(size: u64) -> Response {
    let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, format!("the file has {size} bytes"));
    if let Ok(value) = format!("bytes */{size}").parse() {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

fn percent_encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_is_that_of_the_extension() {
        let of = |name| kind(Path::new(name));
        assert_eq!(of("/a/page.html"), "text/html; charset=utf-8");
        assert_eq!((of("x.PNG").as_str(), of("d.json").as_str()), ("image/png", "application/json"));
        assert_eq!([of("a"), of(".bashrc")], ["application/octet-stream"; 2]);
    }
}
