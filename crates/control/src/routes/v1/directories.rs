// SPDX-License-Identifier: Apache-2.0
//! Directories and entries of sandboxes: list, stat, make, move, copy, change and remove.

use axum::{Json, extract::State};
use http::StatusCode;
use wrenn_api::{ChangeFile, CopyFile, EntryPath, FileEntries, ListFiles, MoveFile, OneEntry};

use super::{
    error_responses::OfDirectories,
    extract::{Body, Target},
};
use crate::{
    error::Fault,
    sandboxes::{AnyPath, OfUser, Rights},
    services::Services,
};

/// List a directory.
///
/// Symbolic links are not followed. Below the directory, what cannot be read is left out. A list has at most 20,000 entries.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/list", operation_id = "listFiles", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = ListFiles,
    responses((status = 200, description = "The entries, by path.", body = FileEntries), OfDirectories)
)]
pub(super) async fn list(
    State(services): State<Services>,
    target: Target,
    body: Body<ListFiles>,
) -> Result<Json<FileEntries>, Fault> {
    let ListFiles { path, depth } = body.value;
    let path = AnyPath::new("path", path)?;
    let entries = services.sandboxes().list_files(&target.caller, target.id, path, depth).await?;
    Ok(Json(FileEntries { entries }))
}

/// Describe a file, a directory or a link.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/stat", operation_id = "statFile", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = EntryPath,
    responses((status = 200, description = "The entry.", body = OneEntry), OfDirectories)
)]
pub(super) async fn stat(
    State(services): State<Services>,
    target: Target,
    body: Body<EntryPath>,
) -> Result<Json<OneEntry>, Fault> {
    let EntryPath { path, user } = body.value;
    let (path, user) = (AnyPath::new("path", path)?, OfUser::new(user)?);
    let entry = services.sandboxes().stat_file(&target.caller, target.id, path, user).await?;
    Ok(Json(OneEntry { entry }))
}

/// Make a directory.
///
/// Missing parents are created, too; all belong to the template's default user. One that exists is refused with 409.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/mkdir", operation_id = "makeDirectory", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = EntryPath,
    responses((status = 200, description = "The directory was made.", body = OneEntry), OfDirectories)
)]
pub(super) async fn mkdir(
    State(services): State<Services>,
    target: Target,
    body: Body<EntryPath>,
) -> Result<Json<OneEntry>, Fault> {
    let EntryPath { path, user } = body.value;
    let (path, user) = (AnyPath::new("path", path)?, OfUser::new(user)?);
    let entry = services.sandboxes().make_directory(&target.caller, target.id, path, user).await?;
    Ok(Json(OneEntry { entry }))
}

/// Move a file or directory.
///
/// Within one file system only. A file at the destination is replaced at once, a directory only if it is empty.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/move", operation_id = "moveFile", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = MoveFile,
    responses((status = 200, description = "It was moved.", body = OneEntry), OfDirectories)
)]
pub(super) async fn r#move(
    State(services): State<Services>,
    target: Target,
    body: Body<MoveFile>,
) -> Result<Json<OneEntry>, Fault> {
    let source = AnyPath::new("source", body.value.source)?;
    let destination = AnyPath::new("destination", body.value.destination)?;
    let entry = services.sandboxes().move_file(&target.caller, target.id, source, destination).await?;
    Ok(Json(OneEntry { entry }))
}

/// Remove a file, a link, or a directory with its content.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/remove", operation_id = "removeFile", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = EntryPath,
    responses((status = 204, description = "It is removed."), OfDirectories)
)]
pub(super) async fn remove(
    State(services): State<Services>,
    target: Target,
    body: Body<EntryPath>,
) -> Result<StatusCode, Fault> {
    let EntryPath { path, user } = body.value;
    let (path, user) = (AnyPath::new("path", path)?, OfUser::new(user)?);
    services.sandboxes().remove_file(&target.caller, target.id, path, user).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Copy a file or directory.
///
/// The copy keeps modes, links and metadata, and belongs to the user. It appears when it is complete; what is at the destination
/// is not replaced (409).
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/copy", operation_id = "copyFile", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = CopyFile,
    responses((status = 200, description = "It was copied.", body = OneEntry), OfDirectories)
)]
pub(super) async fn copy(
    State(services): State<Services>,
    target: Target,
    body: Body<CopyFile>,
) -> Result<Json<OneEntry>, Fault> {
    let CopyFile { source, destination, user } = body.value;
    let (source, destination) = (AnyPath::new("source", source)?, AnyPath::new("destination", destination)?);
    let user = OfUser::new(user)?;
    let entry = services.sandboxes().copy_file(&target.caller, target.id, source, destination, user).await?;
    Ok(Json(OneEntry { entry }))
}

/// Change mode, owner and group of a file or directory.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/permissions", operation_id = "changeFile", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = ChangeFile,
    responses((status = 200, description = "It was changed.", body = OneEntry), OfDirectories)
)]
pub(super) async fn change(
    State(services): State<Services>,
    target: Target,
    body: Body<ChangeFile>,
) -> Result<Json<OneEntry>, Fault> {
    let ChangeFile { path, mode, owner, group, recursive, user } = body.value;
    let (path, user) = (AnyPath::new("path", path)?, OfUser::new(user)?);
    let rights = Rights::new(mode.as_deref(), owner, group)?;
    let sandboxes = services.sandboxes();
    let changing = sandboxes.change_file(&target.caller, target.id, path, user, rights, recursive);
    Ok(Json(OneEntry { entry: changing.await? }))
}
