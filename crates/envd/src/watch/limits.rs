// SPDX-License-Identifier: Apache-2.0
//! Limits of watchers, and the errors for those of the kernel.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use connectrpc::ConnectError;

/// Limits of all watchers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Watchers at a time. The kernel has 128 inotify instances for root, who may have programs that need some.
    pub(crate) watchers: usize,
    /// Directories of all watchers together; each takes about 200 bytes of envd's, and 1 KiB of the kernel's.
    pub(crate) directories: usize,
    /// Events kept for a client that polls.
    pub(crate) kept: usize,
    /// Time after which a watcher that nobody polls is removed.
    pub(crate) idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { watchers: 64, directories: 131_072, kept: 8192, idle: Duration::from_secs(3600) }
    }
}

/// Directories that can still be watched.
#[derive(Clone)]
pub(super) struct Places {
    left: Arc<AtomicUsize>,
    most: usize,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { left: Arc::new(AtomicUsize::new(most)), most }
    }

    /// Takes a place for one directory.
    pub(super) fn take(&self, path: &Path) -> Result<(), ConnectError> {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        taken.map(drop).map_err(|_| {
            ConnectError::resource_exhausted(format!(
                "cannot watch {}: {} directories are watched, which is the maximum of all watchers; watch fewer",
                path.display(),
                self.most
            ))
        })
    }

    /// Returns places.
    pub(super) fn give(&self, count: usize) {
        self.left.fetch_add(count, Ordering::Relaxed);
    }
}

/// The error for a directory that cannot be watched.
pub(super) fn unwatchable(path: &Path, cause: rustix::io::Errno) -> ConnectError {
    use rustix::io::Errno as E;
    let path_shown = path.display();
    match cause {
        E::NOSPC => ConnectError::resource_exhausted(format!(
            "cannot watch {path_shown}: the limit of watched directories is reached; raise fs.inotify.max_user_watches \
             ({}) with sysctl, or watch fewer directories",
            now("max_user_watches")
        )),
        E::NOMEM => ConnectError::resource_exhausted(format!(
            "cannot watch {path_shown}: the kernel has no memory for that; watch fewer directories"
        )),
        _ => crate::entry::failed("watch", path, &io::Error::from(cause)),
    }
}

/// The error for an inotify instance that cannot be made.
pub(super) fn no_instance(cause: rustix::io::Errno) -> ConnectError {
    use rustix::io::Errno as E;
    match cause {
        E::MFILE | E::NFILE => ConnectError::resource_exhausted(format!(
            "cannot watch: the limit of inotify instances or of open files is reached; end programs that watch, or raise \
             fs.inotify.max_user_instances ({}) with sysctl",
            now("max_user_instances")
        )),
        _ => ConnectError::internal(format!("cannot watch: {}", io::Error::from(cause))),
    }
}

fn now(setting: &str) -> String {
    let value = fs::read_to_string(format!("/proc/sys/fs/inotify/{setting}"));
    value.map_or_else(|_| "its value is unknown".into(), |value| format!("now {}", value.trim()))
}
