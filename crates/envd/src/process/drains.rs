// SPDX-License-Identifier: Apache-2.0
//! Reads and discards the output of descendants of exited processes, so that SIGPIPE does not kill them.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use tokio::{io::unix::AsyncFd, task::AbortHandle};

use super::pipes::read;

/// Maximum number of pipes and terminals drained at a time.
pub(super) const DRAINS: usize = 4096;

/// Drain tasks of all exited processes; above the limit the oldest is closed.
pub(super) struct Drains {
    limit: usize,
    tasks: Mutex<VecDeque<AbortHandle>>,
}

impl Drains {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, tasks: Mutex::default() }
    }

    /// Drains `fd` until its last writer has closed it.
    pub(super) fn add(&self, fd: AsyncFd<OwnedFd>) {
        let task = tokio::spawn(async move { while read(&fd).await.is_ok_and(|piece| !piece.is_empty()) {} });
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.len() >= self.limit {
            tasks.retain(|task| !task.is_finished());
        }
        while tasks.len() >= self.limit {
            let Some(oldest) = tasks.pop_front() else { break };
            oldest.abort();
        }
        tasks.push_back(task.abort_handle());
    }
}
