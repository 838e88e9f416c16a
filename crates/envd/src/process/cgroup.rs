//! One cgroup per process, so that killing reaches descendants that left the process group.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

const MOUNT: &str = "/sys/fs/cgroup";

/// Where process cgroups live; empty where there is no cgroup2.
pub(crate) struct Cgroups {
    root: Option<PathBuf>,
    next: AtomicU64,
    /// Groups that still had members when their process ended.
    leftover: Mutex<Vec<PathBuf>>,
}

/// The cgroup of one process.
pub(crate) struct Cgroup {
    path: PathBuf,
    /// `cgroup.procs`, open for the child to join by writing "0".
    pub(crate) procs: File,
}

impl Cgroups {
    /// Makes the parent group where cgroup2 is mounted and writable.
    pub(crate) fn open() -> Self {
        let parent = Path::new(MOUNT).join("wrenn");
        let usable = Path::new(MOUNT).join("cgroup.controllers").exists()
            && (fs::create_dir(&parent).is_ok() || parent.join("cgroup.procs").exists());
        // Kept apart by our pid: another envd on the same machine (a test) has its own.
        let root = usable.then(|| parent.join(std::process::id().to_string()));
        let root = root.filter(|path| fs::create_dir(path).is_ok() || path.join("cgroup.procs").exists());
        Self { root, next: AtomicU64::new(1), leftover: Mutex::default() }
    }

    /// A new group, or none where cgroups do not work: killing then falls back to the process group.
    pub(crate) fn create(&self) -> Option<Cgroup> {
        self.sweep();
        let path = self.root.as_ref()?.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path).ok()?;
        match OpenOptions::new().write(true).open(path.join("cgroup.procs")) {
            Ok(procs) => Some(Cgroup { path, procs }),
            Err(_) => {
                let _ = fs::remove_dir(&path);
                None
            }
        }
    }

    /// Removes a group, now or once its last member is gone.
    pub(crate) fn remove(&self, group: Cgroup) {
        if fs::remove_dir(&group.path).is_err() {
            self.leftover.lock().unwrap_or_else(PoisonError::into_inner).push(group.path);
        }
    }

    fn sweep(&self) {
        self.leftover
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|path| fs::remove_dir(path).is_err_and(|e| e.kind() != io::ErrorKind::NotFound));
    }
}

impl Cgroup {
    /// Kills every member at once.
    pub(crate) fn kill(&self) -> bool {
        fs::write(self.path.join("cgroup.kill"), "1").is_ok()
    }
}
