//! The output of one process: a bounded log that any number of clients read, each at its own pace.
//!
//! The log keeps the last [`LIMIT`] bytes, or less where the output of all processes needs the room
//! ([`Retention`]). The client that started the process holds it up while it has not taken the oldest of them, as a
//! pipe does; so does a client that attached later, but not longer than [`STALL`]. What a client misses is told to it
//! where it is missing.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::retention::Retention;

/// Bytes kept per process, with [`CHUNK_COST`] counted for every chunk.
pub(crate) const LIMIT: usize = 1 << 20;
/// How long a client that attached may take nothing before it no longer holds the process up.
pub(crate) const STALL: Duration = Duration::from_secs(10);
/// The largest chunk.
pub(crate) const CHUNK: usize = 32 << 10;
/// What a chunk costs beside its bytes, so that tiny writes are bounded too.
const CHUNK_COST: usize = 64;
/// What every process may keep even where all others have taken the rest: one chunk.
pub(crate) const FLOOR: usize = CHUNK + CHUNK_COST;

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

impl Chunk {
    fn cost(&self) -> usize {
        self.data.len() + CHUNK_COST
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) exit_code: i32,
    pub(crate) exited: bool,
    pub(crate) status: String,
    /// The number of the signal that ended it.
    pub(crate) signal: Option<u32>,
    /// Whether its deadline ended it.
    pub(crate) timed_out: bool,
}

/// What a client reads.
#[derive(Debug)]
pub(crate) enum Item {
    Chunk(Chunk),
    /// So many bytes are missing here.
    Lost(u64),
    /// The end, and how many bytes this client missed in all.
    End(End, u64),
}

/// How a client holds the process up when it does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// As long as it is there: it started the process, and a pipe does the same.
    Always,
    /// For [`STALL`] at most.
    Briefly,
}

/// The log.
pub(crate) struct Log {
    state: Mutex<State>,
    retention: Arc<Retention>,
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
    hold: Hold,
}

impl State {
    /// How long the oldest chunk is still held by a client; `None` when it may be dropped.
    fn held(&self) -> Option<Duration> {
        let holding = self.readers.values().filter(|reader| reader.chunk <= self.first);
        let left = holding.map(|reader| match reader.hold {
            Hold::Always => Duration::MAX,
            Hold::Briefly => STALL.saturating_sub(reader.moved.elapsed()),
        });
        left.max().filter(|left| !left.is_zero())
    }

    /// Drops the oldest chunks that nobody holds until at most `target` are kept; gives what was freed.
    fn shrink(&mut self, target: usize) -> usize {
        let before = self.cost;
        while self.cost > target && self.held().is_none() {
            let Some(old) = self.chunks.pop_front() else { break };
            self.first += 1;
            self.cost -= old.cost();
            self.dropped += old.data.len() as u64;
        }
        before - self.cost
    }
}

impl Log {
    /// An empty log whose bytes count in `retention`.
    pub(super) fn new(retention: Arc<Retention>) -> Self {
        Self { state: Mutex::default(), retention, grown: Notify::new(), taken: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds output, waiting while a client needs the room. After the end it is dropped.
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
        let cost = chunk.cost();
        let reserved = self.retention.reserve(cost);
        let mut guard = self.lock();
        let state = &mut *guard;
        let limit = if reserved { LIMIT } else { FLOOR };
        let freed = state.shrink(limit.saturating_sub(cost));
        let refusal = if state.end.is_some() {
            Some(None)
        } else {
            state.held().filter(|_| !state.chunks.is_empty() && state.cost + cost > limit).map(Some)
        };
        if let Some(refusal) = refusal {
            self.retention.release(freed + if reserved { cost } else { 0 });
            return refusal;
        }
        let tail = state.first + state.chunks.len() as u64;
        for reader in state.readers.values_mut().filter(|r| r.chunk == tail) {
            // It had nothing to take until now: its time starts here.
            reader.moved = Instant::now();
        }
        if !reserved {
            self.retention.take(cost);
        }
        state.cost += cost;
        state.chunks.push_back(chunk.clone());
        self.retention.release(freed);
        None
    }

    /// Drops the oldest output that no client holds, until at most `target` bytes are kept.
    pub(super) fn shrink(&self, target: usize) {
        let freed = self.lock().shrink(target);
        self.retention.release(freed);
    }

    /// Bytes that are kept, with what they cost beside.
    pub(super) fn cost(&self) -> usize {
        self.lock().cost
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
    pub(crate) fn read(self: &Arc<Self>, hold: Hold) -> Reader {
        let mut state = self.lock();
        let id = state.next_reader;
        state.next_reader += 1;
        let position = Position { chunk: state.first, byte: 0, lost: 0, moved: Instant::now(), hold };
        state.readers.insert(id, position);
        drop(state);
        Reader { log: Arc::clone(self), id }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let cost = self.lock().cost;
        self.retention.release(cost);
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
            let lost = state.dropped - reader.byte;
            reader.lost += lost;
            reader.byte = state.dropped;
            reader.chunk = state.first;
            return Some(Item::Lost(lost));
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
        End { exit_code: 0, exited: true, status: "exit status 0".into(), signal: None, timed_out: false }
    }

    fn log() -> Arc<Log> {
        Retention::new(64 << 20).log()
    }

    /// What a client sees: bytes and gaps in their order, and the sum that the end tells.
    async fn drain(mut reader: Reader) -> (Vec<Result<usize, u64>>, u64) {
        let mut seen = Vec::new();
        loop {
            match reader.next().await {
                Item::Chunk(chunk) => match seen.last_mut() {
                    Some(Ok(total)) => *total += chunk.data.len(),
                    _ => seen.push(Ok(chunk.data.len())),
                },
                Item::Lost(bytes) => seen.push(Err(bytes)),
                Item::End(_, lost) => return (seen, lost),
            }
        }
    }

    #[tokio::test]
    async fn a_late_client_gets_the_last_output_and_is_told_first_what_is_missing() {
        let log = log();
        for i in 0..100 {
            log.append(chunk(i, 32 << 10)).await;
        }
        log.finish(end());
        let (seen, told) = drain(log.read(Hold::Briefly)).await;
        let [Err(lost), Ok(total)] = seen[..] else { panic!("{seen:?}") };
        assert_eq!((total as u64 + lost, told), (100 * (32 << 10), lost));
        assert!(total > LIMIT - (64 << 10) && total <= LIMIT);
    }

    #[tokio::test]
    async fn a_reading_client_loses_nothing() {
        let log = log();
        let reading = tokio::spawn(drain(log.read(Hold::Briefly)));
        for i in 0..200 {
            log.append(chunk(i, 32 << 10)).await;
        }
        log.finish(end());
        assert_eq!(reading.await.unwrap(), (vec![Ok(200 * (32 << 10))], 0));
    }

    #[tokio::test]
    async fn the_client_that_started_it_holds_it_up_for_as_long_as_it_likes() {
        let log = log();
        let reader = log.read(Hold::Always);
        let mut appended = 0;
        while log.try_append(&chunk(0, 32 << 10)).is_none() {
            appended += 1;
        }
        for reader in log.lock().readers.values_mut() {
            reader.moved = Instant::now().checked_sub(STALL * 10).unwrap();
        }
        assert_eq!(log.try_append(&chunk(0, 32 << 10)), Some(Duration::MAX));
        let writer = Arc::clone(&log);
        let writing = tokio::spawn(async move {
            for i in appended..100 {
                writer.append(chunk(i, 32 << 10)).await;
            }
            writer.finish(end());
        });
        assert_eq!(drain(reader).await, (vec![Ok(100 * (32 << 10))], 0));
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_attached_holds_it_up_for_a_while_and_is_told_of_the_gap_where_it_is() {
        let log = log();
        let mut slow = log.read(Hold::Briefly);
        for i in 0..31 {
            log.append(chunk(i, 32 << 10)).await;
        }
        assert!(matches!(slow.next().await, Item::Chunk(first) if first.data[0] == 0));
        // It rested for longer than it may.
        for reader in log.lock().readers.values_mut() {
            reader.moved = Instant::now().checked_sub(STALL).unwrap();
        }
        for i in 31..41 {
            log.append(chunk(i, 32 << 10)).await;
        }
        log.finish(end());
        let (seen, told) = drain(slow).await;
        assert!(matches!(seen[..], [Err(lost), Ok(_)] if lost == told && lost > 0), "{seen:?} {told}");
    }

    #[tokio::test]
    async fn a_client_that_leaves_lets_the_process_go_on() {
        let log = log();
        let reader = log.read(Hold::Always);
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
