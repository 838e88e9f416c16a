// SPDX-License-Identifier: Apache-2.0
//! One cgroup per process, so that a kill also reaches descendants that left the process group.

use std::{
    fs::{self, File, OpenOptions},
    io, mem,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    ptr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::retention::memory;

const MOUNT: &str = "/sys/fs/cgroup";
/// Memory in bytes that processes leave to envd and the kernel, on small machines an eighth of all.
const OTHERS: u64 = 64 << 20;

/// Parent cgroup of processes; without cgroup2 there is none.
pub(crate) struct Cgroups {
    root: Option<PathBuf>,
    /// Maximum number of tasks of one process with its descendants; `None` if the kernel does not count them.
    tasks: Option<u64>,
    /// Maximum memory of one process with its descendants in bytes; `None` if the kernel does not count it.
    memory: Option<u64>,
    next: AtomicU64,
    leftover: Leftover,
}

/// Cgroups that are no longer used and had members, which are removed after their last member has exited.
type Leftover = Arc<Mutex<Vec<PathBuf>>>;

/// Cgroup of one process.
/// Dropping it removes it, now or after its last member has exited.
pub(crate) struct Cgroup {
    path: PathBuf,
    leftover: Leftover,
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
        let memory = root.as_deref().and_then(|root| limit_memory(&parent, root));
        Self { root, tasks, memory, next: AtomicU64::new(1), leftover: Leftover::default() }
    }

    /// Creates a cgroup; `None` if cgroups do not work, in which case kills use the process group.
    pub(crate) fn create(&self) -> Option<Cgroup> {
        self.sweep();
        let path = self.root.as_ref()?.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path).ok()?;
        if let Some(tasks) = self.tasks {
            let _ = fs::write(path.join("pids.max"), tasks.to_string());
        }
        if let Some(memory) = self.memory {
            let _ = fs::write(path.join("memory.max"), memory.to_string());
        }
        Some(Cgroup { path, leftover: Arc::clone(&self.leftover) })
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
    control(parent, root, "+pids")?;
    let all = most / 4 * 3;
    fs::write(root.join("pids.max"), all.to_string()).ok()?;
    Some((all / 8 * 7).max(1))
}

/// Limits the memory of all processes, so that one that takes all it can get is killed before envd and the kernel are short
/// of it.
fn limit_memory(parent: &Path, root: &Path) -> Option<u64> {
    control(parent, root, "+memory")?;
    let all = memory() as u64;
    let most = all.saturating_sub(OTHERS.min(all / 8));
    fs::write(root.join("memory.max"), most.to_string()).ok()?;
    Some(most)
}

/// Lets the kernel count a resource in the cgroups of processes.
fn control(parent: &Path, root: &Path, controller: &str) -> Option<()> {
    let groups = [Path::new(MOUNT), parent, root];
    groups.iter().try_for_each(|group| fs::write(group.join("cgroup.subtree_control"), controller)).ok()
}

impl Cgroup {
    /// Opens `cgroup.procs`, which a child joins by writing "0".
    pub(crate) fn joining(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))
    }

    /// Kills all members at once; returns how many they were.
    pub(crate) fn kill(&self) -> usize {
        let members = self.members().len();
        if fs::write(self.path.join("cgroup.kill"), "1").is_ok() { members } else { 0 }
    }

    /// Sends a signal to all members; returns how many got it.
    pub(crate) fn signal(&self, signal: i32) -> usize {
        self.members().into_iter().filter(|&pid| self.signal_member(pid, signal).is_some()).count()
    }

    /// Signals one member. What has its process id by now may be another process: the descriptor is of one process, which is
    /// signalled only if it was a member after the descriptor was opened.
    fn signal_member(&self, pid: Pid, signal: i32) -> Option<()> {
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).ok()?;
        let own = self.name()?;
        let is_member =
            groups.lines().filter_map(|line| line.strip_prefix("0::")).any(|group| own == Path::new(group));
        // SAFETY: the call has no memory effects.
        let sent = is_member.then(|| unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                process.as_raw_fd(),
                signal,
                ptr::null::<libc::c_void>(),
                0,
            )
        });
        sent.filter(|&result| result == 0).map(drop)
    }

    /// Returns its name, as the kernel gives it.
    pub(crate) fn name(&self) -> Option<PathBuf> {
        Some(Path::new("/").join(self.path.strip_prefix(MOUNT).ok()?))
    }

    fn members(&self) -> Vec<Pid> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
    }

    /// Returns whether it has no member.
    pub(crate) fn is_empty(&self) -> bool {
        self.members().is_empty()
    }

    /// Returns whether the kernel killed a member for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|count| count.trim() != "0")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if fs::remove_dir(&self.path).is_err() {
            self.leftover.lock().unwrap_or_else(PoisonError::into_inner).push(mem::take(&mut self.path));
        }
    }
}
