// SPDX-License-Identifier: Apache-2.0
//! Changes in a directory of a sandbox, as they happen.

use connectrpc::client::{ClientTransport, ServerStream};
use wrenn_api::{ErrorCode, FileWatchFrame};
use wrenn_rpc::{
    filesystem::{
        __buffa::{oneof::watch_dir_response::Event, view::WatchDirResponseView},
        EventType,
    },
    host::v1::WatchFilesRequest,
};

use super::{attached::Attached, paths::AnyPath, rights::OfUser};
use crate::{
    agents::Link,
    error::Fault,
    stall::{By, moving},
};

/// Maximum length of a name that a sandbox tells, in bytes.
const NAME_MAX: usize = 16 << 10;

/// Changes in a directory, in order.
pub struct FileChanges {
    events: ServerStream<<Link as ClientTransport>::ResponseBody, WatchDirResponseView<'static>>,
    /// An event that was received and not returned yet.
    first: Option<FileWatchFrame>,
    /// As long as it is watched, the sandbox is active.
    _sandbox: Attached,
}

impl Attached {
    /// Watches a directory; with `recursive` also those below it.
    pub async fn watch_files(
        self,
        path: AnyPath,
        user: OfUser,
        recursive: bool,
    ) -> Result<FileChanges, Fault> {
        let (sandbox_id, path, user) = (self.id.to_string(), path.into_text(), user.into_name());
        let request = WatchFilesRequest { sandbox_id, path, user, recursive, ..Default::default() };
        let events = moving(By::SandboxSends, self.agent.watch_files(request)).await??;
        let mut changes = FileChanges { events, first: None, _sandbox: self };
        // What is refused is told before any event.
        changes.first = Some(changes.next().await?);
        Ok(changes)
    }
}

impl FileChanges {
    /// Waits for the next change; the first is [`FileWatchFrame::Start`]. Cancel-safe. Fails when the directory is gone, and
    /// when the sandbox ends or is paused.
    pub async fn next(&mut self) -> Result<FileWatchFrame, Fault> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        loop {
            let ended =
                || Fault::new(ErrorCode::AgentError, "the sandbox's host stopped watching; watch again");
            // Also where nothing changes, the sandbox says from time to time that it still watches.
            let message = moving(By::SandboxSends, self.events.message()).await??.ok_or_else(ended)?;
            if let Some(frame) = message.to_owned_message().event.and_then(frame) {
                return Ok(frame);
            }
        }
    }
}

/// Converts an event; `None` if it is none for clients, or one that this version does not know.
fn frame(event: Event) -> Option<FileWatchFrame> {
    let change = match event {
        Event::Start(_) => return Some(FileWatchFrame::Start),
        Event::Overflow(_) => return Some(FileWatchFrame::Overflow),
        Event::Keepalive(_) => return None,
        Event::Filesystem(change) => *change,
    };
    let name = change.name;
    if name.len() > NAME_MAX {
        return Some(FileWatchFrame::Overflow);
    }
    Some(match change.r#type.as_known()? {
        EventType::EVENT_TYPE_CREATE => FileWatchFrame::Create { name },
        EventType::EVENT_TYPE_WRITE => FileWatchFrame::Write { name },
        EventType::EVENT_TYPE_REMOVE => FileWatchFrame::Remove { name },
        EventType::EVENT_TYPE_RENAME => FileWatchFrame::Rename { name },
        EventType::EVENT_TYPE_CHMOD => FileWatchFrame::Chmod { name },
        EventType::EVENT_TYPE_UNSPECIFIED => return None,
    })
}
