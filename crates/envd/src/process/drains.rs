//! Reads away what the descendants of ended processes go on writing, so that no write of theirs kills them.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use tokio::{io::unix::AsyncFd, task::AbortHandle};

use super::registry::read;

/// Pipes and terminals that are read away at a time.
pub(super) const DRAINS: usize = 4096;

/// Those of all ended processes; beyond the limit the oldest is closed.
pub(super) struct Drains {
    limit: usize,
    tasks: Mutex<VecDeque<AbortHandle>>,
}

impl Drains {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, tasks: Mutex::default() }
    }

    /// Reads `fd` away until its last writer is gone.
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
