// SPDX-License-Identifier: Apache-2.0
//! `POST /files`: writes one file (octet-stream) or several files (multipart), also gzipped.

use std::{
    collections::HashSet,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{FromRequest as _, Multipart, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, BufWriter};

use super::{Caller, Params, admit, coding, failed, gzip};
use crate::{
    log,
    metadata::{self, Metadata},
    respond::error,
    settings::Settings,
    unread,
    upload::{Rights, Upload},
    users::Ids,
};

/// Bytes of a form in which its parser may find nothing.
const UNPARSED: usize = 256 << 10;
/// Number of bytes that are written at a time: each write is one of another thread, and requests come in smaller pieces.
const WRITTEN: usize = 128 << 10;
/// Maximum number of files of a form: their names are kept until the answer.
const FILES: usize = 65_536;

/// Writes one file (octet-stream) or several files (multipart).
pub(crate) async fn post(
    State(settings): State<Arc<Settings>>,
    Query(params): Query<Params>,
    request: Request,
) -> Response {
    write(&settings, &params, request).await.unwrap_or_else(|response| response)
}

async fn write(settings: &Settings, params: &Params, request: Request) -> Result<Response, Response> {
    let caller = admit(settings, request.headers(), params, "write").await?;
    let request = unread::discarding(request);
    let metadata = metadata::given(request.headers()).map_err(|e| bad(e.to_string()))?;
    let gzipped = coding::is_gzipped(request.headers())
        .map_err(|coding| bad(format!("Content-Encoding '{coding}' is not supported; send gzip or none")))?;
    let request = if gzipped { decompressed(request) } else { request };
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let rights = rights(settings, params, request.headers()).await?;
    let writer = Writer { caller, metadata, rights, atomic: params.atomic, request: request_id(&request) };
    let written = match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/octet-stream" => {
            let path = params.path.as_deref().ok_or_else(|| bad("?path is missing".into()))?;
            let path = writer.caller.resolve(path)?;
            let body = request.into_body().into_data_stream().map(|r| r.map_err(|e| told(&e)));
            vec![writer.store(path, body).await?]
        }
        "multipart/form-data" => writer.store_form(params.path.as_deref(), request).await?,
        _ => {
            let shown: String = kind.chars().take(128).collect();
            return Err(bad(format!(
                "the content type '{shown}' is not supported; send multipart/form-data or application/octet-stream"
            )));
        }
    };
    Ok(Json(written).into_response())
}

/// Reads the rights that the files get. Signatures do not cover them, so that they need the token.
async fn rights(settings: &Settings, params: &Params, headers: &HeaderMap) -> Result<Rights, Response> {
    let Params { mode, owner, group, .. } = params;
    if [mode, owner, group].iter().all(|given| given.is_none()) {
        return Ok(Rights::default());
    }
    if !settings.admits(headers.get("x-access-token").and_then(|v| v.to_str().ok())) {
        let text = "mode, owner and group need the X-Access-Token header: a signature does not cover them";
        return Err(error(StatusCode::UNAUTHORIZED, text));
    }
    let octal = |text: &String| u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    let none = || bad("mode must be 0 to 7777 in octal digits".into());
    let mode = mode.as_ref().map(|text| octal(text).ok_or_else(none)).transpose()?;
    let name = |text: &Option<String>| text.clone().unwrap_or_default();
    let ids = Ids::find(&name(owner), &name(group)).await.map_err(|e| bad(e.to_string()))?;
    Ok(Rights { mode, ids })
}

fn bad(text: String) -> Response {
    error(StatusCode::BAD_REQUEST, text)
}

fn request_id(request: &Request) -> Option<String> {
    log::request_id(request.headers()).map(str::to_owned)
}

/// Returns the innermost cause of an error, which is ours or that of the connection.
fn told(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// The request with its body decompressed. What that makes is bounded as any body is.
fn decompressed(request: Request) -> Request {
    let mut request = request.map(|body| {
        let pieces = body.into_data_stream().map(|piece| piece.map_err(io::Error::other));
        Body::from_stream(gzip::decompress(pieces))
    });
    request.headers_mut().remove(header::CONTENT_ENCODING);
    request.headers_mut().remove(header::CONTENT_LENGTH);
    request
}

/// The request, whose body breaks off when the form's parser gets more and more and finds nothing in it: it would keep all
/// of that in memory. Who takes something from the parser sets `pending` to 0.
fn without_endless_headers(request: Request, pending: &Arc<AtomicUsize>) -> Request {
    let pending = Arc::clone(pending);
    request.map(|body| {
        let pieces = body.into_data_stream().enumerate().then(async |(number, piece)| {
            // The parser takes all pieces that are there before it looks at them: now it has to look. For the first boundary it
            // does so only when it begins.
            if number > 0 {
                tokio::task::yield_now().await;
            }
            piece
        });
        Body::from_stream(pieces.map(move |piece| {
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

/// Writes the files of one request.
struct Writer {
    caller: Caller,
    metadata: Metadata,
    rights: Rights,
    atomic: bool,
    /// Id of the request, for the log.
    request: Option<String>,
}

impl Writer {
    async fn store_form(&self, path: Option<&str>, request: Request) -> Result<Vec<Value>, Response> {
        let pending = Arc::new(AtomicUsize::new(0));
        let request = without_endless_headers(request, &pending);
        let mut parts = Multipart::from_request(request, &()).await.map_err(|e| bad(e.to_string()))?;
        let mut written = Vec::new();
        let mut places = HashSet::new();
        while let Some(part) = parts.next_field().await.map_err(|e| bad(e.body_text()))? {
            pending.store(0, Ordering::Relaxed);
            if part.name() != Some("file") {
                continue;
            }
            let Some(given) = path.or_else(|| part.file_name()) else {
                return Err(bad("a part has no filename and there is no ?path".into()));
            };
            let place = self.caller.resolve(given)?;
            if !places.insert(place.clone()) {
                return Err(bad(format!(
                    "the form has two files for {}; the first one has been written",
                    place.display()
                )));
            }
            if written.len() == FILES {
                let text =
                    format!("the form has more than {FILES} files; the first {FILES} have been written");
                return Err(error(StatusCode::PAYLOAD_TOO_LARGE, text));
            }
            let content = part.map(|piece| {
                pending.store(0, Ordering::Relaxed);
                piece.map_err(|e| e.body_text())
            });
            written.push(self.store(place, content).await?);
        }
        Ok(written)
    }

    async fn store(
        &self,
        path: PathBuf,
        data: impl Stream<Item = Result<Bytes, String>>,
    ) -> Result<Value, Response> {
        let (place, owner, atomic) = (path.clone(), self.caller.user.clone(), self.atomic);
        let opened = tokio::task::spawn_blocking(move || Upload::open(&place, &owner, atomic)).await;
        let opened = opened.map_err(io::Error::other).flatten();
        let mut upload = opened.map_err(|e| failed("write", &path, &e))?;
        let mut data = std::pin::pin!(data);
        let mut file = BufWriter::with_capacity(WRITTEN, &mut upload.file);
        while let Some(piece) = data.next().await {
            let piece = piece.map_err(|e| bad(format!("the upload broke off: {e}")))?;
            file.write_all(&piece).await.map_err(|e| failed("write", &path, &e))?;
        }
        file.flush().await.map_err(|e| failed("write", &path, &e))?;
        let kept =
            upload.finish(&self.metadata, self.rights).await.map_err(|e| failed("write", &path, &e))?;
        if kept != self.metadata {
            let text = format_args!("{} keeps no metadata: its file system has none", path.display());
            log::line(self.request.as_deref(), text);
        }
        Ok(described(&path, &kept))
    }
}

/// Describes a written file.
pub(super) fn described(path: &std::path::Path, metadata: &Metadata) -> Value {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut entry = json!({"name": name, "path": path.to_string_lossy(), "type": "file"});
    if !metadata.is_empty() {
        entry["metadata"] = json!(metadata);
    }
    entry
}
