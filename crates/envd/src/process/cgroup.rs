// SPDX-License-Identifier: Apache-2.0
//! One cgroup per process, so that a kill also reaches descendants that left the process group.

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

/// Parent cgroup of processes; without cgroup2 there is none.
pub(crate) struct Cgroups {
    root: Option<PathBuf>,
    /// Maximum number of tasks of one process with its descendants; `None` if the kernel does not count them.
    tasks: Option<u64>,
    next: AtomicU64,
    /// Cgroups that still had members when their process exited.
    leftover: Mutex<Vec<PathBuf>>,
}

/// Cgroup of one process.
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroups {
    /// Creates the parent cgroup if cgroup2 is mounted and writable.
    pub(crate) fn open() -> Self {
        let parent = Path::new(MOUNT).join("wrenn");
        let usable = Path::new(MOUNT).join("cgroup.controllers").exists()
            && (fs::create_dir(&parent).is_ok() || parent.join("cgroup.procs").exists());
        // Named after our process id, so that another envd on the same machine (in a test) has its own.
        let root = usable.then(|| parent.join(std::process::id().to_string()));
        let root = root.filter(|path| fs::create_dir(path).is_ok() || path.join("cgroup.procs").exists());
        let tasks = root.as_deref().and_then(|root| limit_tasks(&parent, root));
        Self { root, tasks, next: AtomicU64::new(1), leftover: Mutex::default() }
    }

    /// Creates a cgroup; `None` if cgroups do not work, in which case kills use the process group.
    pub(crate) fn create(&self) -> Option<Cgroup> {
        self.sweep();
        let path = self.root.as_ref()?.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path).ok()?;
        if let Some(tasks) = self.tasks {
            let _ = fs::write(path.join("pids.max"), tasks.to_string());
        }
        Some(Cgroup { path })
    }

    /// Removes a cgroup, now or after its last member has exited.
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

/// Limits the tasks of all processes to three quarters of the machine's maximum, so that a fork bomb leaves
/// some for envd and the kernel. One process with its descendants may have seven eighths of that, which
/// leaves some for a command that repairs the sandbox.
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
    /// Opens `cgroup.procs`, which a child joins by writing "0".
    pub(crate) fn joining(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))
    }

    /// Kills all members at once.
    pub(crate) fn kill(&self) -> bool {
        fs::write(self.path.join("cgroup.kill"), "1").is_ok()
    }
}
