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
    /// Tasks that one process and its descendants may be; none where the kernel does not count them.
    tasks: Option<u64>,
    next: AtomicU64,
    /// Groups that still had members when their process ended.
    leftover: Mutex<Vec<PathBuf>>,
}

/// The cgroup of one process.
pub(crate) struct Cgroup {
    path: PathBuf,
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
        let tasks = root.as_deref().and_then(|root| limit_tasks(&parent, root));
        Self { root, tasks, next: AtomicU64::new(1), leftover: Mutex::default() }
    }

    /// A new group, or none where cgroups do not work: killing then falls back to the process group.
    pub(crate) fn create(&self) -> Option<Cgroup> {
        self.sweep();
        let path = self.root.as_ref()?.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path).ok()?;
        if let Some(tasks) = self.tasks {
            let _ = fs::write(path.join("pids.max"), tasks.to_string());
        }
        Some(Cgroup { path })
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

/// Bounds the tasks of all processes together, so that a fork bomb leaves envd and the kernel theirs: three quarters of
/// what the machine has room for. One process with its descendants may have seven eighths of them, which leaves room for
/// the command that repairs.
fn limit_tasks(parent: &Path, root: &Path) -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let most = number("/proc/sys/kernel/threads-max")?.min(number("/proc/sys/kernel/pid_max")?);
    for group in [Path::new(MOUNT), parent, root] {
        fs::write(group.join("cgroup.subtree_control"), "+pids").ok()?;
    }
    let all = most / 4 * 3;
    fs::write(root.join("pids.max"), all.to_string()).ok()?;
    Some((all / 8 * 7).max(1))
}

impl Cgroup {
    /// `cgroup.procs`, which a child joins by writing "0".
    pub(crate) fn joining(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))
    }

    /// Kills every member at once.
    pub(crate) fn kill(&self) -> bool {
        fs::write(self.path.join("cgroup.kill"), "1").is_ok()
    }
}
