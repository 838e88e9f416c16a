// SPDX-License-Identifier: Apache-2.0
//! Directories and entries of a guest's file system: list, stat, make, move, copy, change and remove, by its envd. What envd
//! says is input.

use std::time::Duration;

use connectrpc::{ConnectError, ErrorCode as Wire};
use futures::{FutureExt as _, TryFutureExt as _, future::BoxFuture};
use wrenn_api::ErrorCode;
use wrenn_rpc::{
    Foreign,
    fault::{self, Of},
    filesystem::{
        ChmodRequest, ChownRequest, CopyRequest, EntryInfo, ListDirRequest, MakeDirRequest, MoveRequest,
        RemoveRequest, StatRequest,
    },
    host::v1::ChangeFileRequest,
};

use super::guest::{Guest, overdue, shorten, unreachable};
use crate::error::AgentError;

/// Time limit of an operation: a large tree on a slow disk takes long to list or to remove.
const LIMIT: Duration = Duration::from_secs(60);
/// Time limit of a copy, and of a change of all that is in a directory.
const LONG: Duration = Duration::from_secs(300);
/// Maximum size of a list in bytes.
const LIST_MAX: usize = 16 << 20;

/// Lists a directory, `depth` levels deep.
pub(crate) async fn list(guest: &Guest, path: String, depth: u32) -> Result<Vec<EntryInfo>, AgentError> {
    let options = guest.options("").with_max_message_size(LIST_MAX);
    let request = ListDirRequest { path, depth, ..Default::default() };
    let listing = guest.files.list_dir_with_options(request, options);
    let listing = listing.map_ok(|listed| listed.into_owned().entries).boxed();
    in_time(guest, LIMIT, listing).await?.map_err(|error| match error.code {
        Wire::ResourceExhausted => {
            let message =
                "the directory has too many entries for one list: list its parts, or with a smaller depth";
            AgentError::new(ErrorCode::InvalidRequest, message)
        }
        _ => refused(&error),
    })
}

/// Describes an entry.
pub(crate) async fn stat(guest: &Guest, path: String, user: &str) -> Result<EntryInfo, AgentError> {
    let request = StatRequest { path, ..Default::default() };
    let asking = guest.files.stat_with_options(request, guest.options(user));
    entry(guest, LIMIT, asking.map_ok(|told| told.into_owned().entry.into_option()).boxed()).await
}

/// Creates a directory and its parents.
pub(crate) async fn make(guest: &Guest, path: String, user: &str) -> Result<EntryInfo, AgentError> {
    let request = MakeDirRequest { path, ..Default::default() };
    let making = guest.files.make_dir_with_options(request, guest.options(user));
    entry(guest, LIMIT, making.map_ok(|made| made.into_owned().entry.into_option()).boxed()).await
}

/// Moves an entry.
pub(crate) async fn r#move(
    guest: &Guest,
    source: String,
    destination: String,
) -> Result<EntryInfo, AgentError> {
    let request = MoveRequest { source, destination, ..Default::default() };
    let moving = guest.files.r#move_with_options(request, guest.options(""));
    entry(guest, LIMIT, moving.map_ok(|moved| moved.into_owned().entry.into_option()).boxed()).await
}

/// Removes an entry, and a directory with its content.
pub(crate) async fn remove(guest: &Guest, path: String, user: &str) -> Result<(), AgentError> {
    // envd succeeds if there is none.
    stat(guest, path.clone(), user).await?;
    let request = RemoveRequest { path, ..Default::default() };
    let removing = guest.files.remove_with_options(request, guest.options(user));
    let removed = in_time(guest, LIMIT, removing.map_ok(drop).boxed()).await?;
    removed.map_err(|error| refused(&error))
}

/// Copies an entry, and a directory with its content, for a user.
pub(crate) async fn copy(
    guest: &Guest,
    source: String,
    destination: String,
    user: &str,
) -> Result<EntryInfo, AgentError> {
    let request = CopyRequest { source, destination, ..Default::default() };
    let copying = guest.files.copy_with_options(request, guest.options(user));
    entry(guest, LONG, copying.map_ok(|copied| copied.into_owned().entry.into_option()).boxed()).await
}

/// Changes owner, group and mode, in this order, because a change of the owner clears the set-id bits.
pub(crate) async fn change(guest: &Guest, wanted: ChangeFileRequest) -> Result<EntryInfo, AgentError> {
    let ChangeFileRequest { path, user, mode, owner, group, recursive, .. } = wanted;
    let mut changed = None;
    if !owner.is_empty() || !group.is_empty() {
        let request = ChownRequest { path: path.clone(), owner, group, recursive, ..Default::default() };
        let changing = guest.files.chown_with_options(request, guest.options(&user));
        let changing = changing.map_ok(|told| told.into_owned().entry.into_option()).boxed();
        changed = Some(entry(guest, LONG, changing).await?);
    }
    if let Some(mode) = mode {
        let request = ChmodRequest { path, mode, recursive, ..Default::default() };
        let changing = guest.files.chmod_with_options(request, guest.options(&user));
        let changing = changing.map_ok(|told| told.into_owned().entry.into_option()).boxed();
        changed = Some(entry(guest, LONG, changing).await?);
    }
    changed.ok_or_else(|| {
        AgentError::new(ErrorCode::InvalidRequest, "give at least one of mode, owner and group")
    })
}

async fn in_time<T>(guest: &Guest, limit: Duration, answer: BoxFuture<'_, T>) -> Result<T, AgentError> {
    guest.meanwhile(tokio::time::timeout(limit, answer)).await?.map_err(|_| overdue())
}

/// Waits for the description of an entry.
async fn entry(
    guest: &Guest,
    limit: Duration,
    answer: BoxFuture<'_, Result<Option<EntryInfo>, ConnectError>>,
) -> Result<EntryInfo, AgentError> {
    let told = in_time(guest, limit, answer).await?.map_err(|error| refused(&error))?;
    told.ok_or_else(|| AgentError::new(ErrorCode::AgentError, "the sandbox's own agent described no entry"))
}

/// Converts an error of envd.
pub(super) fn refused(error: &ConnectError) -> AgentError {
    let text = error.message.as_deref().unwrap_or_default();
    let told = fault::of(error).and_then(|(code, _)| code.parse().ok());
    let code = match error.code {
        _ if told == Some(ErrorCode::UserNotFound) => ErrorCode::UserNotFound,
        Wire::NotFound => ErrorCode::NotFound,
        Wire::AlreadyExists => ErrorCode::Conflict,
        Wire::InvalidArgument => ErrorCode::InvalidRequest,
        Wire::PermissionDenied => ErrorCode::Forbidden,
        Wire::ResourceExhausted => ErrorCode::InsufficientStorage,
        Wire::Unavailable => return unreachable(&Foreign(text)),
        _ => {
            let message = format!("the sandbox's own agent failed: {}", shorten(text));
            return AgentError::new(ErrorCode::AgentError, message);
        }
    };
    AgentError { of: Of::OF_CALLER, ..AgentError::new(code, shorten(text)) }
}
