//! What is known of one connection: who is at its other end, what is in work on it, and since when it waits.

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

/// One connection, as its requests and the listener see it.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: SocketAddr,
    end: CancellationToken,
    /// Bytes that may still come in before somebody says [`Connection::heard`].
    quota: AtomicU64,
    left: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Requests begun, so that each has a number.
    requests: u64,
    /// Requests in work, and since when the client has taken nothing of the answer, where it is the client's turn.
    in_work: HashMap<u64, Option<Instant>>,
    /// Since when none is in work.
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

    /// The other end.
    pub(crate) const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Notes that a request is in work until the result is dropped.
    pub(crate) fn work(self: &Arc<Self>) -> Work {
        let mut state = self.state();
        state.requests += 1;
        let number = state.requests;
        state.in_work.insert(number, None);
        Work { connection: self.clone(), number }
    }

    /// Since when no request is in work; `None` while one is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        state.in_work.is_empty().then_some(state.idle)
    }

    /// Why the connection should be closed, if it should.
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

    /// Whether somebody has closed it.
    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        self.end.is_cancelled()
    }

    /// Waits until somebody closes the connection.
    pub(super) async fn ended(&self) {
        self.end.cancelled().await;
    }

    /// From now on the connection breaks when more than `bytes` come in without [`Connection::heard`].
    pub(crate) fn limit_reads(&self, bytes: u64) {
        self.quota.store(bytes, Ordering::Relaxed);
        self.heard();
    }

    /// What has come in so far was taken for something whole.
    pub(crate) fn heard(&self) {
        self.left.store(self.quota.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Counts bytes that came in; false when they are too many.
    pub(super) fn came(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let unlimited = |left: u64| if left == u64::MAX { Some(left) } else { left.checked_sub(bytes) };
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, unlimited).is_ok()
    }
}

/// A request in work on a connection.
#[derive(Debug)]
pub(crate) struct Work {
    connection: Arc<Connection>,
    number: u64,
}

impl Work {
    /// Notes whether it is the client's turn to take some of the answer.
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
