// SPDX-License-Identifier: Apache-2.0
//! Virtual machine monitors behind one trait, which the host agent uses for every driver.
//!
//! A microVM is a process of its own that outlives the agent; [`Vmm::adopt`] connects to one that a former
//! agent started. Calls are cheap and never block the runtime.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use wrenn_memory::{Changes, Layers};

pub use wrenn_os::process::ProcessId;

mod care;
pub mod firecracker;
mod guest_memory;
mod launch;
mod limits;
mod logs;
mod page_server;
pub mod probe;
pub mod process;
pub mod qemu;
mod running;
mod socket;
mod taken;

/// Configuration of a microVM.
#[derive(Debug, Clone, Default)]
pub struct BootSpec {
    /// Name of the microVM in process lists; letters and digits.
    pub id: String,
    /// Directory of this microVM alone, for sockets and logs. It exists.
    pub run_dir: PathBuf,
    /// Path of the Linux kernel.
    pub kernel: PathBuf,
    /// Path of the initial RAM disk, if the kernel needs one.
    pub initrd: Option<PathBuf>,
    /// Kernel command line, appended to the driver's own.
    pub cmdline: String,
    /// Root disk: a raw image file or a block device, writable, `/dev/vda` in the guest.
    pub disk: Option<PathBuf>,
    /// Rate limit of the root disk.
    pub disk_rate: Rate,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Tap device to attach, and its network namespace.
    pub tap: Option<Tap>,
    /// Rate limit of the network, in each direction.
    pub network_rate: Rate,
    /// Whether the driver tracks the memory that the guest changes; diff snapshots need it.
    pub track_changes: bool,
    /// User that the VMM runs as; its files belong to it already.
    pub uid: u32,
    /// Group that the VMM runs as; see `uid`.
    pub gid: u32,
    /// Directories of the control groups that the VMM runs in from its first instruction.
    pub cgroups: Vec<PathBuf>,
    /// Whether the VMM is killed when the process that started it ends, as for a probe. Others survive it.
    pub tied: bool,
}

/// Limits of a device per second; `None` is unlimited. Bursts of one second's worth are possible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bytes per second.
    pub bytes: Option<u64>,
    /// Requests or packets per second.
    pub operations: Option<u64>,
}

/// A tap device in a network namespace.
#[derive(Debug, Clone)]
pub struct Tap {
    /// Path that the namespace is mounted at; the VMM runs in it.
    pub netns: PathBuf,
    /// Name of the device.
    pub name: String,
    /// MAC address of the guest.
    pub mac: String,
}

/// Capabilities of a driver.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Capabilities {
    /// Whether guests run with hardware virtualisation.
    pub accelerated: bool,
    /// Whether the driver isolates hostile code.
    pub security_boundary: bool,
    /// Maximum number of virtual CPUs of one microVM.
    pub max_vcpus: u32,
    /// Maximum memory of one microVM, in MiB.
    pub max_memory_mb: u32,
    /// How many times a page of the guest may be in memory: twice if what it writes is copied from a file that is in memory, too.
    pub memory_copies: u64,
    /// Memory that the VMM may need in addition to its guest's, in MiB.
    pub overhead_mb: u64,
    /// Format of guest kernels.
    pub kernel: KernelImage,
    /// What diff snapshots hold.
    pub diffs: Diffs,
    /// Known fault of this release of the VMM, for which snapshots and restores are refused; boots work.
    pub snapshot_fault: Option<String>,
    /// Whether a page server can be the source of a restored microVM's memory.
    pub page_server: bool,
    /// Whether the driver enforces [`BootSpec::network_rate`].
    pub network_rate: bool,
}

impl Capabilities {
    /// Memory that the VMM of a guest with so much memory may use, in MiB.
    pub fn vmm_memory_mb(&self, memory_mb: u32) -> u64 {
        u64::from(memory_mb) * self.memory_copies + self.overhead_mb
    }
}

/// File format of a Linux kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelImage {
    /// `bzImage`, as distributions install it.
    Compressed,
    /// An ELF file with a PVH entry point (`vmlinux`).
    Elf,
}

/// Since when a diff snapshot holds what the guest changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Diffs {
    /// Since the last snapshot, or the restore. Needs [`BootSpec::track_changes`].
    SinceSnapshot,
    /// Since the boot or the restore, whatever snapshots came between.
    SinceStart,
}

/// Extent of a snapshot's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// All memory; untouched pages are holes.
    Full,
    /// Changes as [`Capabilities::diffs`] says; the rest is holes.
    Diff,
}

/// Target files of a snapshot. They are on the file system of the run directory; existing ones are replaced. The
/// caller syncs them, when the guest goes on.
#[derive(Debug, Clone)]
pub struct SnapshotFiles {
    /// State of registers and devices, in the VMM's own format.
    pub state: PathBuf,
    /// Memory, each page at its guest-physical offset.
    pub memory: PathBuf,
}

/// Source of a restored microVM's memory.
#[derive(Debug, Clone)]
pub enum MemorySource {
    /// A file of this microVM alone, mapped privately. QEMU's user must be able to write it, too.
    File(PathBuf),
    /// A file that many microVMs map privately. None of their VMMs can change it, and they need no access to it.
    Shared(PathBuf),
    /// The data of generations, of which a page server of this microVM copies what the guest needs. It is this program:
    /// its `main` calls [`wrenn_memory::page_server::run_if_asked`].
    Layers(PagedMemory),
}

/// Memory that a page server copies into a microVM.
#[derive(Debug, Clone)]
pub struct PagedMemory {
    /// The memory, with the open files of its content.
    pub layers: Layers,
    /// Working set: what is in the file is filled ahead, and what the guest uses first is appended.
    pub working_set: Arc<File>,
}

/// A snapshot to restore. The VMM's user must be able to read its files, but may lack access to their
/// directory.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// See [`SnapshotFiles::state`].
    pub state: PathBuf,
    /// Source of its memory.
    pub memory: MemorySource,
    /// Whether the guest runs at once; otherwise it stays paused until [`MicroVm::resume`].
    pub run: bool,
}

/// Resource usage of a VMM process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Stats {
    /// CPU time of the VMM, guest included.
    pub cpu_time: Duration,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
}

/// End of a microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit status of the VMM, if known (it is not for an adopted one).
    pub status: Option<i32>,
    /// The last lines of the VMM's own log.
    pub log: String,
}

/// Errors of a driver.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// A value that no microVM of this driver can have.
    #[error("{field} {value} is not possible: {limit}")]
    Limit {
        /// Name of the value.
        field: &'static str,
        /// Requested value.
        value: u64,
        /// Allowed values.
        limit: String,
    },
    /// The VMM program is older than the driver supports.
    #[error("{program} has version {found}, and {needed} or newer is needed: {remedy}")]
    TooOld {
        /// Name of the program.
        program: String,
        /// Version found.
        found: String,
        /// Minimum version.
        needed: String,
        /// Remedy.
        remedy: String,
    },
    /// A file cannot be used by the VMM.
    #[error("{what} cannot be used: {reason}")]
    Unfit {
        /// Name of the file.
        what: &'static str,
        /// Its actual and its required form.
        reason: String,
    },
    /// The VMM program or a file that it needs is missing.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// Name of the file.
        what: String,
        /// Remedy.
        remedy: String,
    },
    /// The VMM ended during the start.
    #[error("the VMM ended while starting: {log}")]
    Ended {
        /// Last lines of its log.
        log: String,
    },
    /// The VMM did not answer in time.
    #[error("the VMM did not {action} within {limit:?}")]
    Deadline {
        /// Requested action.
        action: &'static str,
        /// Time limit.
        limit: Duration,
    },
    /// The host's disk is full.
    #[error("the host's disk has no room to {action}: free space or remove sandboxes")]
    Full {
        /// Failed action.
        action: String,
    },
    /// An error of the kernel or of the connection to the VMM.
    #[error("cannot {action}: {source}")]
    Io {
        /// Failed action.
        action: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The VMM returned an error.
    #[error("the VMM refused to {action}: {reason}")]
    Refused {
        /// Requested action.
        action: &'static str,
        /// The VMM's error message.
        reason: String,
    },
}

/// A virtual machine monitor.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// `qemu` or `firecracker`.
    fn name(&self) -> &'static str;
    /// Version of the program.
    fn version(&self) -> &str;
    /// Capabilities of the driver.
    fn capabilities(&self) -> &Capabilities;
    /// Starts a microVM. Its process is in a session of its own and survives the caller.
    async fn boot(&self, spec: &BootSpec) -> Result<Box<dyn MicroVm>, VmmError>;
    /// Starts a microVM from a snapshot, with the same devices, number of CPUs and memory, under any id.
    async fn restore(&self, snapshot: &Snapshot, spec: &BootSpec) -> Result<Box<dyn MicroVm>, VmmError>;
    /// Adopts a microVM that is still running; `None` if it has ended. Without a recorded process id its
    /// process is searched by its run directory.
    async fn adopt(
        &self,
        spec: &BootSpec,
        process: Option<&ProcessId>,
    ) -> Result<Option<Box<dyn MicroVm>>, VmmError>;
}

/// One microVM.
#[async_trait]
pub trait MicroVm: Send + Sync {
    /// Returns the identity of the VMM process.
    fn process(&self) -> ProcessId;
    /// Stops the virtual CPUs; memory stays.
    async fn pause(&self) -> Result<(), VmmError>;
    /// Resumes the virtual CPUs.
    async fn resume(&self) -> Result<(), VmmError>;
    /// Stops or continues the whole VMM process by signal. The process cannot prevent it; while frozen, only
    /// [`MicroVm::kill`] works.
    fn freeze(&self, frozen: bool) -> Result<(), VmmError>;
    /// Writes a snapshot of the paused microVM, which stays paused.
    async fn snapshot(&self, kind: SnapshotKind, files: &SnapshotFiles) -> Result<(), VmmError>;
    /// Writes the state of registers and devices of the paused microVM, and gives what its guest changed since the start, to be
    /// read before it goes on. `None` if only the VMM can read the memory; nothing was written then.
    async fn snapshot_state(&self, _state: &Path) -> Result<Option<Box<dyn Changes + Send>>, VmmError> {
        Ok(None)
    }
    /// Kills the VMM and returns when its process has ended. Idempotent.
    async fn kill(&self) -> Result<(), VmmError>;
    /// Waits for the end of the VMM process. May be called any number of times.
    async fn exited(&self) -> Exit;
    /// Returns the current resource usage.
    fn stats(&self) -> Result<Stats, VmmError>;
    /// Returns the last `max` bytes of the guest's console.
    async fn console(&self, max: usize) -> Vec<u8>;
}
