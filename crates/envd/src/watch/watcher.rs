// SPDX-License-Identifier: Apache-2.0
//! A watcher in the async runtime: waits for the kernel's queue and handles it on a blocking thread.

use std::{os::fd::OwnedFd, sync::Arc};

use connectrpc::ConnectError;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::OwnedSemaphorePermit,
    task::{JoinHandle, spawn_blocking},
};

use super::{
    Asked,
    limits::Places,
    tree::{Happened, Step, Tree},
};

/// A watcher. It does nothing while nobody asks for the next events: these wait in the kernel's queue.
pub(super) struct Watcher {
    state: State,
    queue: AsyncFd<Arc<OwnedFd>>,
    _place: OwnedSemaphorePermit,
}

enum State {
    Ready(Box<Tree>),
    Working(JoinHandle<(Box<Tree>, Step)>),
    /// The work has failed, or never returned.
    Lost,
}

impl Watcher {
    /// Begins to watch; changes after this are reported.
    pub(super) async fn open(
        asked: Asked,
        place: OwnedSemaphorePermit,
        places: Places,
    ) -> Result<Self, ConnectError> {
        let opened = spawn_blocking(move || Tree::open(asked, places).map(Box::new)).await;
        let tree = opened.map_err(|e| ConnectError::internal(e.to_string()))??;
        // SAFETY: the descriptor belongs to the shared owner that is passed, so it stays open and the same.
        let queue = unsafe { AsyncFd::register_with_interest(tree.queue(), Interest::READABLE) };
        let queue = queue.map_err(|e| ConnectError::internal(format!("cannot watch: {e}")))?;
        Ok(Self { state: State::Ready(tree), queue, _place: place })
    }

    /// Waits until something has happened. Nothing is lost if the future is dropped before. An error is the end.
    pub(super) async fn next(&mut self) -> Result<Vec<Happened>, ConnectError> {
        loop {
            match self.step().await? {
                Step::Happened(happened) if happened.is_empty() => {}
                Step::Happened(happened) => return Ok(happened),
                Step::Ended(error) => return Err(error),
                Step::Idle(rest) => self.wait(rest).await?,
            }
        }
    }

    async fn step(&mut self) -> Result<Step, ConnectError> {
        if let State::Ready(mut tree) = std::mem::replace(&mut self.state, State::Lost) {
            self.state = State::Working(spawn_blocking(move || {
                let step = tree.step();
                (tree, step)
            }));
        }
        let State::Working(work) = &mut self.state else {
            return Err(ConnectError::internal("the watcher has failed; watch again"));
        };
        let (tree, step) = work.await.map_err(|e| ConnectError::internal(e.to_string()))?;
        self.state = State::Ready(tree);
        Ok(step)
    }

    async fn wait(&self, rest: Option<std::time::Duration>) -> Result<(), ConnectError> {
        let readable = async {
            // The step after this reads the queue to its end.
            self.queue.readable().await.map(|mut ready| ready.clear_ready())
        };
        let waited = match rest {
            Some(rest) => tokio::time::timeout(rest, readable).await.unwrap_or(Ok(())),
            None => readable.await,
        };
        waited.map_err(|e| ConnectError::internal(format!("cannot watch: {e}")))
    }
}
