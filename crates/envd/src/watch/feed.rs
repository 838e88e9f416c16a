// SPDX-License-Identifier: Apache-2.0
//! Stream of one client's watcher. It takes events only when the client takes them.

use std::{collections::VecDeque, time::Duration};

use connectrpc::{ConnectError, RequestContext, ServiceStream};
use futures::{StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};
use wrenn_rpc::filesystem::{
    __buffa::oneof::watch_dir_response::Event, FilesystemEvent, WatchDirResponse,
    watch_dir_response::Overflow,
};

use super::{
    tree::{Change, Happened},
    watcher::Watcher,
};
use crate::keepalive;

/// Messages to one client.
pub(super) struct Feed {
    watcher: Watcher,
    /// What was read last; at most a batch.
    happened: VecDeque<Happened>,
    stage: Stage,
    keepalive: Duration,
    deadline: Option<Instant>,
}

enum Stage {
    Start,
    Events,
    Done,
}

impl Feed {
    /// Creates the stream of a watcher.
    pub(super) fn new(ctx: &RequestContext, watcher: Watcher) -> Self {
        let keepalive = keepalive::of_call(ctx);
        let deadline = ctx.deadline().map(Instant::from_std);
        Self { watcher, happened: VecDeque::new(), stage: Stage::Start, keepalive, deadline }
    }

    /// Returns the messages.
    pub(super) fn messages(self) -> ServiceStream<WatchDirResponse> {
        stream::unfold(self, |mut feed| async move {
            let message = feed.next().await?;
            let message = message.map(|event| WatchDirResponse { event: Some(event), ..Default::default() });
            Some((message, feed))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<Event, ConnectError>> {
        match self.stage {
            Stage::Start => {
                self.stage = Stage::Events;
                return Some(Ok(Event::Start(Box::default())));
            }
            Stage::Events => {}
            Stage::Done => return None,
        }
        if self.happened.is_empty() {
            let keepalive = Instant::now() + self.keepalive;
            let until = self.deadline.map_or(keepalive, |deadline| deadline.min(keepalive));
            match timeout_at(until, self.watcher.next()).await {
                Ok(Ok(happened)) => self.happened.extend(happened),
                Ok(Err(error)) => {
                    self.stage = Stage::Done;
                    return Some(Err(error));
                }
                Err(_) if until < keepalive => {
                    self.stage = Stage::Done;
                    let text = "the deadline of the call expired; give a longer one, or none, to watch on";
                    return Some(Err(ConnectError::deadline_exceeded(text)));
                }
                Err(_) => return Some(Ok(Event::Keepalive(Box::default()))),
            }
        }
        Some(Ok(match self.happened.pop_front()? {
            Happened::Change(change) => Event::Filesystem(Box::new(change.into())),
            Happened::Overflow => Event::Overflow(Box::<Overflow>::default()),
        }))
    }
}

impl From<Change> for FilesystemEvent {
    fn from(change: Change) -> Self {
        Self {
            name: change.name,
            r#type: change.kind.into(),
            entry: change.entry.map(|entry| *entry).into(),
            ..Default::default()
        }
    }
}
