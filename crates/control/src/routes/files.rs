//! Upload and download of files, streamed: no file is ever in memory as a whole.

use std::{pin::pin, time::Duration};

use axum::{
    Extension,
    body::Body as HttpBody,
    extract::{
        Multipart, State,
        multipart::{Field, MultipartRejection},
    },
    response::Response,
};
use connectrpc::ConnectError;
use futures::{SinkExt as _, channel::mpsc, stream};
use http::{StatusCode, header};
use serde::Deserialize;
use utoipa::ToSchema;
use wrenn_api::{ErrorCode, ReadFile};
use wrenn_rpc::host::v1::{
    __buffa::oneof::{read_file_response, write_file_request::Part},
    ReadFileRequest, WriteFileRequest,
    write_file_request::{Commit, Open},
};

use super::{
    download,
    progress::{By, moving},
    refusals::OfFiles,
    surround::InWork,
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

/// What is wrong with a form, in our words.
fn bad_form(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::invalid(format!("the body is not the documented form: {error}"))
}

async fn next_field(form: &mut Multipart) -> Result<Option<Field<'_>>, ApiError> {
    moving(By::ClientSends, form.next_field()).await?.map_err(|error| bad_form(&error))
}

async fn next_chunk(field: &mut Field<'_>) -> Result<Option<bytes::Bytes>, ApiError> {
    moving(By::ClientSends, field.chunk()).await?.map_err(|error| bad_form(&error))
}

/// The whole of a part that is no larger than `max` bytes.
async fn whole(field: &mut Field<'_>, max: usize, too_large: &str) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = next_chunk(field).await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > max {
            drain(field, max).await;
            return Err(ApiError::invalid(too_large));
        }
    }
    Ok(bytes)
}

async fn path_of(field: &mut Field<'_>) -> Result<String, ApiError> {
    let too_large = format!("path: 1 to {PATH_MAX} characters without NUL");
    let bytes = whole(field, PATH_MAX * CHARACTER, &too_large).await?;
    let path = String::from_utf8(bytes).map_err(|_| ApiError::invalid("path: it must be UTF-8"))?;
    check_path(&path)?;
    Ok(path)
}

fn message(part: Part) -> WriteFileRequest {
    WriteFileRequest { part: Some(part), ..Default::default() }
}

/// Reads what is left of a refused upload, within bounds, so that the client gets to read the answer.
async fn drain(field: &mut Field<'_>, max: usize) {
    let rest = async {
        let mut read = 0;
        while let Ok(Some(chunk)) = field.chunk().await {
            read += chunk.len();
            if read > max {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN, rest).await;
}

/// Passes the content of the form's next part on.
async fn feed(
    form: &mut Multipart,
    pieces: &mut mpsc::Sender<WriteFileRequest>,
    max: usize,
) -> Result<(), ApiError> {
    let missing = || ApiError::invalid("the form's second part must be `file`");
    let field = next_field(form).await?;
    let mut field = field.filter(|field| field.name() == Some("file")).ok_or_else(missing)?;
    let mut size = 0;
    while let Some(chunk) = next_chunk(&mut field).await? {
        size += chunk.len();
        if size > max {
            drain(&mut field, max).await;
            let message = format!("the file is larger than {max} bytes");
            return Err(ApiError::new(ErrorCode::TooLarge, message));
        }
        if moving(By::SandboxTakes, pieces.send(message(Part::Chunk(chunk.into())))).await?.is_err() {
            // The agent has refused; its answer says why.
            drain(&mut field, max).await;
            return Ok(());
        }
    }
    Ok(())
}

/// Nothing may follow: a part that is not understood must not be taken for understood.
async fn end_of(form: &mut Multipart) -> Result<(), ApiError> {
    match next_field(form).await? {
        None => Ok(()),
        Some(field) => Err(ApiError::invalid(format!(
            "the form has a part {:?} after `path` and `file`: send these two only",
            field.name().unwrap_or_default()
        ))),
    }
}

/// Write a file.
///
/// Missing parent directories are created. The upload replaces the file only when it is complete; if it fails, the old file
/// stays.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/write", operation_id = "writeFile", tag = "files", security(("api_key" = [])),
    params(
        ("id" = String, Path, description = "Id of the sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body(content = Upload, content_type = "multipart/form-data"),
    responses((status = 204, description = "The file is written."), OfFiles)
)]
pub(super) async fn write(
    State(app): State<App>,
    target: Target,
    form: Result<Multipart, MultipartRejection>,
) -> Result<StatusCode, ApiError> {
    let agent = service::running_apart(&app, target.team, target.id).await?;
    let mut form = form.map_err(|_| {
        let message = "send the file as multipart/form-data, with the parts `path` and `file`";
        ApiError::new(ErrorCode::UnsupportedMediaType, message)
    })?;
    let target = target.id.to_string();
    let mut early = None;
    loop {
        let field = next_field(&mut form).await?;
        let missing = || ApiError::invalid("the form must have two parts: `path`, then `file`");
        let mut field = field.ok_or_else(missing)?;
        if field.name() == Some("file") && early.is_none() {
            let too_large = "the part `path` must come before `file` when the file is larger than 1 MiB";
            early = Some(whole(&mut field, EARLY_MAX, too_large).await?);
            continue;
        }
        if field.name() != Some("path") {
            return Err(missing());
        }
        let path = path_of(&mut field).await?;
        drop(field);
        let Some(content) = early else { return write_streamed(&app, &agent, &target, path, form).await };
        end_of(&mut form).await?;
        let parts = [open(&target, path), message(Part::Chunk(content)), commit()];
        settled(agent.write_file(connectrpc::stream_iter(parts))).await?;
        return Ok(StatusCode::NO_CONTENT);
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
    mut form: Multipart,
) -> Result<StatusCode, ApiError> {
    let (mut pieces, requests) = mpsc::channel(PENDING);
    let _ = pieces.send(open(sandbox, path)).await;
    let mut writing = pin!(agent.write_file(requests));
    let mut feeding = pin!(async move {
        // Dropped without a commit, the agent leaves the file as it was.
        feed(&mut form, &mut pieces, app.limits.upload_body).await?;
        end_of(&mut form).await?;
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
    Extension(in_work): Extension<InWork>,
    target: Target,
    body: Body<ReadFile>,
) -> Result<Response, ApiError> {
    check_path(&body.value.path)?;
    let agent = service::running_apart(&app, target.team, target.id).await?;
    let request =
        ReadFileRequest { sandbox_id: target.id.to_string(), path: body.value.path, ..Default::default() };
    let mut parts = moving(By::SandboxSends, agent.read_file(request)).await??;
    let nothing = || ApiError::new(ErrorCode::AgentError, "the sandbox's host sent no file; try again");
    let first =
        moving(By::SandboxSends, parts.message()).await??.ok_or_else(nothing)?.to_owned_message().part;
    let Some(read_file_response::Part::Size(size)) = first else { return Err(nothing()) };
    let content = stream::try_unfold(parts, async |mut parts| {
        loop {
            let Some(message) = parts.message().await? else { return Ok::<_, ApiError>(None) };
            if let Some(read_file_response::Part::Chunk(bytes)) = message.to_owned_message().part {
                return Ok(Some((bytes::Bytes::from(bytes), parts)));
            }
        }
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, size)
        .body(HttpBody::from_stream(download::body(content, in_work)))
        .map_err(|error| ApiError::new(ErrorCode::InternalError, error.to_string()))
}
