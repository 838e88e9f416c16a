// SPDX-License-Identifier: Apache-2.0
//! Output log of one process: bounded, and read by any number of clients at their own speed.
//!
//! The log keeps the last [`LIMIT`] bytes, or less if other processes need the memory ([`Retention`]). The
//! client that started the process blocks its output, like a full pipe, while it has not read the oldest
//! bytes; a client that attached later blocks it for [`STALL`] at most. A client is told how many bytes it
//! missed, at the position where they are missing.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustix::termios::Winsize;
use tokio::sync::Notify;

use super::{
    retention::{Kept, Retention},
    screen::{Screen, Text},
};
use crate::out_of_memory::Kill;

/// Maximum number of bytes kept per process; each chunk counts [`CHUNK_COST`] in addition.
pub(crate) const LIMIT: usize = 1 << 20;
/// Time without reads after which an attached client no longer blocks the process.
pub(crate) const STALL: Duration = Duration::from_secs(10);
/// Maximum size of a chunk in bytes.
pub(crate) const CHUNK: usize = 32 << 10;
/// Overhead counted per chunk in bytes, so that tiny writes are bounded too.
const CHUNK_COST: usize = 64;
/// Bytes that each process may keep even if all memory is used by others: one chunk.
pub(crate) const FLOOR: usize = CHUNK + CHUNK_COST;

/// Source of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
    Pty,
}

/// Data of one read from a process.
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

/// Exit of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) exit_code: i32,
    pub(crate) exited: bool,
    pub(crate) status: String,
    /// Number of the signal that killed it.
    pub(crate) signal: Option<u32>,
    /// Whether it was killed at its deadline.
    pub(crate) timed_out: bool,
    /// Whether the kernel killed it or a descendant for want of memory.
    pub(crate) out_of_memory: bool,
    /// Which one, if that is known.
    pub(crate) victim: Option<Kill>,
}

/// Item that a client reads.
#[derive(Debug)]
pub(crate) enum Item {
    Chunk(Chunk),
    /// Number of bytes missing at this position.
    Lost(u64),
    /// Piece of what makes a terminal show what this one showed where the client began.
    Screen(Bytes),
    /// The terminal has this size now.
    Resized(Winsize),
    /// Exit, and the total number of bytes that this client missed.
    End(End, u64),
}

/// How long a client that does not read blocks the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// As long as the client is attached, like a pipe: it started the process.
    Always,
    /// For [`STALL`] at most.
    Briefly,
}

/// Where a client begins to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// At the beginning; what is not kept any more is lost.
    Beginning,
    /// At the next output.
    Now,
    /// After this number of bytes since the start.
    Offset(u64),
    /// At the next output, after what the terminal shows; without a terminal at the beginning.
    Screen,
}

/// What a terminal shows.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) text: Text,
    pub(crate) size: Winsize,
    /// Number of bytes written so far.
    pub(crate) written: u64,
    pub(crate) ended: bool,
}

/// Error of a client that wants to begin after more bytes than were written.
#[derive(Debug, thiserror::Error)]
#[error("the process has written {written} bytes up to now: offset {offset} is not reached yet")]
pub(crate) struct OutOfRange {
    written: u64,
    offset: u64,
}

/// Output log.
pub(crate) struct Log {
    state: Mutex<State>,
    retention: Arc<Retention>,
    /// Notified when output was appended.
    grown: Notify,
    /// Notified when a client has read output or detached.
    taken: Notify,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Chunk>,
    /// Number of the first chunk kept.
    first: u64,
    cost: usize,
    /// Number of bytes dropped before the first chunk kept.
    dropped: u64,
    /// Number of bytes since the start.
    written: u64,
    end: Option<End>,
    readers: HashMap<u64, Position>,
    next_reader: u64,
    /// Screen of its terminal.
    screen: Option<Screen>,
    /// Time of the last output or input, or of the last reader's end.
    active: Option<Instant>,
}

struct Position {
    /// Number of the next chunk.
    chunk: u64,
    /// Number of bytes before the next one to read.
    byte: u64,
    /// Number of bytes of the next chunk that the client does not want.
    skip: usize,
    lost: u64,
    moved: Instant,
    hold: Hold,
    /// Pieces of the screen that come first.
    screen: VecDeque<Bytes>,
    /// Columns and rows that the client knows.
    size: Option<(u16, u16)>,
}

impl State {
    /// Returns how long the oldest chunk is still blocked by a client; `None` if it may be dropped.
    fn held(&self) -> Option<Duration> {
        let holding = self.readers.values().filter(|reader| reader.chunk <= self.first);
        let left = holding.map(|reader| match reader.hold {
            Hold::Always => Duration::MAX,
            Hold::Briefly => STALL.saturating_sub(reader.moved.elapsed()),
        });
        left.max().filter(|left| !left.is_zero())
    }

    /// Finds where a client begins: the number of its first chunk, of the bytes before, and of those of the chunk that it does
    /// not want.
    fn place(&self, from: From) -> Result<(u64, u64, usize), OutOfRange> {
        let written = self.written;
        let offset = match from {
            From::Screen if self.screen.is_some() => written,
            From::Beginning | From::Screen => 0,
            From::Now => written,
            From::Offset(offset) if offset <= written => offset,
            From::Offset(offset) => return Err(OutOfRange { written, offset }),
        };
        if offset < self.dropped {
            // The reader is told what it misses.
            return Ok((self.first, offset, 0));
        }
        let (mut chunk, mut begin) = (self.first, self.dropped);
        for data in self.chunks.iter().map(|chunk| &chunk.data) {
            let end = begin + data.len() as u64;
            if offset < end {
                break;
            }
            (chunk, begin) = (chunk + 1, end);
        }
        Ok((chunk, offset, (offset - begin) as usize))
    }

    /// Columns and rows of the terminal.
    fn size(&self) -> Option<(u16, u16)> {
        self.screen.as_ref().map(|screen| (screen.size().ws_col, screen.size().ws_row))
    }

    /// Drops the oldest unblocked chunks until at most `target` bytes are kept; returns the number of bytes
    /// freed.
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
    /// Creates the log of a process to be started, whose bytes are counted in `retention`; with the screen of its terminal, if it
    /// gets one.
    pub(crate) fn new(retention: &Arc<Retention>, terminal: Option<Winsize>) -> Arc<Self> {
        let state = State { screen: terminal.and_then(Screen::new), ..State::default() };
        let log = Arc::new(Self {
            state: Mutex::new(state),
            retention: Arc::clone(retention),
            grown: Notify::new(),
            taken: Notify::new(),
        });
        retention.add(&log.kept());
        log
    }

    /// Lets it lose its output before those of running processes, because its process has exited.
    pub(crate) fn retire(self: &Arc<Self>) {
        self.retention.ended(&self.kept());
    }

    fn kept(self: &Arc<Self>) -> Arc<dyn Kept> {
        Arc::clone(self) as Arc<dyn Kept>
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends output; waits while a client blocks. After the exit it discards output.
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

    /// Tries to append output; returns how long to wait at most before the next attempt.
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
            // The reader had nothing to read until now: start its time limit.
            reader.moved = Instant::now();
        }
        if !reserved {
            self.retention.take(cost);
        }
        state.cost += cost;
        state.written += chunk.data.len() as u64;
        state.active = Some(Instant::now());
        if let Some(screen) = &mut state.screen {
            screen.feed(&chunk.data);
        }
        state.chunks.push_back(chunk.clone());
        self.retention.release(freed);
        None
    }

    /// Drops the oldest unblocked output until at most `target` bytes are kept.
    fn shrink(&self, target: usize) {
        let freed = self.lock().shrink(target);
        self.retention.release(freed);
    }

    /// Records the exit; later calls have no effect.
    pub(crate) fn finish(&self, end: End) {
        let mut state = self.lock();
        state.end.get_or_insert(end);
        if let Some(screen) = &mut state.screen {
            screen.retire();
        }
        drop(state);
        self.grown.notify_waiters();
        self.taken.notify_waiters();
    }

    /// Returns whether the exit is recorded.
    pub(crate) fn ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// Attaches a client. Fails if it wants to begin after more bytes than were written.
    pub(crate) fn read(self: &Arc<Self>, hold: Hold, from: From) -> Result<Reader, OutOfRange> {
        let mut state = self.lock();
        let (chunk, byte, skip) = state.place(from)?;
        let shown = state.screen.as_ref().filter(|_| from == From::Screen).map(Screen::replay);
        let screen = shown.iter().flat_map(|shown| shown.chunks(CHUNK)).map(Bytes::copy_from_slice).collect();
        let size = state.size();
        let id = state.next_reader;
        state.next_reader += 1;
        let position = Position { chunk, byte, skip, lost: 0, moved: Instant::now(), hold, screen, size };
        state.readers.insert(id, position);
        drop(state);
        Ok(Reader { log: Arc::clone(self), id, begin: byte, size })
    }

    /// Returns what the terminal shows.
    pub(crate) fn shown(&self) -> Option<Shown> {
        let state = self.lock();
        let screen = state.screen.as_ref()?;
        let (text, size) = (screen.text(), screen.size());
        Some(Shown { text, size, written: state.written, ended: state.end.is_some() })
    }

    /// Changes the size of the screen, and tells it to the clients.
    pub(crate) fn resize(&self, size: Winsize) {
        if let Some(screen) = &mut self.lock().screen {
            screen.resize(size);
        }
        self.grown.notify_waiters();
    }

    /// Notes that a client wrote to the process.
    pub(crate) fn written_to(&self) {
        self.lock().active = Some(Instant::now());
    }

    /// Waits until no client has read, and nothing was written to or by the process, for this time.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let quiet = {
                let mut state = self.lock();
                let now = Instant::now();
                if !state.readers.is_empty() {
                    state.active = Some(now);
                }
                now.duration_since(*state.active.get_or_insert(now))
            };
            let Some(left) = limit.checked_sub(quiet).filter(|left| !left.is_zero()) else { return };
            tokio::time::sleep(left).await;
        }
    }
}

impl Kept for Log {
    fn cost(&self) -> usize {
        self.lock().cost
    }

    fn clear(&self) {
        self.shrink(0);
    }

    fn halve(&self) {
        let half = self.cost() / 2;
        self.shrink(half.max(FLOOR));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let cost = self.lock().cost;
        self.retention.release(cost);
    }
}

/// Position of one client in the log.
pub(crate) struct Reader {
    log: Arc<Log>,
    id: u64,
    begin: u64,
    size: Option<(u16, u16)>,
}

impl Reader {
    /// Returns the number of bytes that were written before those that it reads.
    pub(crate) fn begin(&self) -> u64 {
        self.begin
    }

    /// Returns the columns and rows of the terminal when it began.
    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        self.size
    }

    /// Returns the next output or the exit. Cancel-safe.
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
        let size = state.size();
        let reader = state.readers.get_mut(&self.id)?;
        reader.moved = Instant::now();
        if let Some(piece) = reader.screen.pop_front() {
            return Some(Item::Screen(piece));
        }
        if reader.size != size
            && let Some((ws_col, ws_row)) = size
        {
            reader.size = size;
            return Some(Item::Resized(Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }));
        }
        if reader.byte < state.dropped {
            let lost = state.dropped - reader.byte;
            reader.lost += lost;
            reader.byte = state.dropped;
            reader.chunk = state.first;
            reader.skip = 0;
            return Some(Item::Lost(lost));
        }
        let index = usize::try_from(reader.chunk - state.first).ok()?;
        if let Some(chunk) = state.chunks.get(index) {
            let data = chunk.data.slice(reader.skip.min(chunk.data.len())..);
            reader.chunk += 1;
            reader.skip = 0;
            reader.byte += data.len() as u64;
            return Some(Item::Chunk(Chunk { channel: chunk.channel, data }));
        }
        state.end.clone().map(|end| Item::End(end, reader.lost))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        state.readers.remove(&self.id);
        state.active = Some(Instant::now());
        drop(state);
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
        End {
            exit_code: 0,
            exited: true,
            status: "exit status 0".into(),
            signal: None,
            timed_out: false,
            out_of_memory: false,
            victim: None,
        }
    }

    fn log() -> Arc<Log> {
        Log::new(&Retention::new(64 << 20), None)
    }

    fn read(log: &Arc<Log>, hold: Hold) -> Reader {
        log.read(hold, From::Beginning).unwrap()
    }

    /// Collects what a client reads: byte counts and gaps in order, and the total of lost bytes.
    async fn drain(mut reader: Reader) -> (Vec<Result<usize, u64>>, u64) {
        let mut seen = Vec::new();
        loop {
            match reader.next().await {
                Item::Chunk(chunk) => match seen.last_mut() {
                    Some(Ok(total)) => *total += chunk.data.len(),
                    _ => seen.push(Ok(chunk.data.len())),
                },
                Item::Lost(bytes) => seen.push(Err(bytes)),
                Item::Screen(_) | Item::Resized(_) => panic!("it has no terminal"),
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
        let (seen, told) = drain(read(&log, Hold::Briefly)).await;
        let [Err(lost), Ok(total)] = seen[..] else { panic!("{seen:?}") };
        assert_eq!((total as u64 + lost, told), (100 * (32 << 10), lost));
        assert!(total > LIMIT - (64 << 10) && total <= LIMIT);
    }

    #[tokio::test]
    async fn a_reading_client_loses_nothing() {
        let log = log();
        let reading = tokio::spawn(drain(read(&log, Hold::Briefly)));
        for i in 0..200 {
            log.append(chunk(i, 32 << 10)).await;
        }
        log.finish(end());
        assert_eq!(reading.await.unwrap(), (vec![Ok(200 * (32 << 10))], 0));
    }

    #[tokio::test]
    async fn the_client_that_started_it_holds_it_up_for_as_long_as_it_likes() {
        let log = log();
        let reader = read(&log, Hold::Always);
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
        let mut slow = read(&log, Hold::Briefly);
        for i in 0..31 {
            log.append(chunk(i, 32 << 10)).await;
        }
        assert!(matches!(slow.next().await, Item::Chunk(first) if first.data[0] == 0));
        // Pretend that it has not read for longer than allowed.
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
        let reader = read(&log, Hold::Always);
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

    #[tokio::test]
    async fn a_client_begins_where_it_likes() {
        let log = log();
        for i in 0..50 {
            log.append(chunk(i, 32 << 10)).await;
        }
        let (all, half) = (50 * (32 << 10), 40 * (32 << 10) + 5);
        assert!(log.read(Hold::Briefly, From::Offset(all + 1)).is_err());
        let readers = [From::Offset(3), From::Offset(half), From::Offset(all), From::Now].map(|from| {
            let reader = log.read(Hold::Briefly, from).unwrap();
            (reader.begin(), tokio::spawn(drain(reader)))
        });
        log.append(chunk(9, 7)).await;
        log.finish(end());
        let mut seen = Vec::new();
        for (begin, reading) in readers {
            seen.push((begin, reading.await.unwrap().0));
        }
        let (first, items) = &seen[0];
        let [Err(lost), Ok(kept)] = items[..] else { panic!("{items:?}") };
        assert_eq!((*first, lost + kept as u64), (3, all + 7 - 3));
        assert_eq!(seen[1], (half, vec![Ok((all + 7 - half) as usize)]));
        assert_eq!(seen[2..], [(all, vec![Ok(7)]), (all, vec![Ok(7)])]);
    }
}
