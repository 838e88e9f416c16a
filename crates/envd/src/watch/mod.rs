// SPDX-License-Identifier: Apache-2.0
//! Watches directories: what changes in them is reported as it happens, or when the client asks.
//!
//! Each watcher has an inotify instance of its own, so that a slow client delays only itself. Changes wait in the kernel's
//! queue, whose length the kernel bounds (`fs.inotify.max_queued_events`); if it overflows, the client is told. The number
//! of watchers, the directories of all of them together, and the events kept for clients that ask are bounded here.

mod directories;
mod feed;
mod file_systems;
mod limits;
mod polled;
mod tree;
mod watcher;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use connectrpc::{ConnectError, RequestContext, ServiceStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wrenn_rpc::filesystem::{FilesystemEvent, WatchDirResponse};

pub(crate) use self::limits::Limits;
use self::{feed::Feed, limits::Places, polled::Polled, watcher::Watcher};

/// What a client wants to watch.
pub(crate) struct Asked {
    /// Absolute path of the directory.
    pub(crate) path: PathBuf,
    /// Whether to include the directories below.
    pub(crate) recursive: bool,
    /// Whether events carry the entry.
    pub(crate) entries: bool,
    /// Whether network file systems may be watched.
    pub(crate) network: bool,
}

/// All watchers of this sandbox. Those that clients poll are found by their ids, which cannot be guessed: as every call
/// they need the token, and clients do not name the user again when they poll.
pub(crate) struct Watchers {
    limits: Limits,
    /// Watchers that can still be made.
    free: Arc<Semaphore>,
    /// Directories that can still be watched.
    places: Places,
    polled: Mutex<HashMap<String, Polled>>,
}

impl Watchers {
    /// Creates the set without watchers.
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            free: Arc::new(Semaphore::new(limits.watchers)),
            places: Places::new(limits.directories),
            polled: Mutex::default(),
        })
    }

    /// Watches until the stream is dropped.
    pub(crate) async fn stream(
        &self,
        ctx: &RequestContext,
        asked: Asked,
    ) -> Result<ServiceStream<WatchDirResponse>, ConnectError> {
        let watcher = Watcher::open(asked, self.place()?, self.places.clone()).await?;
        Ok(Feed::new(ctx, watcher).messages())
    }

    /// Watches for a client that polls; returns the watcher's id.
    pub(crate) async fn create(self: &Arc<Self>, asked: Asked) -> Result<String, ConnectError> {
        let watcher = Watcher::open(asked, self.place()?, self.places.clone()).await?;
        let id = polled::new_id();
        // Held until it is in the map, because an idle one removes itself from there.
        let mut polled = self.polled();
        polled.insert(id.clone(), Polled::start(watcher, self, id.clone()));
        Ok(id)
    }

    /// Takes the events of a polled watcher, and whether there were more than it keeps.
    pub(crate) fn take(&self, id: &str) -> Result<(Vec<FilesystemEvent>, bool), ConnectError> {
        self.polled().get(id).ok_or_else(|| self.unknown(id))?.take()
    }

    /// Removes a polled watcher.
    pub(crate) fn remove(&self, id: &str) -> Result<(), ConnectError> {
        self.polled().remove(id).map(drop).ok_or_else(|| self.unknown(id))
    }

    fn polled(&self) -> MutexGuard<'_, HashMap<String, Polled>> {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, ConnectError> {
        Arc::clone(&self.free).try_acquire_owned().map_err(|_| {
            let most = self.limits.watchers;
            ConnectError::resource_exhausted(format!(
                "{most} watchers are open, which is the maximum; close one, or watch a directory above with `recursive`"
            ))
        })
    }

    fn unknown(&self, id: &str) -> ConnectError {
        let shown: String = id.chars().take(64).collect();
        let idle = self.limits.idle.as_secs();
        ConnectError::not_found(format!(
            "no watcher '{shown}': it was removed, or its events were not asked for during {idle} s"
        ))
    }
}
