// SPDX-License-Identifier: Apache-2.0
//! Files and directories as bodies of requests and responses, of any size: files as they are, directories as tar archives.

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body_util::BodyExt as _;
use wrenn_api::{ErrorCode, WrittenArchive, WrittenFile};

use super::{
    download::{BYTES, Content, TAR, render},
    error_responses::{OfArchives, OfContent},
    extract::{Parameters, Target},
};
use crate::{
    caller::Principal,
    error::Fault,
    sandboxes::{AnyPath, Conditions, Destination, FilePath, OfUser, Rights, Upload},
    services::Services,
    stall::{By, moving},
};

/// Parameters of signed URLs, which are checked before.
const OF_SIGNATURE: [&str; 3] = ["expires", "key", "signature"];

/// Read a file as it is.
///
/// Files of any size are streamed. `Range` asks for one part; `If-Range`, `If-None-Match` and `If-Modified-Since` compare with
/// the version that the response names by `ETag` and `Last-Modified`. Files of /proc and /sys have no size in advance. If the
/// content breaks off, so does the response.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/files/content", operation_id = "readContent", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("path" = String, Query, description = "Path of the file: absolute, or relative to a home directory.",
            min_length = 1, max_length = 4096, pattern = "^[^\\x00]*[^\\x00/.][.]*$", example = "/etc/hostname"),
        ("user" = Option<String>, Query, description = "The user from whose home directory a relative path begins. Default: the template's default user.",
            min_length = 1, max_length = 256, pattern = "^[^\\x00]+$"),
        ("Range" = Option<String>, Header, description = "The part of the file, such as `bytes=0-99`, `bytes=100-` or `bytes=-100`. Several parts are not supported: then all of it is sent.", example = "bytes=0-99"),
        ("If-Range" = Option<String>, Header, description = "Send the part only of this version, and else all of the file."),
        ("If-None-Match" = Option<String>, Header, description = "Send nothing (304) of these versions."),
        ("If-Modified-Since" = Option<String>, Header, description = "Send nothing (304) if the file was not modified since."),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses(
        (status = 200, description = "The content of the file.", body = inline(Content), content_type = "application/octet-stream"),
        (status = 206, description = "A part of the content.", body = inline(Content), content_type = "application/octet-stream"),
        (status = 304, description = "The client has this version."),
        OfContent,
    )
)]
pub(super) async fn read(
    State(services): State<Services>,
    target: Target,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let [path, user] = known(&target, parameters, ["path", "user"])?;
    let (path, user) = (FilePath::new(required(path)?)?, OfUser::new(user)?);
    let field = |name: HeaderName| {
        let text = headers.get(&name).map(|value| value.to_str().map(str::to_owned)).transpose();
        text.map(Option::unwrap_or_default).map_err(|_| Fault::invalid(format!("{name} is not text")))
    };
    let conditions = Conditions {
        range: field(header::RANGE)?,
        if_range: field(header::IF_RANGE)?,
        if_none_match: field(header::IF_NONE_MATCH)?,
        if_modified_since: field(header::IF_MODIFIED_SINCE)?,
    };
    let sandbox = services.sandboxes().attach(&target.caller, target.id).await?;
    let mut response = render(sandbox.read_file(path, user, conditions).await?, BYTES)?;
    response.headers_mut().insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Ok(response)
}

/// Write a file as it is.
///
/// The body is the content, of any size that fits on the sandbox's disk. Missing parent directories are created. The file is
/// replaced when the content is complete, and the response comes when it is on the disk; if the request breaks off, the old
/// file stays. A file that is replaced keeps its mode, owner and group, unless others are given.
#[utoipa::path(
    put, path = "/v1/sandboxes/{id}/files/content", operation_id = "writeContent", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("path" = String, Query, description = "Path of the file: absolute, or relative to a home directory.",
            min_length = 1, max_length = 4096, pattern = "^[^\\x00]*[^\\x00/.][.]*$", example = "hello.txt"),
        ("user" = Option<String>, Query, description = "The user whom a new file belongs to, and from whose home directory a relative path begins. Default: the template's default user.",
            min_length = 1, max_length = 256, pattern = "^[^\\x00]+$"),
        ("mode" = Option<String>, Query, description = "Permission bits, in octal digits. Default: those of the file that is replaced, or 0644.", pattern = "^[0-7]{1,4}$", example = "0755"),
        ("owner" = Option<String>, Query, description = "The owner, by name or number.", min_length = 1, max_length = 256, pattern = "^[^\\x00]+$"),
        ("group" = Option<String>, Query, description = "The group, by name or number.", min_length = 1, max_length = 256, pattern = "^[^\\x00]+$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body(content = inline(Content), content_type = "application/octet-stream"),
    responses((status = 200, description = "The file is written.", body = WrittenFile), OfContent)
)]
pub(super) async fn write(
    State(services): State<Services>,
    target: Target,
    parameters: Parameters,
    request: Request,
) -> Result<Json<WrittenFile>, Fault> {
    let [path, user, mode, owner, group] =
        known(&target, parameters, ["path", "user", "mode", "owner", "group"])?;
    let (path, user) = (FilePath::new(required(path)?)?, OfUser::new(user)?);
    let rights = Rights::new(mode.as_deref(), owner, group)?;
    check(request.headers())?;
    let sandbox = services.sandboxes().attach(&target.caller, target.id).await?;
    let to = Destination::file(path, user, rights);
    let written = sandbox.write_file(to, |upload| pass_on(request.into_body(), upload)).await?;
    Ok(Json(WrittenFile { size: written.size, sha256: written.sha256 }))
}

/// Read a directory as a tar archive.
///
/// It has all that is in the directory, with paths relative to it: modes, owners as numbers, times, symbolic and hard links,
/// and holes of sparse files. Sockets are left out; a device is refused. It is read with the rights of the user, and what that
/// may not read is refused before the first byte.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/files/archive", operation_id = "readArchive", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("path" = String, Query, description = "Path of the directory: absolute, or relative to a home directory.",
            min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$", example = "/etc/default"),
        ("user" = Option<String>, Query, description = "The user with whose rights it is read, and from whose home directory a relative path begins. Default: the template's default user.",
            min_length = 1, max_length = 256, pattern = "^[^\\x00]+$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The archive.", body = inline(Content), content_type = "application/x-tar"), OfArchives)
)]
pub(super) async fn read_archive(
    State(services): State<Services>,
    target: Target,
    parameters: Parameters,
) -> Result<Response, Fault> {
    let [path, user] = parameters.known(["path", "user"])?;
    let (path, user) = (AnyPath::new("path", required(path)?)?, OfUser::new(user)?);
    let sandbox = services.sandboxes().attach(&target.caller, target.id).await?;
    render(sandbox.read_archive(path, user).await?, TAR)
}

/// Unpack a tar archive into a directory.
///
/// The directory is made if it is missing. Entries replace files and links, and directories are merged; modes and times are
/// those of the archive. It is unpacked with the rights of the user, whom everything belongs to; only if `user` is `root`,
/// owners are those of the archive. An entry that leads out of the directory, goes through a link, or is a device, is refused;
/// each file appears when it is complete, and what was unpacked before an error stays.
#[utoipa::path(
    put, path = "/v1/sandboxes/{id}/files/archive", operation_id = "writeArchive", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("path" = String, Query, description = "Path of the directory: absolute, or relative to a home directory.",
            min_length = 1, max_length = 4096, pattern = "^[^\\x00]+$", example = "project"),
        ("user" = Option<String>, Query, description = "The user with whose rights it is unpacked, and from whose home directory a relative path begins. Default: the template's default user.",
            min_length = 1, max_length = 256, pattern = "^[^\\x00]+$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body(content = inline(Content), content_type = "application/x-tar"),
    responses((status = 200, description = "The archive is unpacked.", body = WrittenArchive), OfArchives)
)]
pub(super) async fn write_archive(
    State(services): State<Services>,
    target: Target,
    parameters: Parameters,
    request: Request,
) -> Result<Json<WrittenArchive>, Fault> {
    let [path, user] = parameters.known(["path", "user"])?;
    let (path, user) = (AnyPath::new("path", required(path)?)?, OfUser::new(user)?);
    check(request.headers())?;
    let sandbox = services.sandboxes().attach(&target.caller, target.id).await?;
    let to = Destination::directory(path, user);
    let written = sandbox.write_file(to, |upload| pass_on(request.into_body(), upload)).await?;
    Ok(Json(WrittenArchive { entries: written.entries, size: written.size, sha256: written.sha256 }))
}

/// Reads the parameters of a request that may be one of a signed URL.
fn known<const N: usize>(
    target: &Target,
    Parameters(mut all): Parameters,
    names: [&str; N],
) -> Result<[Option<String>; N], Fault> {
    if matches!(target.caller.principal(), Principal::SignedUrl(_)) {
        all.retain(|(name, _)| !OF_SIGNATURE.contains(&name.as_str()));
    }
    Parameters(all).known(names)
}

fn required(path: Option<String>) -> Result<String, Fault> {
    path.ok_or_else(|| Fault::invalid("the parameter path is missing: name the file or directory"))
}

/// Refuses what would change the meaning of a body that is written, and is not supported.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Fault> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        let message = "send the content as it is, without Content-Encoding";
        return Err(Fault::new(ErrorCode::UnsupportedMediaType, message));
    }
    let unsupported =
        [header::CONTENT_RANGE, header::IF_MATCH, header::IF_NONE_MATCH, header::IF_UNMODIFIED_SINCE];
    match unsupported.iter().find(|name| headers.contains_key(*name)) {
        Some(name) => Err(Fault::invalid(format!("{name} is not supported: a file is written as a whole"))),
        None => Ok(()),
    }
}

/// Sends the body of a request to the sandbox.
async fn pass_on(mut body: Body, mut upload: Upload) -> Result<Upload, Fault> {
    while let Some(frame) = moving(By::ClientSends, body.frame()).await? {
        let broken = |_| Fault::invalid("the body broke off: the connection or the client failed");
        let Ok(bytes) = frame.map_err(broken)?.into_data() else { continue };
        if !upload.send(bytes).await? {
            // The reason comes from the sandbox; the rest of the body does not matter.
            break;
        }
    }
    Ok(upload)
}
