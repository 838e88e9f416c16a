// SPDX-License-Identifier: Apache-2.0
//! The watched directories of one watcher: which watch of the kernel belongs to which path. Directories are entered below
//! their parents, so that one that moves takes along what is below it.

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use connectrpc::ConnectError;
use rustix::{
    fs::inotify::{self, WatchFlags},
    io::Errno,
};

use super::limits::{Places, unwatchable};

/// Maximum number of names remembered because they were read. With more, some creations are reported twice.
const READ_NAMES: usize = 65_536;
/// Time between the two events of a move, which the kernel does not make at once. A directory whose second event does not
/// come has left what is watched.
const MOVE: Duration = Duration::from_millis(50);

/// Watched directories, by the kernel's number of their watch.
pub(super) struct Directories {
    queue: Arc<OwnedFd>,
    places: Places,
    root: i32,
    all: HashMap<i32, Directory>,
    /// Directories that have remembered names, and the number of these names.
    remembering: (Vec<i32>, usize),
    /// Directories that have moved, until it is known where to.
    moved: Vec<Moved>,
}

/// Where a directory is.
pub(super) enum Place {
    /// At this path, relative to the directory that was asked for.
    At(PathBuf),
    /// It, or one above, has moved; it is not known yet where to. What is in it is read once it is.
    Away,
    /// Directories were moved into each other, and not all events of that have been read.
    Unknown,
}

struct Directory {
    parent: i32,
    name: OsString,
    /// Whether it has moved, and it is not known yet where to.
    away: bool,
    device: u64,
    children: HashMap<OsString, i32>,
    /// Names that were reported because they were read; their events may still come.
    read: HashSet<OsString>,
}

struct Moved {
    cookie: u32,
    watch: i32,
    since: Instant,
}

impl Directories {
    /// Creates the set without directories.
    pub(super) fn new(queue: Arc<OwnedFd>, places: Places) -> Self {
        Self { queue, places, root: -1, all: HashMap::new(), remembering: (Vec::new(), 0), moved: Vec::new() }
    }

    /// Returns the watch of the directory that was asked for.
    pub(super) fn root(&self) -> i32 {
        self.root
    }

    pub(super) fn contains(&self, watch: i32) -> bool {
        self.all.contains_key(&watch)
    }

    /// Returns the device that a directory is on.
    pub(super) fn device(&self, watch: i32) -> Option<u64> {
        self.all.get(&watch).map(|directory| directory.device)
    }

    /// Watches the directory that was asked for.
    pub(super) fn add_root(&mut self, path: &Path, device: u64) -> Result<(), ConnectError> {
        let added = inotify::add_watch(&*self.queue, path, watched() | WatchFlags::ONLYDIR);
        self.root = added.map_err(|cause| unwatchable(path, cause))?;
        self.enter(self.root, self.root, OsStr::new(""), device, path)
    }

    /// Watches a directory within a watched one; returns its watch, which is `None` if it is gone or not to be read.
    pub(super) fn add(
        &mut self,
        parent: i32,
        name: &OsStr,
        path: &Path,
        device: u64,
    ) -> Result<Option<i32>, ConnectError> {
        let flags = watched() | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        match inotify::add_watch(&*self.queue, path, flags) {
            Ok(watch) => self.enter(watch, parent, name, device, path).map(|()| Some(watch)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => Ok(None),
            Err(cause) => Err(unwatchable(path, cause)),
        }
    }

    /// Returns where a directory is.
    pub(super) fn find(&self, watch: i32) -> Place {
        let mut names = Vec::new();
        let mut at = watch;
        while at != self.root {
            let Some(directory) = self.all.get(&at) else { return Place::Unknown };
            if directory.away {
                return Place::Away;
            }
            names.push(&directory.name);
            at = directory.parent;
            // No path is as long: they lead in a circle.
            if names.len() > libc::PATH_MAX as usize {
                return Place::Unknown;
            }
        }
        Place::At(names.into_iter().rev().collect())
    }

    /// Remembers that a name was reported because it was read.
    pub(super) fn remember(&mut self, watch: i32, name: &OsStr) {
        let Some(directory) = self.all.get_mut(&watch) else { return };
        let (remembering, count) = &mut self.remembering;
        if *count >= READ_NAMES {
            return;
        }
        *count += 1;
        if directory.read.is_empty() {
            remembering.push(watch);
        }
        directory.read.insert(name.to_owned());
    }

    /// Returns whether a name was remembered, and forgets it.
    pub(super) fn recall(&mut self, watch: i32, name: &OsStr) -> bool {
        self.all.get_mut(&watch).is_some_and(|directory| directory.read.remove(name))
    }

    /// Called when all events have been handled: forgets the remembered names, and directories that have left.
    pub(super) fn settle(&mut self) {
        for watch in std::mem::take(&mut self.remembering).0 {
            if let Some(directory) = self.all.get_mut(&watch) {
                directory.read = HashSet::new();
            }
        }
        let moved = std::mem::take(&mut self.moved);
        let (gone, waiting): (Vec<_>, _) = moved.into_iter().partition(|moved| moved.since.elapsed() >= MOVE);
        self.moved = waiting;
        gone.iter().for_each(|moved| self.forget(moved.watch));
    }

    /// Time until there is something to settle.
    pub(super) fn rest(&self) -> Option<Duration> {
        self.moved.iter().map(|moved| MOVE.saturating_sub(moved.since.elapsed())).min()
    }

    /// Takes a directory from its place. It stays watched: it may move to where it is watched too.
    pub(super) fn move_from(&mut self, parent: i32, name: &OsStr, cookie: u32) {
        let Some(above) = self.all.get_mut(&parent) else { return };
        if let Some(watch) = above.children.remove(name) {
            self.moved.push(Moved { cookie, watch, since: Instant::now() });
            if let Some(directory) = self.all.get_mut(&watch) {
                directory.away = true;
            }
        }
    }

    /// Gives a directory that has moved its new place.
    pub(super) fn move_to(&mut self, parent: i32, name: &OsStr, cookie: u32) {
        if let Some(moved) = self.moved.iter().find(|moved| moved.cookie == cookie) {
            self.place(moved.watch, parent, name);
        }
    }

    /// Drops a watch that the kernel has removed.
    pub(super) fn detach(&mut self, watch: i32) {
        let Some(directory) = self.all.remove(&watch) else { return };
        self.places.give(1);
        if let Some(above) = self.all.get_mut(&directory.parent)
            && above.children.get(&directory.name) == Some(&watch)
        {
            above.children.remove(&directory.name);
        }
    }

    /// Stops watching all of them.
    pub(super) fn clear(&mut self) {
        for watch in self.all.keys() {
            let _ = inotify::remove_watch(&*self.queue, *watch);
        }
        self.places.give(self.all.len());
        self.all.clear();
        self.remembering = (Vec::new(), 0);
        self.moved.clear();
    }

    /// Enters a watch, which the kernel may have had already: under another name if the directory has moved.
    fn enter(
        &mut self,
        watch: i32,
        parent: i32,
        name: &OsStr,
        device: u64,
        path: &Path,
    ) -> Result<(), ConnectError> {
        if !self.all.contains_key(&watch) {
            if let Err(error) = self.places.take(path) {
                let _ = inotify::remove_watch(&*self.queue, watch);
                return Err(error);
            }
            let (children, read) = (HashMap::new(), HashSet::new());
            let directory =
                Directory { parent: watch, name: OsString::new(), away: false, device, children, read };
            self.all.insert(watch, directory);
        }
        self.place(watch, parent, name);
        Ok(())
    }

    /// Gives a directory its place below another one.
    fn place(&mut self, watch: i32, parent: i32, name: &OsStr) {
        self.moved.retain(|moved| moved.watch != watch);
        let Some(directory) = self.all.get_mut(&watch) else { return };
        let old = (directory.parent, std::mem::replace(&mut directory.name, name.to_owned()));
        directory.parent = parent;
        directory.away = false;
        if watch == parent {
            return;
        }
        if let Some(above) = self.all.get_mut(&old.0)
            && above.children.get(&old.1) == Some(&watch)
        {
            above.children.remove(&old.1);
        }
        let above = self.all.get_mut(&parent);
        let replaced = above.and_then(|above| above.children.insert(name.to_owned(), watch));
        if let Some(replaced) = replaced.filter(|replaced| *replaced != watch) {
            self.forget(replaced);
        }
    }

    /// Stops watching a directory and what is below it.
    fn forget(&mut self, watch: i32) {
        let mut open = vec![watch];
        while let Some(watch) = open.pop() {
            let Some(directory) = self.all.get(&watch) else { continue };
            open.extend(directory.children.values());
            self.detach(watch);
            let _ = inotify::remove_watch(&*self.queue, watch);
        }
    }
}

impl Drop for Directories {
    fn drop(&mut self) {
        // The kernel removes the watches with the queue.
        self.places.give(self.all.len());
    }
}

/// What is watched of each directory.
fn watched() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
}
