//! The output of one process: a bounded log that any number of clients read, each at its own pace.
//!
//! The log keeps the last [`LIMIT`] bytes. While a client that keeps reading has not taken the oldest of them,
//! the process is made to wait (its pipe fills). A client that takes nothing for [`STALL`] no longer holds
//! the process up; what it then misses is counted and told to it at the end.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Bytes kept per process, with [`CHUNK_COST`] counted for every chunk.
pub(crate) const LIMIT: usize = 1 << 20;
/// How long a client may take nothing before it no longer holds the process up.
pub(crate) const STALL: Duration = Duration::from_secs(10);
/// What a chunk costs beside its bytes, so that tiny writes are bounded too.
const CHUNK_COST: usize = 64;

/// Where output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
    Pty,
}

/// One read from a process.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) channel: Channel,
    pub(crate) data: Bytes,
}

/// How a process ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) exit_code: i32,
    pub(crate) exited: bool,
    pub(crate) status: String,
    /// Whether its deadline ended it.
    pub(crate) timed_out: bool,
}

/// What a client reads.
#[derive(Debug)]
pub(crate) enum Item {
    Chunk(Chunk),
    /// The end, and how many bytes this client missed.
    End(End, u64),
}

/// The log.
#[derive(Default)]
pub(crate) struct Log {
    state: Mutex<State>,
    /// Something was appended.
    grown: Notify,
    /// A client took something or went away.
    taken: Notify,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Chunk>,
    /// The number of the first chunk kept.
    first: u64,
    cost: usize,
    /// Bytes of output before the first chunk kept.
    dropped: u64,
    end: Option<End>,
    readers: HashMap<u64, Position>,
    next_reader: u64,
}

struct Position {
    chunk: u64,
    byte: u64,
    lost: u64,
    moved: Instant,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds output, waiting while a client that keeps reading needs the room. After the end it is dropped.
    pub(crate) async fn append(&self, chunk: Chunk) {
        loop {
            let taken = self.taken.notified();
            tokio::pin!(taken);
            taken.as_mut().enable();
            let Some(wait) = self.try_append(&chunk) else {
                self.grown.notify_waiters();
                return;
            };
            let _ = tokio::time::timeout(wait, taken).await;
        }
    }

    /// Adds output or tells how long to wait at most before trying again.
    fn try_append(&self, chunk: &Chunk) -> Option<Duration> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.end.is_some() {
            return None;
        }
        let cost = chunk.data.len() + CHUNK_COST;
        while !state.chunks.is_empty() && state.cost + cost > LIMIT {
            let first = state.first;
            let holding = state.readers.values().filter(|r| r.chunk <= first);
            if let Some(wait) =
                holding.map(|r| STALL.saturating_sub(r.moved.elapsed())).filter(|w| !w.is_zero()).max()
            {
                return Some(wait);
            }
            if let Some(old) = state.chunks.pop_front() {
                state.first += 1;
                state.cost -= old.data.len() + CHUNK_COST;
                state.dropped += old.data.len() as u64;
            }
        }
        let tail = state.first + state.chunks.len() as u64;
        for reader in state.readers.values_mut().filter(|r| r.chunk == tail) {
            // It had nothing to take until now: its time starts here.
            reader.moved = Instant::now();
        }
        state.cost += cost;
        state.chunks.push_back(chunk.clone());
        None
    }

    /// Ends the log; the first end stays.
    pub(crate) fn finish(&self, end: End) {
        self.lock().end.get_or_insert(end);
        self.grown.notify_waiters();
        self.taken.notify_waiters();
    }

    /// Whether the process has ended.
    pub(crate) fn ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// Attaches a client at the oldest output kept.
    pub(crate) fn read(self: &Arc<Self>) -> Reader {
        let mut state = self.lock();
        let id = state.next_reader;
        state.next_reader += 1;
        let position = Position { chunk: state.first, byte: 0, lost: 0, moved: Instant::now() };
        state.readers.insert(id, position);
        drop(state);
        Reader { log: Arc::clone(self), id }
    }
}

/// One client's place in the log.
pub(crate) struct Reader {
    log: Arc<Log>,
    id: u64,
}

impl Reader {
    /// The next output, or the end. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Item {
        loop {
            let grown = self.log.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            if let Some(item) = self.try_next() {
                self.log.taken.notify_waiters();
                return item;
            }
            grown.await;
        }
    }

    fn try_next(&self) -> Option<Item> {
        let mut guard = self.log.lock();
        let state = &mut *guard;
        let reader = state.readers.get_mut(&self.id)?;
        reader.moved = Instant::now();
        if reader.byte < state.dropped {
            reader.lost += state.dropped - reader.byte;
            reader.byte = state.dropped;
            reader.chunk = state.first;
        }
        let index = usize::try_from(reader.chunk - state.first).ok()?;
        if let Some(chunk) = state.chunks.get(index) {
            reader.chunk += 1;
            reader.byte += chunk.data.len() as u64;
            return Some(Item::Chunk(chunk.clone()));
        }
        state.end.clone().map(|end| Item::End(end, reader.lost))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.log.lock().readers.remove(&self.id);
        self.log.taken.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(byte: u8, len: usize) -> Chunk {
        Chunk { channel: Channel::Stdout, data: vec![byte; len].into() }
    }

    fn end() -> End {
        End { exit_code: 0, exited: true, status: "exit status 0".into(), timed_out: false }
    }

    async fn drain(mut reader: Reader) -> (usize, u64) {
        let mut total = 0;
        loop {
            match reader.next().await {
                Item::Chunk(chunk) => total += chunk.data.len(),
                Item::End(_, lost) => return (total, lost),
            }
        }
    }

    #[tokio::test]
    async fn keeps_the_last_output_for_late_clients_and_counts_the_rest() {
        let log = Arc::new(Log::default());
        for i in 0..100 {
            log.append(chunk(i, 32 << 10)).await;
        }
        log.finish(end());
        let (total, lost) = drain(log.read()).await;
        assert_eq!(total as u64 + lost, 100 * (32 << 10));
        assert!(total > LIMIT - (64 << 10) && total <= LIMIT);
    }

    #[tokio::test]
    async fn a_reading_client_loses_nothing() {
        let log = Arc::new(Log::default());
        let reading = tokio::spawn(drain(log.read()));
        for i in 0..200 {
            log.append(chunk(i, 32 << 10)).await;
        }
        log.finish(end());
        assert_eq!(reading.await.unwrap(), (200 * (32 << 10), 0));
    }

    #[tokio::test]
    async fn a_client_that_leaves_lets_the_process_go_on() {
        let log = Arc::new(Log::default());
        let reader = log.read();
        let writer = Arc::clone(&log);
        let writing = tokio::spawn(async move {
            for i in 0..100 {
                writer.append(chunk(i, 32 << 10)).await;
            }
        });
        tokio::task::yield_now().await;
        drop(reader);
        writing.await.unwrap();
    }
}
