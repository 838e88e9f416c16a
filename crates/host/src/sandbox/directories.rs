// SPDX-License-Identifier: Apache-2.0
//! Directories and entries of a guest's file system: list, stat, make, move and remove, by its envd. What envd says is input.

use std::time::Duration;

use connectrpc::{ConnectError, ErrorCode as Wire};
use futures::{FutureExt as _, TryFutureExt as _, future::BoxFuture};
use wrenn_api::ErrorCode;
use wrenn_rpc::{
    Foreign,
    fault::Of,
    filesystem::{EntryInfo, ListDirRequest, MakeDirRequest, MoveRequest, RemoveRequest, StatRequest},
};

use super::guest::{Guest, overdue, shorten, unreachable};
use crate::error::AgentError;

/// Time limit of an operation: a large tree on a slow disk takes long to list or to remove.
const LIMIT: Duration = Duration::from_secs(60);
/// Maximum size of a list in bytes.
const LIST_MAX: usize = 16 << 20;

/// Lists a directory, `depth` levels deep.
pub(crate) async fn list(guest: &Guest, path: String, depth: u32) -> Result<Vec<EntryInfo>, AgentError> {
    let options = guest.options("").with_max_message_size(LIST_MAX);
    let request = ListDirRequest { path, depth, ..Default::default() };
    let listing = guest.files.list_dir_with_options(request, options);
    let listing = listing.map_ok(|listed| listed.into_owned().entries).boxed();
    in_time(guest, listing).await?.map_err(|error| match error.code {
        Wire::ResourceExhausted => {
            let message =
                "the directory has too many entries for one list: list its parts, or with a smaller depth";
            AgentError::new(ErrorCode::InvalidRequest, message)
        }
        _ => refused(&error),
    })
}

/// Describes an entry.
pub(crate) async fn stat(guest: &Guest, path: String) -> Result<EntryInfo, AgentError> {
    let request = StatRequest { path, ..Default::default() };
    let asking = guest.files.stat_with_options(request, guest.options(""));
    entry(guest, asking.map_ok(|told| told.into_owned().entry.into_option()).boxed()).await
}

/// Creates a directory and its parents.
pub(crate) async fn make(guest: &Guest, path: String) -> Result<EntryInfo, AgentError> {
    let request = MakeDirRequest { path, ..Default::default() };
    let making = guest.files.make_dir_with_options(request, guest.options(""));
    entry(guest, making.map_ok(|made| made.into_owned().entry.into_option()).boxed()).await
}

/// Moves an entry.
pub(crate) async fn r#move(
    guest: &Guest,
    source: String,
    destination: String,
) -> Result<EntryInfo, AgentError> {
    let request = MoveRequest { source, destination, ..Default::default() };
    let moving = guest.files.r#move_with_options(request, guest.options(""));
    entry(guest, moving.map_ok(|moved| moved.into_owned().entry.into_option()).boxed()).await
}

/// Removes an entry, and a directory with its content.
pub(crate) async fn remove(guest: &Guest, path: String) -> Result<(), AgentError> {
    // envd succeeds if there is none.
    stat(guest, path.clone()).await?;
    let request = RemoveRequest { path, ..Default::default() };
    let removing = guest.files.remove_with_options(request, guest.options(""));
    let removed = in_time(guest, removing.map_ok(drop).boxed()).await?;
    removed.map_err(|error| refused(&error))
}

async fn in_time<T>(guest: &Guest, answer: BoxFuture<'_, T>) -> Result<T, AgentError> {
    guest.meanwhile(tokio::time::timeout(LIMIT, answer)).await?.map_err(|_| overdue())
}

/// Waits for the description of an entry.
async fn entry(
    guest: &Guest,
    answer: BoxFuture<'_, Result<Option<EntryInfo>, ConnectError>>,
) -> Result<EntryInfo, AgentError> {
    let told = in_time(guest, answer).await?.map_err(|error| refused(&error))?;
    told.ok_or_else(|| AgentError::new(ErrorCode::AgentError, "the sandbox's own agent described no entry"))
}

/// Converts an error of envd.
fn refused(error: &ConnectError) -> AgentError {
    let text = error.message.as_deref().unwrap_or_default();
    let code = match error.code {
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
