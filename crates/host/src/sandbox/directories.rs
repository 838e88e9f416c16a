// SPDX-License-Identifier: Apache-2.0
//! Directories and entries of a guest's file system: list, stat, make, move and remove, by its envd. What envd says is input.

use std::time::Duration;

use connectrpc::{ConnectError, ErrorCode as Wire};
use wrenn_api::ErrorCode;
use wrenn_rpc::{
    Foreign,
    fault::Of,
    filesystem::{EntryInfo, ListDirRequest, MakeDirRequest, MoveRequest, RemoveRequest, StatRequest},
};

use super::guest::{Guest, shorten};
use crate::error::AgentError;

/// Time limit of an operation: a large tree on a slow disk takes long to list or to remove.
const LIMIT: Duration = Duration::from_secs(60);
/// Maximum size of a list in bytes.
const LIST_MAX: usize = 16 << 20;

/// Lists a directory, `depth` levels deep.
pub(crate) async fn list(guest: &Guest, path: String, depth: u32) -> Result<Vec<EntryInfo>, AgentError> {
    let options = guest.options("").with_max_message_size(LIST_MAX);
    let request = ListDirRequest { path, depth, ..Default::default() };
    let listing = async {
        guest.files.list_dir_with_options(request, options).await.map(|listed| listed.into_owned().entries)
    };
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
    let told = in_time(guest, async { asking.await.map(|told| told.into_owned().entry) }).await?;
    entry(told.map_err(|error| refused(&error))?.into_option())
}

/// Creates a directory and its parents.
pub(crate) async fn make(guest: &Guest, path: String) -> Result<EntryInfo, AgentError> {
    let request = MakeDirRequest { path, ..Default::default() };
    let making = guest.files.make_dir_with_options(request, guest.options(""));
    let made = in_time(guest, async { making.await.map(|made| made.into_owned().entry) }).await?;
    entry(made.map_err(|error| refused(&error))?.into_option())
}

/// Moves an entry.
pub(crate) async fn r#move(
    guest: &Guest,
    source: String,
    destination: String,
) -> Result<EntryInfo, AgentError> {
    let request = MoveRequest { source, destination, ..Default::default() };
    let moving = guest.files.r#move_with_options(request, guest.options(""));
    let moved = in_time(guest, async { moving.await.map(|moved| moved.into_owned().entry) }).await?;
    entry(moved.map_err(|error| refused(&error))?.into_option())
}

/// Removes an entry, and a directory with its content.
pub(crate) async fn remove(guest: &Guest, path: String) -> Result<(), AgentError> {
    // envd succeeds if there is none.
    stat(guest, path.clone()).await?;
    let request = RemoveRequest { path, ..Default::default() };
    let removing = guest.files.remove_with_options(request, guest.options(""));
    let removed = in_time(guest, async { removing.await.map(drop) }).await?;
    removed.map_err(|error| refused(&error))
}

async fn in_time<T>(guest: &Guest, answer: impl Future<Output = T>) -> Result<T, AgentError> {
    let late = |_| {
        AgentError::new(ErrorCode::Timeout, "the sandbox did not answer in time; try again, or delete it")
    };
    tokio::select! {
        answered = tokio::time::timeout(LIMIT, answer) => answered.map_err(late),
        error = guest.ended() => Err(error),
    }
}

fn entry(told: Option<EntryInfo>) -> Result<EntryInfo, AgentError> {
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
        Wire::Unavailable => {
            tracing::warn!(error = %Foreign(text), "a guest's envd does not respond");
            let message =
                "the sandbox does not answer: its guest is overloaded or hangs; try again, or delete it";
            return AgentError::new(ErrorCode::HostUnavailable, message);
        }
        _ => {
            let message = format!("the sandbox's own agent failed: {}", shorten(text));
            return AgentError::new(ErrorCode::AgentError, message);
        }
    };
    AgentError { of: Of::OF_CALLER, ..AgentError::new(code, shorten(text)) }
}
