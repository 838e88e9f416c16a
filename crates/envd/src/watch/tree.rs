// SPDX-License-Identifier: Apache-2.0
//! What the kernel reports about the directories of one watcher. Everything here blocks.
//!
//! inotify watches single directories. One that is made later is watched when its creation is read, and what is in it by
//! then is found by reading it: after its watch is there, so that nothing is between the two. What both the reading and an
//! event tell is reported once: names that were read are remembered until the queue has been read to its end.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::{self, ReadDir},
    io,
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use connectrpc::ConnectError;
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags},
    io::Errno,
};
use wrenn_rpc::filesystem::{EntryInfo, EventType};

use super::{
    Asked,
    directories::{Directories, Place},
    file_systems::{Kind, kind},
    limits::{Places, no_instance, unwatchable},
};
use crate::{
    entry::{entry, failed},
    users::Names,
};

/// Events of one step.
const BATCH: usize = 256;
/// Things looked at in one step, also if they are no events.
const EFFORT: usize = 4096;
/// Bytes read from the kernel's queue at once.
const BUFFER: usize = 16 << 10;

/// A thing that happened.
pub(super) enum Happened {
    Change(Change),
    /// Changes were lost; those after this are complete again.
    Overflow,
}

/// A change of an entry.
pub(super) struct Change {
    /// Path relative to the watched directory, which is "." itself.
    pub(super) name: String,
    pub(super) kind: EventType,
    /// The entry, if it was asked for and is there.
    pub(super) entry: Option<Box<EntryInfo>>,
}

/// Result of a step.
pub(super) enum Step {
    /// These happened; there may be more.
    Happened(Vec<Happened>),
    /// Nothing to do until the queue is readable, or this time is over.
    Idle(Option<Duration>),
    /// Nothing more is reported.
    Ended(ConnectError),
}

/// What one watcher watches.
pub(super) struct Tree {
    queue: Arc<OwnedFd>,
    asked: Asked,
    /// Device and inode of the directory that was asked for: its path may lead to another one later.
    identity: (u64, u64),
    directories: Directories,
    /// Events that were read from the queue.
    events: VecDeque<Event>,
    /// Directories to read.
    unread: VecDeque<i32>,
    /// The directory that is being read.
    reading: Option<(i32, ReadDir)>,
    ended: Option<ConnectError>,
}

struct Event {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<OsString>,
}

impl Tree {
    /// Begins to watch.
    pub(super) fn open(asked: Asked, places: Places) -> Result<Self, ConnectError> {
        let path = &asked.path;
        let meta = fs::metadata(path).map_err(|e| failed("watch", path, &e))?;
        if !meta.is_dir() {
            return Err(ConnectError::invalid_argument(format!("{} is not a directory", path.display())));
        }
        let kind = kind(path).map_err(|e| failed("watch", path, &e))?;
        if kind == Kind::Network && !asked.network {
            return Err(ConnectError::invalid_argument(format!(
                "{} is on a network file system, where changes by others are not reported; set allowNetworkMounts to \
                 watch it nevertheless",
                path.display()
            )));
        }
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(no_instance)?;
        let queue = Arc::new(inotify);
        let mut tree = Self {
            queue: Arc::clone(&queue),
            identity: (meta.dev(), meta.ino()),
            asked,
            directories: Directories::new(queue, places),
            events: VecDeque::new(),
            unread: VecDeque::new(),
            reading: None,
            ended: None,
        };
        tree.begin()?;
        Ok(tree)
    }

    /// Returns the queue, to wait until it is readable.
    pub(super) fn queue(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.queue)
    }

    /// Handles some of what happened.
    pub(super) fn step(&mut self) -> Step {
        let mut happened = Vec::new();
        for _ in 0..EFFORT {
            if happened.len() >= BATCH || self.ended.is_some() {
                break;
            }
            match self.advance(&mut happened) {
                Ok(true) => {}
                Ok(false) if happened.is_empty() => return Step::Idle(self.directories.rest()),
                Ok(false) => break,
                Err(error) => self.ended = Some(error),
            }
        }
        if let (true, Some(error)) = (happened.is_empty(), &self.ended) {
            return Step::Ended(error.clone());
        }
        if self.asked.entries {
            self.look_up(&mut happened);
        }
        Step::Happened(happened)
    }

    /// Does the next thing; returns false if there is none.
    fn advance(&mut self, happened: &mut Vec<Happened>) -> Result<bool, ConnectError> {
        // Directories are read before more events, which may tell that what is read there is gone again.
        if let Some((watch, items)) = &mut self.reading {
            let watch = *watch;
            match items.next() {
                Some(Ok(item)) => self.found(watch, &item, Some(happened))?,
                // It was removed while it was read.
                Some(Err(_)) | None => self.reading = None,
            }
            return Ok(true);
        }
        if let Some(watch) = self.unread.pop_front() {
            self.read_directory(watch)?;
            return Ok(true);
        }
        if let Some(event) = self.events.pop_front() {
            self.handle(&event, happened)?;
            return Ok(true);
        }
        if self.read_queue()? {
            return Ok(true);
        }
        // All events from before the readings have been handled.
        self.directories.settle();
        Ok(false)
    }

    /// Watches the directory that was asked for, and all below it, without reporting what is there.
    fn begin(&mut self) -> Result<(), ConnectError> {
        let path = self.asked.path.clone();
        self.check_root()?;
        self.directories.add_root(&path, self.identity.0)?;
        if !self.asked.recursive {
            return Ok(());
        }
        self.unread.push_back(self.directories.root());
        while let Some(watch) = self.unread.pop_front() {
            self.read_directory(watch)?;
            while let Some((_, items)) = &mut self.reading {
                match items.next() {
                    Some(Ok(item)) => self.found(watch, &item, None)?,
                    Some(Err(_)) | None => self.reading = None,
                }
            }
        }
        Ok(())
    }

    /// Begins anew after events were lost: directories may have come and gone.
    fn begin_again(&mut self, happened: &mut Vec<Happened>) -> Result<(), ConnectError> {
        self.directories.clear();
        self.unread.clear();
        self.reading = None;
        self.events.clear();
        // Nothing is watched, so this ends.
        while self.read_queue()? {
            self.events.clear();
        }
        self.begin()?;
        // Told only now: what the client reads after it is as it is while it is watched.
        happened.push(Happened::Overflow);
        Ok(())
    }

    /// Reads from the kernel's queue; returns false if that is empty.
    fn read_queue(&mut self) -> Result<bool, ConnectError> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(&*self.queue, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(cause) => return Err(unwatchable(&self.asked.path, cause)),
            };
            self.events.push_back(Event {
                watch: event.wd(),
                flags: event.events(),
                cookie: event.cookie(),
                name: event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned()),
            });
            if reader.is_buffer_empty() {
                return Ok(true);
            }
        }
    }

    fn handle(&mut self, event: &Event, happened: &mut Vec<Happened>) -> Result<(), ConnectError> {
        let flags = event.flags;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.begin_again(happened);
        }
        if !self.directories.contains(event.watch) {
            return Ok(());
        }
        let is_root = event.watch == self.directories.root();
        if flags.contains(ReadFlags::IGNORED) {
            self.directories.detach(event.watch);
            return if is_root { Err(self.gone("was removed")) } else { Ok(()) };
        }
        let Some(name) = &event.name else {
            return if is_root { self.handle_root(flags, happened) } else { Ok(()) };
        };
        let known = self.directories.recall(event.watch, name);
        if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) && known {
            // It was reported, and if it is a directory watched, when its directory was read.
            return Ok(());
        }
        let path = match self.directories.find(event.watch) {
            Place::At(path) => path.join(name),
            Place::Away => {
                if flags.contains(ReadFlags::MOVED_FROM) {
                    self.directories.move_from(event.watch, name, event.cookie);
                }
                return Ok(());
            }
            Place::Unknown => return self.begin_again(happened),
        };
        let mut report = |kind| happened.push(changed(&path, kind));
        let is_directory = flags.contains(ReadFlags::ISDIR) && self.asked.recursive;
        if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            report(EventType::EVENT_TYPE_CREATE);
        } else if flags.contains(ReadFlags::MOVED_FROM) {
            report(EventType::EVENT_TYPE_RENAME);
        } else if flags.contains(ReadFlags::DELETE) {
            report(EventType::EVENT_TYPE_REMOVE);
        } else if flags.contains(ReadFlags::MODIFY) {
            report(EventType::EVENT_TYPE_WRITE);
        } else if flags.contains(ReadFlags::ATTRIB) {
            report(EventType::EVENT_TYPE_CHMOD);
        }
        if !is_directory {
            return Ok(());
        }
        if flags.contains(ReadFlags::MOVED_FROM) {
            self.directories.move_from(event.watch, name, event.cookie);
        } else if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            self.directories.move_to(event.watch, name, event.cookie);
            self.watch(event.watch, name, &path)?;
        }
        Ok(())
    }

    fn handle_root(&self, flags: ReadFlags, happened: &mut Vec<Happened>) -> Result<(), ConnectError> {
        let root = Path::new(".");
        if flags.contains(ReadFlags::DELETE_SELF) {
            happened.push(changed(root, EventType::EVENT_TYPE_REMOVE));
            return Err(self.gone("was removed"));
        }
        if flags.contains(ReadFlags::MOVE_SELF) {
            happened.push(changed(root, EventType::EVENT_TYPE_RENAME));
            return Err(self.gone("has moved"));
        }
        if flags.contains(ReadFlags::UNMOUNT) {
            happened.push(changed(root, EventType::EVENT_TYPE_REMOVE));
            return Err(self.gone("was unmounted"));
        }
        if flags.contains(ReadFlags::ATTRIB) {
            happened.push(changed(root, EventType::EVENT_TYPE_CHMOD));
        }
        Ok(())
    }

    /// Opens a watched directory to read it.
    fn read_directory(&mut self, watch: i32) -> Result<(), ConnectError> {
        let Place::At(path) = self.directories.find(watch) else { return Ok(()) };
        let path = self.asked.path.join(path);
        match fs::read_dir(&path) {
            Ok(items) => self.reading = Some((watch, items)),
            // It has gone or moved; the events about that follow.
            Err(error) if is_gone(&error) => self.check_root()?,
            Err(error) if is_closed(&error) => {}
            Err(error) => return Err(failed("watch", &path, &error)),
        }
        Ok(())
    }

    /// Takes what was found in a directory: reports it, except at the beginning, and watches it if it is a directory.
    fn found(
        &mut self,
        watch: i32,
        item: &fs::DirEntry,
        happened: Option<&mut Vec<Happened>>,
    ) -> Result<(), ConnectError> {
        let name = item.file_name();
        let Place::At(path) = self.directories.find(watch) else { return Ok(()) };
        let path = path.join(&name);
        let is_directory = item.file_type().is_ok_and(|kind| kind.is_dir());
        if let Some(happened) = happened {
            happened.push(changed(&path, EventType::EVENT_TYPE_CREATE));
            // Its content was written before it was found.
            let written = !is_directory && item.metadata().is_ok_and(|meta| meta.is_file() && meta.len() > 0);
            if written {
                happened.push(changed(&path, EventType::EVENT_TYPE_WRITE));
            }
            self.directories.remember(watch, &name);
        }
        if is_directory { self.watch(watch, &name, &path) } else { Ok(()) }
    }

    /// Watches a directory within a watched one, and lets it be read.
    fn watch(&mut self, parent: i32, name: &OsStr, path: &Path) -> Result<(), ConnectError> {
        let path = self.asked.path.join(path);
        let Some(above) = self.directories.device(parent) else { return Ok(()) };
        let device = match fs::symlink_metadata(&path) {
            Ok(meta) => meta.dev(),
            Err(error) if is_gone(&error) => return self.check_root(),
            Err(error) if is_closed(&error) => return Ok(()),
            Err(error) => return Err(failed("watch", &path, &error)),
        };
        if device != above {
            // What is mounted there and does not report all is left out: it would only use up watches.
            match kind(&path) {
                Ok(Kind::Local) => {}
                Ok(Kind::Network) if self.asked.network => {}
                _ => return Ok(()),
            }
        }
        match self.directories.add(parent, name, &path, device)? {
            Some(watch) => self.unread.push_back(watch),
            None => self.check_root()?,
        }
        Ok(())
    }

    /// Fails if the path does not lead to the watched directory any more, such as when one above has moved.
    fn check_root(&self) -> Result<(), ConnectError> {
        match fs::metadata(&self.asked.path) {
            Ok(meta) if (meta.dev(), meta.ino()) == self.identity => Ok(()),
            Ok(_) => Err(self.gone("was replaced")),
            Err(_) => Err(self.gone("was removed or has moved")),
        }
    }

    fn gone(&self, what: &str) -> ConnectError {
        ConnectError::not_found(format!("the watched directory {} {what}", self.asked.path.display()))
    }

    /// Adds the entries of what is still there.
    fn look_up(&self, happened: &mut [Happened]) {
        let mut names = None;
        for one in happened {
            let Happened::Change(change) = one else { continue };
            if matches!(change.kind, EventType::EVENT_TYPE_REMOVE | EventType::EVENT_TYPE_RENAME) {
                continue;
            }
            let path = match change.name.as_str() {
                "." => self.asked.path.clone(),
                name => self.asked.path.join(name),
            };
            change.entry = entry(&path, names.get_or_insert_with(Names::load)).ok().map(Box::new);
        }
    }
}

fn changed(path: &Path, kind: EventType) -> Happened {
    Happened::Change(Change { name: path.to_string_lossy().into_owned(), kind, entry: None })
}

/// Returns whether the error is that a directory is not there, or that something else is in its place.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(libc::ELOOP)
}

/// Returns whether a directory cannot be read even by root: a FUSE file system of another user, or one without a server.
fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
        || matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ESTALE | libc::EIO))
}
