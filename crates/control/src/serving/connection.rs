// SPDX-License-Identifier: Apache-2.0
//! State of one connection: peer, running requests, and waiting times.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio_util::sync::CancellationToken;

use super::Bounds;

/// A connection, shared by its requests and the listener.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: SocketAddr,
    end: CancellationToken,
    /// Number of bytes that may arrive before the next call of [`Connection::heard`].
    quota: AtomicU64,
    left: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Number of the last request.
    requests: u64,
    /// Running requests by number; with the time since which the client reads nothing, if the response waits
    /// for it.
    in_work: HashMap<u64, Option<Instant>>,
    /// Time since which no request is running.
    idle: Instant,
}

impl Connection {
    pub(crate) fn new(peer: SocketAddr) -> Self {
        let state = State { requests: 0, in_work: HashMap::new(), idle: Instant::now() };
        let unlimited = || AtomicU64::new(u64::MAX);
        let end = CancellationToken::new();
        Self { peer, end, quota: unlimited(), left: unlimited(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Address of the peer.
    pub(crate) const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Registers a running request; dropping the result removes it.
    pub(crate) fn work(self: &Arc<Self>) -> Work {
        let mut state = self.state();
        state.requests += 1;
        let number = state.requests;
        state.in_work.insert(number, None);
        Work { connection: self.clone(), number }
    }

    /// Time since which no request is running; `None` while one is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        state.in_work.is_empty().then_some(state.idle)
    }

    /// Returns the reason to close the connection, if any.
    pub(super) fn overdue(&self, bounds: &Bounds) -> Option<&'static str> {
        let state = self.state();
        if state.in_work.is_empty() {
            let limit = if state.requests == 0 { bounds.head } else { bounds.idle };
            return (state.idle.elapsed() >= limit).then_some("no request comes");
        }
        let mut waits = state.in_work.values().flatten();
        waits.any(|since| since.elapsed() >= bounds.stall).then_some("the client does not read its answer")
    }

    /// Closes the connection.
    pub(super) fn close(&self) {
        self.end.cancel();
    }

    /// Returns whether it was closed.
    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        self.end.is_cancelled()
    }

    /// Waits until the connection is closed.
    pub(super) async fn ended(&self) {
        self.end.cancelled().await;
    }

    /// Limits the bytes that may arrive without a call of [`Connection::heard`]; beyond it the connection is
    /// closed.
    pub(crate) fn limit_reads(&self, bytes: u64) {
        self.quota.store(bytes, Ordering::Relaxed);
        self.heard();
    }

    /// Resets the count of received bytes after a complete message.
    pub(crate) fn heard(&self) {
        self.left.store(self.quota.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Counts received bytes; false if they exceed the limit.
    pub(super) fn came(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let unlimited = |left: u64| if left == u64::MAX { Some(left) } else { left.checked_sub(bytes) };
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, unlimited).is_ok()
    }
}

/// A running request of a connection.
#[derive(Debug)]
pub(crate) struct Work {
    connection: Arc<Connection>,
    number: u64,
}

impl Work {
    /// Records whether the response waits for the client to read.
    pub(super) fn wait_for_client(&self, waits: bool) {
        if let Some(since) = self.connection.state().in_work.get_mut(&self.number) {
            *since = waits.then(Instant::now);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut state = self.connection.state();
        state.in_work.remove(&self.number);
        state.idle = Instant::now();
    }
}
