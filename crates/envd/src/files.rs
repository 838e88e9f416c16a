// SPDX-License-Identifier: Apache-2.0
//! `GET` and `POST /files`: reads and writes whole files over plain HTTP, streamed in pieces of bounded size.

use std::{
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{FromRequest as _, Multipart, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::Engine as _;
use futures::{Stream, StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use crate::{
    paths, regular,
    respond::error,
    settings::{self, Settings},
    upload::Upload,
    users::{self, User},
};

const PIECE: usize = 64 << 10;
/// Bytes of a form in which its parser may find nothing.
const UNPARSED: usize = 256 << 10;

/// Query parameters of both methods.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Params {
    path: Option<String>,
    username: Option<String>,
    signature: Option<String>,
    signature_expiration: Option<String>,
    /// Whether to write a temporary file, sync and rename it, so that an interrupted upload leaves the old
    /// file.
    atomic: bool,
}

/// Checks the token or the signature and looks up the user.
async fn admit(
    settings: &Settings,
    headers: &HeaderMap,
    params: &Params,
    operation: &str,
) -> Result<User, Response> {
    let unauthorized = |text: String| error(StatusCode::UNAUTHORIZED, text);
    let given = headers.get("x-access-token").and_then(|v| v.to_str().ok());
    if !settings.admits(given) {
        check_signature(settings, params, operation).map_err(|text| unauthorized(text.into()))?;
    }
    let named = match params.username.clone().filter(|u| !u.is_empty()) {
        Some(name) => Some(name),
        None => users::requested(headers).map_err(|e| unauthorized(e.to_string()))?,
    };
    let name = named.or(settings.snapshot().default_user).unwrap_or_else(|| "root".into());
    users::find(name).await.map_err(|e| unauthorized(e.to_string()))
}

fn check_signature(settings: &Settings, params: &Params, operation: &str) -> Result<(), &'static str> {
    const MISSING: &str = "neither X-Access-Token nor a valid signature was given";
    let (Some(token), Some(given)) = (settings.token(), &params.signature) else { return Err(MISSING) };
    let path = params.path.as_deref().unwrap_or_default();
    let user = params.username.as_deref().unwrap_or_default();
    let mut text = format!("{path}:{operation}:{user}:{token}");
    if let Some(expiration) = &params.signature_expiration {
        text = format!("{text}:{expiration}");
    }
    let hash = base64::engine::general_purpose::STANDARD_NO_PAD.encode(Sha256::digest(text));
    if !settings::same(&format!("v1_{hash}"), given) {
        return Err("invalid signature");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    match params.signature_expiration.as_deref().map(str::parse::<u64>) {
        Some(Ok(at)) if at < now => Err("signature is already expired"),
        Some(Err(_)) => Err("signature_expiration must be a Unix time"),
        _ => Ok(()),
    }
}

fn failed(action: &str, path: &Path, cause: &io::Error) -> Response {
    use io::ErrorKind as K;
    let status = match cause.kind() {
        K::NotFound => StatusCode::NOT_FOUND,
        K::PermissionDenied | K::ReadOnlyFilesystem => StatusCode::FORBIDDEN,
        K::StorageFull | K::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        K::IsADirectory | K::InvalidInput => StatusCode::BAD_REQUEST,
        // When reading, such a file cannot exist; when writing, an existing file is in the way.
        K::NotADirectory | K::InvalidFilename if action == "read" => StatusCode::NOT_FOUND,
        K::NotADirectory | K::InvalidFilename => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, format!("cannot {action} {}: {cause}", path.display()))
}

/// Reads a file or one range of it.
pub(crate) async fn get(
    State(settings): State<Arc<Settings>>,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Response {
    read(&settings, &params, &headers).await.unwrap_or_else(|response| response)
}

async fn read(settings: &Settings, params: &Params, headers: &HeaderMap) -> Result<Response, Response> {
    let user = admit(settings, headers, params, "read").await?;
    let bad = |e: paths::PathError| error(StatusCode::BAD_REQUEST, e.to_string());
    let path = paths::resolve(params.path.as_deref().unwrap_or_default(), &user).map_err(bad)?;
    let content = Content::open(&path).await.map_err(|e| unreadable(&path, &e))?;
    let asked = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
    let wanted = match (asked, content.size()) {
        (Some(asked), Some(size)) => range(asked, size).map_err(|()| unsatisfiable(size))?,
        // A file without a known size has no ranges; returning all of it is valid.
        _ => None,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut response = Response::builder()
        .status(if wanted.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK })
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_DISPOSITION, format!("inline; filename*=UTF-8''{}", percent_encode(&name)));
    if let (Some((start, length)), Some(size)) = (wanted, content.size()) {
        let end = start + length - 1;
        response = response.header(header::CONTENT_RANGE, format!("bytes {start}-{end}/{size}"));
    }
    if let Some(length) = wanted.map(|(_, length)| length).or(content.size()) {
        response = response.header(header::CONTENT_LENGTH, length);
    }
    let body = content.body(wanted).await.map_err(|e| unreadable(&path, &e))?;
    response.body(body).map_err(|e| error(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

fn unreadable(path: &Path, cause: &io::Error) -> Response {
    let refused = |what| error(StatusCode::BAD_REQUEST, format!("{} is {what}", path.display()));
    match cause.kind() {
        io::ErrorKind::IsADirectory => refused("a directory"),
        io::ErrorKind::InvalidInput => refused("not a regular file"),
        _ => failed("read", path, cause),
    }
}

fn unsatisfiable(size: u64) -> Response {
    let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, format!("the file has {size} bytes"));
    if let Ok(value) = format!("bytes */{size}").parse() {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

/// Content of a file whose beginning has been read.
enum Content {
    /// Short file, read completely; the size reported by the file system is not used.
    Whole(Bytes),
    /// File longer than one piece, with its size when it was opened.
    Sized(tokio::fs::File, u64),
    /// File longer than one piece whose size is unknown, such as a file of /proc.
    Unsized(tokio::fs::File, Bytes),
}

impl Content {
    async fn open(path: &Path) -> io::Result<Self> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let mut file = regular::open(&path)?;
            let size = file.metadata()?.size();
            let known = size > 0 && !regular::is_pseudo(&file)?;
            // Files in /proc and /sys report a size of 0 or one page.
            let mut start = Vec::new();
            (&mut file).take(PIECE as u64).read_to_end(&mut start)?;
            Ok::<_, io::Error>((file, start, known.then_some(size)))
        });
        let (file, start, size) = opened.await.map_err(io::Error::other)??;
        let file = tokio::fs::File::from_std(file);
        Ok(match size {
            _ if start.len() < PIECE => Self::Whole(start.into()),
            Some(size) if size >= PIECE as u64 => Self::Sized(file, size),
            _ => Self::Unsized(file, start.into()),
        })
    }

    fn size(&self) -> Option<u64> {
        match self {
            Self::Whole(content) => Some(content.len() as u64),
            Self::Sized(_, size) => Some(*size),
            Self::Unsized(..) => None,
        }
    }

    /// Returns all of the content, or a range given by start and length.
    async fn body(self, part: Option<(u64, u64)>) -> io::Result<Body> {
        match self {
            Self::Whole(content) => {
                let part = part.and_then(|(start, length)| {
                    let start = usize::try_from(start).ok()?;
                    Some(start..start.checked_add(usize::try_from(length).ok()?)?)
                });
                Ok(Body::from(part.map_or(content.clone(), |part| content.slice(part))))
            }
            Self::Sized(mut file, size) => {
                let (start, length) = part.unwrap_or((0, size));
                file.seek(io::SeekFrom::Start(start)).await?;
                Ok(Body::from_stream(pieces(file, length)))
            }
            Self::Unsized(file, start) => {
                let rest = stream::try_unfold(file, |mut file| async move {
                    let piece = piece(&mut file, PIECE).await?;
                    Ok((!piece.is_empty()).then_some((piece, file)))
                });
                Ok(Body::from_stream(stream::once(async { Ok::<_, io::Error>(start) }).chain(rest)))
            }
        }
    }
}

async fn piece(file: &mut tokio::fs::File, most: usize) -> io::Result<Bytes> {
    let mut piece = vec![0; most];
    let read = file.read(&mut piece).await?;
    piece.truncate(read);
    Ok(piece.into())
}

/// Streams the next `length` bytes of a file. If the file grows meanwhile, only its bytes at opening are
/// sent; if it shrinks, the transfer fails visibly.
fn pieces(file: tokio::fs::File, length: u64) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let piece = piece(&mut file, PIECE.min(usize::try_from(left).unwrap_or(PIECE))).await?;
        if piece.is_empty() {
            let text = format!("the file shrank while it was read: {left} bytes are missing");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let left = left - piece.len() as u64;
        Ok(Some((piece, (file, left))))
    })
}

/// Parses a single range as start and length; `Ok(None)` for what RFC 9110 says to ignore.
fn range(text: &str, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return Ok(None);
    };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let Ok(suffix) = last.parse::<u64>() else { return Ok(None) };
        let length = suffix.min(size);
        return if length == 0 { Err(()) } else { Ok(Some((size - length, length))) };
    }
    let Ok(start) = first.parse::<u64>() else { return Ok(None) };
    let end = if last.is_empty() { u64::MAX } else { last.parse().unwrap_or(0) };
    if last.parse::<u64>().is_err() && !last.is_empty() || end < start {
        return Ok(None);
    }
    if start >= size { Err(()) } else { Ok(Some((start, end.min(size - 1) - start + 1))) }
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

/// Writes one file (octet-stream) or several files (multipart).
pub(crate) async fn post(
    State(settings): State<Arc<Settings>>,
    Query(params): Query<Params>,
    request: Request,
) -> Response {
    write(&settings, &params, request).await.unwrap_or_else(|response| response)
}

async fn write(settings: &Settings, params: &Params, request: Request) -> Result<Response, Response> {
    let user = admit(settings, request.headers(), params, "write").await?;
    let encoded = request.headers().get(header::CONTENT_ENCODING).is_some_and(|v| v != "identity");
    if encoded {
        return Err(error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the file without Content-Encoding"));
    }
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let bad = |text: String| error(StatusCode::BAD_REQUEST, text);
    let mut written = Vec::new();
    if kind.starts_with("multipart/form-data") {
        let pending = Arc::new(AtomicUsize::new(0));
        let request = without_endless_headers(request, &pending);
        let mut parts = Multipart::from_request(request, &()).await.map_err(|e| bad(e.to_string()))?;
        while let Some(part) = parts.next_field().await.map_err(|e| bad(e.body_text()))? {
            pending.store(0, Ordering::Relaxed);
            if part.name() != Some("file") {
                continue;
            }
            let given = params.path.clone().or_else(|| part.file_name().map(str::to_owned));
            let Some(given) = given else {
                return Err(bad("a part has no filename and there is no ?path".into()));
            };
            let content = part.map(|piece| {
                pending.store(0, Ordering::Relaxed);
                piece.map_err(|e| e.body_text())
            });
            written.push(store(&given, &user, params.atomic, content).await?);
        }
        if written.is_empty() {
            return Err(bad("the form has no part named `file`".into()));
        }
    } else {
        let Some(given) = &params.path else { return Err(bad("?path is missing".into())) };
        let body = request.into_body().into_data_stream().map(|r| r.map_err(|e| e.to_string()));
        written.push(store(given, &user, params.atomic, body).await?);
    }
    Ok(Json(written).into_response())
}

/// The request, whose body breaks off when the form's parser gets more and more and finds nothing in it: it would keep all
/// of that in memory. Who takes something from the parser sets `pending` to 0.
fn without_endless_headers(request: Request, pending: &Arc<AtomicUsize>) -> Request {
    let pending = Arc::clone(pending);
    request.map(|body| {
        Body::from_stream(body.into_data_stream().map(move |piece| {
            let piece = piece.map_err(io::Error::other)?;
            if pending.fetch_add(piece.len(), Ordering::Relaxed) > UNPARSED {
                return Err(io::Error::other(format!(
                    "the form has {UNPARSED} bytes that are no content of a part"
                )));
            }
            Ok(piece)
        }))
    })
}

async fn store(
    given: &str,
    user: &User,
    atomic: bool,
    data: impl Stream<Item = Result<Bytes, String>>,
) -> Result<Value, Response> {
    let path = paths::resolve(given, user).map_err(|e| error(StatusCode::BAD_REQUEST, e.to_string()))?;
    let (place, owner) = (path.clone(), user.clone());
    let opened = tokio::task::spawn_blocking(move || Upload::open(&place, &owner, atomic)).await;
    let mut upload = opened.map_err(io::Error::other).flatten().map_err(|e| failed("write", &path, &e))?;
    let mut data = std::pin::pin!(data);
    while let Some(piece) = data.next().await {
        let piece =
            piece.map_err(|e| error(StatusCode::BAD_REQUEST, format!("the upload broke off: {e}")))?;
        upload.file.write_all(&piece).await.map_err(|e| failed("write", &path, &e))?;
    }
    upload.finish().await.map_err(|e| failed("write", &path, &e))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(json!({"name": name, "path": path.to_string_lossy(), "type": "file"}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ranges() {
        assert_eq!(range("bytes=0-9", 100), Ok(Some((0, 10))));
        assert_eq!(range("bytes=90-", 100), Ok(Some((90, 10))));
        assert_eq!(range("bytes=-5", 100), Ok(Some((95, 5))));
        assert_eq!(range("bytes=50-500", 100), Ok(Some((50, 50))));
        assert_eq!(range("bytes=100-", 100), Err(()));
        assert_eq!((range("lines=1-2", 100), range("bytes=5-2", 100)), (Ok(None), Ok(None)));
    }
}
