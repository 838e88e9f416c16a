// SPDX-License-Identifier: Apache-2.0
//! Directories and entries of sandboxes: list, stat, make, move, copy, change and remove.

use std::time::Duration;

use wrenn_api::{ErrorCode, FileEntry, FileKind, SandboxId};
use wrenn_rpc::{
    filesystem::{EntryInfo, FileType},
    host::v1::{
        ChangeFileRequest, CopyFileRequest, ListDirectoryRequest, MakeDirectoryRequest, MoveFileRequest,
        RemoveFileRequest, StatFileRequest,
    },
};

use super::{
    paths::AnyPath,
    rights::{OfUser, Rights},
};
use crate::{
    agents::{AgentClient, within},
    error::Fault,
};

/// Time limit of an operation, longer than the agent's own.
const LIMIT: Duration = Duration::from_secs(75);
/// Time limit of a copy, and of a change of all that is in a directory, longer than the agent's own.
const LONG: Duration = Duration::from_secs(315);
/// Maximum number of levels of a list.
const DEPTH_MAX: u32 = 64;

/// Lists a directory.
pub(super) async fn list(
    agent: &AgentClient,
    id: SandboxId,
    path: AnyPath,
    depth: Option<u32>,
) -> Result<Vec<FileEntry>, Fault> {
    let depth = depth.unwrap_or(1).max(1);
    if depth > DEPTH_MAX {
        return Err(Fault::invalid(format!("depth is {depth}: it must be 0 to {DEPTH_MAX}")));
    }
    let request = ListDirectoryRequest {
        sandbox_id: id.to_string(),
        path: path.into_text(),
        depth,
        ..Default::default()
    };
    let listed = agent.list_directory_with_options(request, within(LIMIT)).await?.into_owned();
    Ok(listed.entries.into_iter().map(entry).collect())
}

/// Describes an entry.
pub(super) async fn stat(
    agent: &AgentClient,
    id: SandboxId,
    path: AnyPath,
    user: OfUser,
) -> Result<FileEntry, Fault> {
    let (sandbox_id, path, user) = (id.to_string(), path.into_text(), user.into_name());
    let request = StatFileRequest { sandbox_id, path, user, ..Default::default() };
    one(agent.stat_file_with_options(request, within(LIMIT)).await?.into_owned().entry.into_option())
}

/// Creates a directory and its parents.
pub(super) async fn make(
    agent: &AgentClient,
    id: SandboxId,
    path: AnyPath,
    user: OfUser,
) -> Result<FileEntry, Fault> {
    let (sandbox_id, path, user) = (id.to_string(), path.into_text(), user.into_name());
    let request = MakeDirectoryRequest { sandbox_id, path, user, ..Default::default() };
    one(agent.make_directory_with_options(request, within(LIMIT)).await?.into_owned().entry.into_option())
}

/// Moves an entry.
pub(super) async fn r#move(
    agent: &AgentClient,
    id: SandboxId,
    source: AnyPath,
    destination: AnyPath,
) -> Result<FileEntry, Fault> {
    let (source, destination) = (source.into_text(), destination.into_text());
    let request = MoveFileRequest { sandbox_id: id.to_string(), source, destination, ..Default::default() };
    one(agent.move_file_with_options(request, within(LIMIT)).await?.into_owned().entry.into_option())
}

/// Removes an entry, and a directory with its content.
pub(super) async fn remove(
    agent: &AgentClient,
    id: SandboxId,
    path: AnyPath,
    user: OfUser,
) -> Result<(), Fault> {
    let (sandbox_id, path, user) = (id.to_string(), path.into_text(), user.into_name());
    let request = RemoveFileRequest { sandbox_id, path, user, ..Default::default() };
    agent.remove_file_with_options(request, within(LIMIT)).await?;
    Ok(())
}

/// Copies an entry, and a directory with its content.
pub(super) async fn copy(
    agent: &AgentClient,
    id: SandboxId,
    source: AnyPath,
    destination: AnyPath,
    user: OfUser,
) -> Result<FileEntry, Fault> {
    let (source, destination, user) = (source.into_text(), destination.into_text(), user.into_name());
    let request =
        CopyFileRequest { sandbox_id: id.to_string(), source, destination, user, ..Default::default() };
    one(agent.copy_file_with_options(request, within(LONG)).await?.into_owned().entry.into_option())
}

/// Changes mode, owner and group of an entry, and of all below it.
pub(super) async fn change(
    agent: &AgentClient,
    id: SandboxId,
    path: AnyPath,
    user: OfUser,
    rights: Rights,
    recursive: bool,
) -> Result<FileEntry, Fault> {
    if rights == Rights::default() {
        return Err(Fault::invalid("there is nothing to change: give at least one of mode, owner and group"));
    }
    let (mode, owner, group) = rights.into_parts();
    let (sandbox_id, path, user) = (id.to_string(), path.into_text(), user.into_name());
    let request =
        ChangeFileRequest { sandbox_id, path, user, mode, owner, group, recursive, ..Default::default() };
    one(agent.change_file_with_options(request, within(LONG)).await?.into_owned().entry.into_option())
}

fn one(told: Option<EntryInfo>) -> Result<FileEntry, Fault> {
    let none = || Fault::new(ErrorCode::AgentError, "the sandbox's host described no entry; try again");
    told.map(entry).ok_or_else(none)
}

fn entry(info: EntryInfo) -> FileEntry {
    let kind = match info.r#type.as_known() {
        Some(FileType::FILE_TYPE_DIRECTORY) => FileKind::Directory,
        Some(FileType::FILE_TYPE_SYMLINK) => FileKind::Symlink,
        _ => FileKind::File,
    };
    FileEntry {
        name: info.name,
        path: info.path,
        kind,
        size: u64::try_from(info.size).unwrap_or_default(),
        mode: info.mode,
        permissions: info.permissions,
        owner: info.owner,
        group: info.group,
        modified_at: info.modified_time.as_option().map(|time| time.seconds).unwrap_or_default(),
        symlink_target: info.symlink_target,
    }
}
