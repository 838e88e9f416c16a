// SPDX-License-Identifier: Apache-2.0
//! Watcher whose client asks for the events from time to time.

use std::{
    hash::{BuildHasher as _, RandomState},
    mem::size_of,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use connectrpc::ConnectError;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until},
};
use wrenn_rpc::filesystem::{EntryInfo, FilesystemEvent};

use super::{Watchers, tree::Happened, watcher::Watcher};

/// Maximum memory of the events that one watcher keeps.
const BYTES: usize = 2 << 20;

/// A watcher with the events that were not asked for yet. Dropping it stops it.
pub(super) struct Polled {
    kept: Arc<Mutex<Kept>>,
    task: AbortHandle,
}

/// Makes the id of a watcher, which cannot be guessed.
pub(super) fn new_id() -> String {
    // RandomState has new random keys each time.
    let part = |number: u8| RandomState::new().hash_one(number);
    format!("w{:016x}{:016x}", part(0), part(1))
}

impl Polled {
    /// Starts to keep events. When nobody asks for them for too long, the watcher removes itself.
    pub(super) fn start(watcher: Watcher, all: &Arc<Watchers>, id: String) -> Self {
        let kept = Kept {
            events: Vec::new(),
            bytes: 0,
            overflow: false,
            ended: None,
            asked: Instant::now(),
            most: all.limits.kept,
        };
        let kept = Arc::new(Mutex::new(kept));
        let task = tokio::spawn(keep(watcher, Arc::clone(&kept), Arc::downgrade(all), id));
        Self { kept, task: task.abort_handle() }
    }

    /// Takes the events. Once there are none and none can come, the reason for that is the error.
    pub(super) fn take(&self) -> Result<(Vec<FilesystemEvent>, bool), ConnectError> {
        let mut kept = guard(&self.kept);
        kept.asked = Instant::now();
        kept.bytes = 0;
        let (events, overflow) = (std::mem::take(&mut kept.events), std::mem::take(&mut kept.overflow));
        match &kept.ended {
            Some(error) if events.is_empty() && !overflow => Err(error.clone()),
            _ => Ok((events, overflow)),
        }
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Kept {
    events: Vec<FilesystemEvent>,
    /// Memory of the events.
    bytes: usize,
    /// Whether events before these were lost.
    overflow: bool,
    ended: Option<ConnectError>,
    /// When they were asked for last.
    asked: Instant,
    most: usize,
}

impl Kept {
    fn add(&mut self, happened: Happened) {
        let event = match happened {
            Happened::Change(change) => FilesystemEvent::from(change),
            Happened::Overflow => return self.lose(),
        };
        self.bytes += memory(&event);
        self.events.push(event);
        if self.events.len() > self.most || self.bytes > BYTES {
            self.lose();
        }
    }

    /// Drops the events: the client has to list the directory anew, which includes what they tell.
    fn lose(&mut self) {
        self.events = Vec::new();
        self.bytes = 0;
        self.overflow = true;
    }
}

fn guard(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Estimates the memory of an event.
fn memory(event: &FilesystemEvent) -> usize {
    let entry = event.entry.as_option().map_or(0, |entry| {
        let metadata = entry.metadata.iter().map(|(k, v)| k.len() + v.len() + 64).sum::<usize>();
        size_of::<EntryInfo>() + 2 * entry.path.len() + metadata + 64
    });
    size_of::<FilesystemEvent>() + event.name.len() + entry
}

async fn keep(mut watcher: Watcher, kept: Arc<Mutex<Kept>>, all: Weak<Watchers>, id: String) {
    let mut ended = false;
    loop {
        let Some(idle) = all.upgrade().map(|all| all.limits.idle) else { return };
        let until = guard(&kept).asked + idle;
        tokio::select! {
            happened = watcher.next(), if !ended => match happened {
                Ok(happened) => {
                    let mut kept = guard(&kept);
                    happened.into_iter().for_each(|one| kept.add(one));
                }
                Err(error) => {
                    guard(&kept).ended = Some(error);
                    ended = true;
                }
            },
            () = sleep_until(until) => {
                // It may have been asked meanwhile. Dropping it aborts this task at its next await, which does not come.
                if guard(&kept).asked + idle <= Instant::now() {
                    if let Some(all) = all.upgrade() {
                        drop(all.polled().remove(&id));
                    }
                    return;
                }
            }
        }
    }
}
