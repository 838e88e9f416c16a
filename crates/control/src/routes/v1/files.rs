// SPDX-License-Identifier: Apache-2.0
//! Upload of files in forms, and download by requests in JSON, streamed from and to the client.

use axum::{
    extract::{Query, RawQuery, Request, State, rejection::QueryRejection},
    response::Response,
};
use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use utoipa::ToSchema;
use wrenn_api::ReadFile;
use wrenn_rpc::Foreign;

use super::{
    download::{BYTES, Content, render},
    error_responses::OfFiles,
    extract::{Body, Target},
    form::{Form, Part},
};
use crate::{
    error::Fault,
    sandboxes::{Attached, Conditions, Destination, FilePath, OfUser, Rights, Upload},
    services::Services,
};

/// Maximum size of a file that is sent before its path, in bytes; it is buffered in memory.
const EARLY_MAX: usize = 1 << 20;

/// A file to write.
#[derive(ToSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schema(as = Upload, example = json!({"path": "hello.txt", "file": "hello\n"}))]
#[allow(dead_code, reason = "describes the form; its parts are read one by one")]
pub(super) struct UploadForm {
    /// Path of the file: absolute, or relative to the home directory of the template's default user. Send this part before
    /// `file`; for files up to 1 MiB any order works.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]*[^\\x00/.][.]*$")]
    path: String,
    /// The content, at most 100 MiB unless configured otherwise.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Query parameters for clients that cannot send the part `path` first.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteTo {
    path: Option<String>,
}

/// Write a file.
///
/// Missing parent directories are created. The upload replaces the file only when it is complete; if it fails, the old file
/// stays.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/write", operation_id = "writeFile", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("path" = Option<String>, Query, description = "Where to write the file. With it the parts of the form may come in any order; without it the part `path` comes before a file of more than 1 MiB.",
            min_length = 1, max_length = 4096, pattern = "^[^\\x00]*[^\\x00/.][.]*$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 204, description = "The file is written."), OfFiles)
)]
pub(super) async fn write(
    State(services): State<Services>,
    target: Target,
    to: Result<Query<WriteTo>, QueryRejection>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<StatusCode, Fault> {
    let max = Some(services.state().limits.upload_body);
    write_form(&services, &target, Where { to, query }, request, max).await
}

/// Write a file of any size.
///
/// As `writeFile`, but a file may be as large as the disk of the sandbox; one of more than 1 MiB comes after the part `path`.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/stream/write", operation_id = "streamWriteFile", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("path" = Option<String>, Query, description = "Where to write the file. With it the parts of the form may come in any order; without it the part `path` comes before a file of more than 1 MiB.",
            min_length = 1, max_length = 4096, pattern = "^[^\\x00]*[^\\x00/.][.]*$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 204, description = "The file is written."), OfFiles)
)]
pub(super) async fn stream_write(
    State(services): State<Services>,
    target: Target,
    to: Result<Query<WriteTo>, QueryRejection>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<StatusCode, Fault> {
    write_form(&services, &target, Where { to, query }, request, None).await
}

/// The query of a form, parsed and as it came.
struct Where {
    to: Result<Query<WriteTo>, QueryRejection>,
    query: Option<String>,
}

/// Writes the file of a form, of at most `max` bytes.
async fn write_form(
    services: &Services,
    target: &Target,
    Where { to, query }: Where,
    request: Request,
    max: Option<usize>,
) -> Result<StatusCode, Fault> {
    let malformed = || Fault::invalid("the query is malformed: the only parameter is path, in UTF-8");
    let Query(to) = to.map_err(|_| malformed())?;
    // The parser of queries replaces invalid bytes: the file would be written to another path.
    if percent_decode_str(&query.unwrap_or_default()).decode_utf8().is_err() {
        return Err(malformed());
    }
    let path = to.path.map(FilePath::new).transpose()?;
    let sandbox = services.sandboxes().attach(&target.caller, target.id).await?;
    let mut form = Form::of(request).await?;
    if let Some(path) = path {
        return write_streamed(&sandbox, path, max, false, form).await;
    }
    let mut first = form.next().await?.ok_or_else(missing)?;
    match first.name() {
        Some("path") => {
            let path = path_of(&mut first).await?;
            drop(first);
            write_streamed(&sandbox, path, max, true, form).await
        }
        Some("file") => {
            let team = target.caller.team().uuid();
            let _held = services.state().admission.memory.try_take(team, EARLY_MAX)?;
            let content = read_all(&mut first, EARLY_MAX, early_too_large).await?;
            drop(first);
            write_early(&sandbox, content, max, form).await
        }
        _ => Err(missing()),
    }
}

/// Read a file.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/read", operation_id = "readFile", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = ReadFile,
    responses((status = 200, description = "The content of the file.", body = inline(Content),
        content_type = "application/octet-stream"), OfFiles)
)]
pub(super) async fn read(
    State(services): State<Services>,
    target: Target,
    body: Body<ReadFile>,
) -> Result<Response, Fault> {
    let path = FilePath::new(body.value.path)?;
    let sandbox = services.sandboxes().attach(&target.caller, target.id).await?;
    render(sandbox.read_file(path, OfUser::default(), Conditions::default()).await?, BYTES)
}

/// Read a file of any size.
///
/// The same as `readFile`. What fails before the first byte is an error; what breaks off later breaks the response off.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/stream/read", operation_id = "streamReadFile", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = ReadFile,
    responses((status = 200, description = "The content of the file.", body = inline(Content),
        content_type = "application/octet-stream"), OfFiles)
)]
pub(super) async fn stream_read(
    state: State<Services>,
    target: Target,
    body: Body<ReadFile>,
) -> Result<Response, Fault> {
    read(state, target, body).await
}

/// Writes a file whose path is known, which is the usual case. `named` is true if the form itself contained
/// the path.
async fn write_streamed(
    sandbox: &Attached,
    path: FilePath,
    max: Option<usize>,
    named: bool,
    form: Form,
) -> Result<StatusCode, Fault> {
    let known = path.clone();
    sandbox.write_file(destination(path, max), |upload| pass_on(form, known, named, upload)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sends a form's file to the sandbox.
async fn pass_on(
    mut form: Form,
    path: FilePath,
    mut named: bool,
    mut upload: Upload,
) -> Result<Upload, Fault> {
    let mut passed = false;
    while let Some(mut part) = form.next().await? {
        match part.name() {
            Some("file") if !passed => {
                if !feed(&mut part, &mut upload).await? {
                    // The reason comes from the sandbox; the rest of the form does not matter.
                    return Ok(upload);
                }
                passed = true;
            }
            Some("path") if !named => {
                if path_of(&mut part).await? != path {
                    return Err(Fault::invalid("the part `path` and the parameter `path` differ: send one"));
                }
                named = true;
            }
            _ => return Err(unexpected(&part)),
        }
    }
    if passed { Ok(upload) } else { Err(Fault::invalid("the form has no part `file`")) }
}

/// Sends the content of a part to the sandbox; returns false if that rejected it.
async fn feed(part: &mut Part<'_>, upload: &mut Upload) -> Result<bool, Fault> {
    while let Some(chunk) = part.chunk().await? {
        if !upload.send(chunk).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes a small file that the form has before its path.
async fn write_early(
    sandbox: &Attached,
    content: Vec<u8>,
    max: Option<usize>,
    mut form: Form,
) -> Result<StatusCode, Fault> {
    let mut second = form.next().await?.ok_or_else(missing)?;
    if second.name() != Some("path") {
        return Err(unexpected(&second));
    }
    let path = path_of(&mut second).await?;
    drop(second);
    if let Some(part) = form.next().await? {
        return Err(unexpected(&part));
    }
    let sending = async |mut upload: Upload| {
        upload.send(content.into()).await?;
        Ok(upload)
    };
    sandbox.write_file(destination(path, max), sending).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn destination(path: FilePath, max: Option<usize>) -> Destination {
    let to = Destination::file(path, OfUser::default(), Rights::default());
    match max {
        Some(max) => to.of_at_most(max),
        None => to,
    }
}

fn missing() -> Fault {
    Fault::invalid("the form must have two parts: `path`, then `file`")
}

fn early_too_large() -> Fault {
    Fault::invalid(
        "the file is larger than 1 MiB and comes before the part `path`: send `path` first, or as a parameter of the query",
    )
}

/// Reads a whole part of at most `max` bytes.
async fn read_all(part: &mut Part<'_>, max: usize, too_large: fn() -> Fault) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    while let Some(chunk) = part.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > max {
            return Err(too_large());
        }
    }
    Ok(bytes)
}

async fn path_of(part: &mut Part<'_>) -> Result<FilePath, Fault> {
    let bytes = read_all(part, FilePath::MAX, FilePath::wrong_length).await?;
    FilePath::new(String::from_utf8(bytes).map_err(|_| Fault::invalid("path: it must be UTF-8"))?)
}

/// Error for an unknown part, which must not be ignored silently.
fn unexpected(part: &Part<'_>) -> Fault {
    let name = part.name().unwrap_or_default();
    Fault::invalid(format!(
        "the form has a part {} too many: send `path` and `file`, once each",
        Foreign(name)
    ))
}
