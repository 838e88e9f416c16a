// SPDX-License-Identifier: Apache-2.0
//! Upload and download of files, streamed: no file is ever in memory as a whole.

use std::{pin::pin, time::Duration};

use axum::{
    body::Body as HttpBody,
    extract::{Query, Request, State, rejection::QueryRejection},
    response::Response,
};
use connectrpc::ConnectError;
use futures::{SinkExt as _, channel::mpsc, stream};
use http::{StatusCode, header};
use serde::Deserialize;
use utoipa::ToSchema;
use wrenn_api::{ErrorCode, ReadFile, SandboxId};
use wrenn_rpc::{
    Foreign,
    host::v1::{
        __buffa::oneof::{read_file_response, write_file_request::Part},
        ReadFileRequest, WriteFileRequest,
        write_file_request::{Commit, Open},
    },
};

use super::{
    form::{self, Form},
    progress::{By, moving},
    refusals::OfFiles,
};
use crate::{
    agents::AgentClient,
    error::ApiError,
    extract::{Body, Target},
    sandboxes as service,
    state::App,
};

/// Maximum length of a path, in characters.
const PATH_MAX: usize = 4096;
/// Maximum length of a UTF-8 character, in bytes.
const CHARACTER: usize = 4;
/// Maximum size of a file that is sent before its path, in bytes; it is buffered in memory.
const EARLY_MAX: usize = 1 << 20;
/// Number of buffered pieces of an upload.
const PENDING: usize = 4;
/// Time limit for reading the rest of a rejected upload, so that the client sees the response.
const DRAIN: Duration = Duration::from_secs(10);
/// Time limit for a guest to write the whole file to its disk, which may be slow.
const SETTLE: Duration = Duration::from_secs(600);

/// A file to write.
#[derive(ToSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"path": "hello.txt", "file": "hello\n"}))]
#[allow(dead_code, reason = "describes the form; its parts are read one by one")]
pub(super) struct Upload {
    /// Path of the file: absolute, or relative to the home directory of the template's default user. Send this part before
    /// `file`; for files up to 1 MiB any order works.
    #[schema(min_length = 1, max_length = 4096, pattern = "^[^\\x00]*[^\\x00/.][.]*$")]
    path: String,
    /// The content, at most 100 MiB unless configured otherwise.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Content of a file.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "describes the body, which is streamed")]
pub(super) struct Content(Vec<u8>);

fn check_path(path: &str) -> Result<(), ApiError> {
    if path.is_empty() || path.chars().count() > PATH_MAX || path.contains('\0') {
        return Err(ApiError::invalid(format!("path: 1 to {PATH_MAX} characters without NUL")));
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    if name.bytes().all(|byte| byte == b'.') {
        return Err(ApiError::invalid(
            "path: it ends with '/' or with dots only, so it names a directory, not a file",
        ));
    }
    Ok(())
}

/// Reads a whole part of at most `max` bytes.
async fn whole(part: &mut form::Part<'_>, max: usize, too_large: &str) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = part.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > max {
            drain(part, max).await;
            return Err(ApiError::invalid(too_large));
        }
    }
    Ok(bytes)
}

async fn path_of(part: &mut form::Part<'_>) -> Result<String, ApiError> {
    let too_large = format!("path: 1 to {PATH_MAX} characters without NUL");
    let bytes = whole(part, PATH_MAX * CHARACTER, &too_large).await?;
    let path = String::from_utf8(bytes).map_err(|_| ApiError::invalid("path: it must be UTF-8"))?;
    check_path(&path)?;
    Ok(path)
}

fn message(part: Part) -> WriteFileRequest {
    WriteFileRequest { part: Some(part), ..Default::default() }
}

/// Reads the rest of a rejected upload, within limits, so that the client reads the response.
async fn drain(part: &mut form::Part<'_>, max: usize) {
    let rest = async {
        let mut read = 0;
        while let Ok(Some(chunk)) = part.chunk().await {
            read += chunk.len();
            if read > max {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN, rest).await;
}

/// Sends the content of a part to the agent.
async fn feed(
    part: &mut form::Part<'_>,
    pieces: &mut mpsc::Sender<WriteFileRequest>,
    max: usize,
) -> Result<(), ApiError> {
    let mut size = 0;
    while let Some(chunk) = part.chunk().await? {
        size += chunk.len();
        if size > max {
            drain(part, max).await;
            let message = format!("the file is larger than {max} bytes (server.upload_body)");
            return Err(ApiError::new(ErrorCode::TooLarge, message));
        }
        if moving(By::SandboxTakes, pieces.send(message(Part::Chunk(chunk.into())))).await?.is_err() {
            // The agent rejected it; its response has the reason.
            drain(part, max).await;
            return Ok(());
        }
    }
    Ok(())
}

/// Error for an unknown part, which must not be ignored silently.
fn unexpected(part: &form::Part<'_>) -> ApiError {
    let name = part.name().unwrap_or_default();
    ApiError::invalid(format!(
        "the form has a part {} too many: send `path` and `file`, once each",
        Foreign(name)
    ))
}

/// Sends a form's file to the agent, when its path is known. `named` is true if the form itself contained the
/// path.
async fn pass_on(
    mut form: Form,
    path: &str,
    mut named: bool,
    pieces: &mut mpsc::Sender<WriteFileRequest>,
    max: usize,
) -> Result<(), ApiError> {
    let mut passed = false;
    while let Some(mut part) = form.next().await? {
        match part.name() {
            Some("file") if !passed => {
                feed(&mut part, pieces, max).await?;
                passed = true;
            }
            Some("path") if !named => {
                if path_of(&mut part).await? != path {
                    return Err(ApiError::invalid(
                        "the part `path` and the parameter `path` differ: send one",
                    ));
                }
                named = true;
            }
            _ => return Err(unexpected(&part)),
        }
    }
    if passed { Ok(()) } else { Err(ApiError::invalid("the form has no part `file`")) }
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
    post, path = "/v1/sandboxes/{id}/files/write", operation_id = "writeFile", tag = "files", security(("api_key" = [])),
    params(
        ("id" = String, Path, description = "Id of the sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("path" = Option<String>, Query, description = "Where to write the file. With it the parts of the form may come in any order; without it the part `path` comes before a file of more than 1 MiB.",
            min_length = 1, max_length = 4096, pattern = "^[^\\x00]*[^\\x00/.][.]*$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body(content = Upload, content_type = "multipart/form-data"),
    responses((status = 204, description = "The file is written."), OfFiles)
)]
pub(super) async fn write(
    State(app): State<App>,
    target: Target,
    to: Result<Query<WriteTo>, QueryRejection>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let malformed = |_| ApiError::invalid("the query is malformed: the only parameter is path, in UTF-8");
    let Query(to) = to.map_err(malformed)?;
    to.path.as_deref().map(check_path).transpose()?;
    let agent = service::running_apart(&app, target.team, target.id).await?;
    let mut form = Form::of(request).await?;
    let sandbox = target.id.to_string();
    if let Some(path) = to.path {
        return write_streamed(&app, &agent, &sandbox, path, false, form).await;
    }
    let missing = || ApiError::invalid("the form must have two parts: `path`, then `file`");
    let mut first = form.next().await?.ok_or_else(missing)?;
    match first.name() {
        Some("path") => {
            let path = path_of(&mut first).await?;
            drop(first);
            write_streamed(&app, &agent, &sandbox, path, true, form).await
        }
        Some("file") => {
            let _held = app.admission.memory.try_take(target.team, EARLY_MAX)?;
            let too_large = "the file is larger than 1 MiB and comes before the part `path`: send `path` first, or as a parameter of the query";
            let content = whole(&mut first, EARLY_MAX, too_large).await?;
            drop(first);
            let mut second = form.next().await?.ok_or_else(missing)?;
            if second.name() != Some("path") {
                return Err(unexpected(&second));
            }
            let path = path_of(&mut second).await?;
            drop(second);
            if let Some(part) = form.next().await? {
                return Err(unexpected(&part));
            }
            let parts = [open(&sandbox, path), message(Part::Chunk(content)), commit()];
            settled(agent.write_file(connectrpc::stream_iter(parts))).await?;
            Ok(StatusCode::NO_CONTENT)
        }
        _ => Err(missing()),
    }
}

fn open(sandbox: &str, path: String) -> WriteFileRequest {
    message(Part::Open(Open { sandbox_id: sandbox.to_owned(), path, ..Default::default() }.into()))
}

fn commit() -> WriteFileRequest {
    message(Part::Commit(Commit::default().into()))
}

/// Waits for the response to a write that was sent completely.
async fn settled<T>(writing: impl Future<Output = Result<T, ConnectError>>) -> Result<(), ApiError> {
    let late = |_| {
        let message = format!(
            "the sandbox did not bring the file to its disk within {} s; try again, or see whether its guest works",
            SETTLE.as_secs()
        );
        ApiError::new(ErrorCode::Timeout, message)
    };
    tokio::time::timeout(SETTLE, writing).await.map_err(late)??;
    Ok(())
}

/// The usual case: the path comes first, the file follows.
async fn write_streamed(
    app: &App,
    agent: &AgentClient,
    sandbox: &str,
    path: String,
    named: bool,
    form: Form,
) -> Result<StatusCode, ApiError> {
    let (mut pieces, requests) = mpsc::channel(PENDING);
    let _ = pieces.send(open(sandbox, path.clone())).await;
    let mut writing = pin!(agent.write_file(requests));
    let mut feeding = pin!(async move {
        // If dropped without a commit, the agent leaves the file unchanged.
        pass_on(form, &path, named, &mut pieces, app.limits.upload_body).await?;
        let _ = moving(By::SandboxTakes, pieces.send(commit())).await?;
        Ok::<_, ApiError>(())
    });
    tokio::select! {
        written = &mut writing => {
            // Rejected. The client reads the response after it has sent everything.
            feeding.await?;
            written?;
        }
        fed = &mut feeding => {
            fed?;
            settled(writing).await?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Read a file.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/read", operation_id = "readFile", tag = "files", security(("api_key" = [])),
    params(
        ("id" = String, Path, description = "Id of the sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = ReadFile,
    responses((status = 200, description = "The content of the file.", body = inline(Content),
        content_type = "application/octet-stream"), OfFiles)
)]
pub(super) async fn read(
    State(app): State<App>,
    target: Target,
    body: Body<ReadFile>,
) -> Result<Response, ApiError> {
    check_path(&body.value.path)?;
    let agent = service::running_apart(&app, target.team, target.id).await?;
    download(&agent, target.id, body.value.path).await
}

/// Returns the content of a file as a response body. If the content breaks off, so does the response: a
/// client must not take it for the whole file.
pub(super) async fn download(
    agent: &AgentClient,
    sandbox: SandboxId,
    path: String,
) -> Result<Response, ApiError> {
    let request = ReadFileRequest { sandbox_id: sandbox.to_string(), path, ..Default::default() };
    let mut parts = moving(By::SandboxSends, agent.read_file(request)).await??;
    let nothing = || ApiError::new(ErrorCode::AgentError, "the sandbox's host sent no file; try again");
    let first =
        moving(By::SandboxSends, parts.message()).await??.ok_or_else(nothing)?.to_owned_message().part;
    let size = match first {
        Some(read_file_response::Part::Size(size)) => Some(size),
        Some(read_file_response::Part::Unsized(_)) => None,
        _ => return Err(nothing()),
    };
    let content = stream::try_unfold((parts, size), async |(mut parts, left)| {
        loop {
            let Some(message) = moving(By::SandboxSends, parts.message()).await?? else {
                return match left {
                    None | Some(0) => Ok::<_, ApiError>(None),
                    Some(_) => Err(shrunk()),
                };
            };
            let Some(read_file_response::Part::Chunk(bytes)) = message.to_owned_message().part else {
                continue;
            };
            let mut bytes = bytes::Bytes::from(bytes);
            // Data appended after the size was announced is not sent.
            bytes.truncate(left.map_or(bytes.len(), |left| usize::try_from(left).unwrap_or(usize::MAX)));
            let left = left.map(|left| left - bytes.len() as u64);
            return Ok(Some((bytes, (parts, left))));
        }
    });
    let mut response = Response::builder().header(header::CONTENT_TYPE, "application/octet-stream");
    if let Some(size) = size {
        response = response.header(header::CONTENT_LENGTH, size);
    }
    response.body(HttpBody::from_stream(content)).map_err(|error| {
        tracing::error!(%error, "an answer cannot be made");
        ApiError::new(ErrorCode::InternalError, "the control plane could not do this; its log says why")
    })
}

fn shrunk() -> ApiError {
    ApiError::new(ErrorCode::Conflict, "the file became shorter while it was read; read it again")
}
