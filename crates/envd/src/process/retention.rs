// SPDX-License-Identifier: Apache-2.0
//! Limit of the output kept for all processes together: the oldest exited processes lose theirs first, then
//! the largest.

use std::{
    collections::VecDeque,
    fs,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Upper bound of the default limit in bytes.
const MOST: usize = 64 << 20;
/// Lower bound of the default limit in bytes, for the smallest guests.
const LEAST: usize = 4 << 20;

/// Output of a process that counts against a [`Retention`].
pub(super) trait Kept: Send + Sync {
    /// Returns the number of bytes kept, including overhead.
    fn cost(&self) -> usize;
    /// Drops all output that no client blocks.
    fn clear(&self);
    /// Drops half of the output, as far as no client blocks it and more than the minimum of a process is left.
    fn halve(&self);
}

/// Accounting of the output kept for all processes, in bytes.
pub(crate) struct Retention {
    limit: usize,
    used: AtomicUsize,
    logs: Mutex<Logs>,
}

#[derive(Default)]
struct Logs {
    running: Vec<Weak<dyn Kept>>,
    /// Logs of exited processes in the order of their exits.
    ended: VecDeque<Weak<dyn Kept>>,
}

/// Default limit: 4 % of the memory, within the bounds.
pub(crate) fn default_limit() -> usize {
    (memory() / 25).clamp(LEAST, MOST)
}

/// Returns the machine's memory in bytes, or 0 if it is unknown.
pub(crate) fn memory() -> usize {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(0) << 10
}

impl Retention {
    /// Creates an account with a limit of `limit` bytes, plus one chunk per running process.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), logs: Mutex::default() })
    }

    fn logs(&self) -> MutexGuard<'_, Logs> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the log of a process to be started.
    pub(super) fn add(&self, log: &Arc<dyn Kept>) {
        self.logs().running.push(Arc::downgrade(log));
    }

    /// Moves a log to those of exited processes, which lose their output first.
    pub(super) fn ended(&self, log: &Arc<dyn Kept>) {
        let mut logs = self.logs();
        logs.running.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&Arc::downgrade(log)));
        logs.ended.retain(|other| other.strong_count() > 0);
        logs.ended.push_back(Arc::downgrade(log));
    }

    /// Reserves bytes, if necessary by dropping output of other processes; returns false if clients block all
    /// of it.
    pub(super) fn reserve(&self, bytes: usize) -> bool {
        self.try_take(bytes) || (self.make_room(bytes) && self.try_take(bytes))
    }

    /// Reserves bytes without checking the limit, for the minimum of each process.
    pub(super) fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Releases bytes.
    pub(super) fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }

    fn try_take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    fn make_room(&self, bytes: usize) -> bool {
        let enough = || self.used.load(Ordering::Acquire).saturating_add(bytes) <= self.limit;
        let mut logs = self.logs();
        let mut held = VecDeque::new();
        while !enough() {
            let Some(next) = logs.ended.pop_front() else { break };
            let Some(log) = next.upgrade() else { continue };
            log.clear();
            if log.cost() > 0 {
                held.push_back(next);
            }
        }
        held.append(&mut logs.ended);
        logs.ended = held;
        if enough() {
            return true;
        }
        let mut running: Vec<_> = logs.running.iter().filter_map(Weak::upgrade).collect();
        drop(logs);
        running.sort_by_cached_key(|log| std::cmp::Reverse(log.cost()));
        for log in running {
            // Halve it instead of freeing only the requested bytes, so that the next requests need not do
            // this again.
            log.halve();
            if enough() {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::output::{CHUNK, Channel, Chunk, End, FLOOR, From, Hold, Item, LIMIT, Log},
        *,
    };

    fn chunk() -> Chunk {
        Chunk { channel: Channel::Stdout, data: vec![0; CHUNK].into() }
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

    async fn ended_with(retention: &Arc<Retention>, chunks: usize) -> Arc<Log> {
        let log = Log::new(retention, None);
        for _ in 0..chunks {
            log.append(chunk()).await;
        }
        log.finish(end());
        log.retire();
        log
    }

    #[tokio::test]
    async fn the_oldest_ended_process_loses_its_output_first_and_keeps_its_end() {
        let retention = Retention::new(3 * LIMIT);
        let mut logs = Vec::new();
        for _ in 0..4 {
            logs.push(ended_with(&retention, 32).await);
            assert!(retention.used.load(Ordering::Acquire) <= 3 * LIMIT);
        }
        assert_eq!(logs[0].cost(), 0);
        assert!(logs[2].cost() > 0 && logs[3].cost() > LIMIT / 2);
        let mut late = logs[0].read(Hold::Briefly, From::Beginning).unwrap();
        assert!(matches!(late.next().await, Item::Lost(bytes) if bytes == 32 * CHUNK as u64));
        assert!(matches!(late.next().await, Item::End(end, _) if end.exited));
        drop(late);
        drop(logs);
        assert_eq!(retention.used.load(Ordering::Acquire), 0, "all room is given back");
    }

    #[tokio::test]
    async fn a_process_without_clients_gives_way_to_others() {
        let retention = Retention::new(2 * LIMIT);
        let quiet = [Log::new(&retention, None), Log::new(&retention, None)];
        for log in &quiet {
            for _ in 0..31 {
                log.append(chunk()).await;
            }
        }
        let log = Log::new(&retention, None);
        let _reader = log.read(Hold::Always, From::Beginning).unwrap();
        for _ in 0..16 {
            log.append(chunk()).await;
        }
        assert!(quiet.iter().any(|log| log.cost() < LIMIT / 2 + FLOOR));
        assert!(retention.used.load(Ordering::Acquire) <= 2 * LIMIT);
    }

    #[tokio::test]
    async fn clients_that_hold_all_room_do_not_stop_other_processes() {
        let retention = Retention::new(LIMIT);
        let full = Log::new(&retention, None);
        let _unread = full.read(Hold::Always, From::Beginning).unwrap();
        let filling = {
            let full = Arc::clone(&full);
            tokio::spawn(async move {
                loop {
                    full.append(chunk()).await;
                }
            })
        };
        while full.cost() < LIMIT - FLOOR {
            tokio::task::yield_now().await;
        }
        // With no client, and with one that reads.
        for mut reader in [
            None,
            Some(Log::new(&retention, None))
                .map(|log| (log.read(Hold::Always, From::Beginning).unwrap(), log)),
        ] {
            let log = reader.as_ref().map_or_else(|| Log::new(&retention, None), |(_, log)| Arc::clone(log));
            for _ in 0..100 {
                let appended = tokio::time::timeout(Duration::from_secs(30), log.append(chunk())).await;
                assert!(appended.is_ok(), "it waits for room that others hold");
                if let Some((reader, _)) = &mut reader {
                    assert!(matches!(reader.next().await, Item::Chunk(_)));
                }
            }
        }
        filling.abort();
        assert!(full.cost() >= LIMIT - FLOOR, "nothing that a client holds is dropped");
    }
}
