//! Virtual machine monitors behind one trait: what a microVM is to the host agent, whatever runs it.
//!
//! A microVM is a process of its own that outlives the agent; [`Vmm::adopt`] takes up one that a former
//! agent left running. Calls are cheap and never block the runtime.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub mod firecracker;
mod launch;
mod limits;
mod logs;
pub mod probe;
pub mod process;
pub mod qemu;
mod running;

/// What a microVM is made of.
#[derive(Debug, Clone, Default)]
pub struct BootSpec {
    /// Names the microVM in process lists; letters and digits.
    pub id: String,
    /// A directory of this microVM alone, for sockets and logs. It exists.
    pub run_dir: PathBuf,
    /// The Linux kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk, if the kernel needs one.
    pub initrd: Option<PathBuf>,
    /// Appended to the driver's own kernel command line.
    pub cmdline: String,
    /// The root disk, a raw image file or a block device, read and written as `/dev/vda`.
    pub disk: Option<PathBuf>,
    /// How much of the root disk's throughput it may use.
    pub disk_rate: Rate,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// The tap device to attach, with the network namespace that it is in.
    pub tap: Option<Tap>,
    /// How much of the network's throughput it may use, in each direction.
    pub network_rate: Rate,
    /// Whether the memory that the guest changes is tracked, as diff snapshots need.
    pub track_changes: bool,
    /// User and group that the VMM runs as; its files belong to it already.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Directories of the control groups that the VMM runs in from its first instruction.
    pub cgroups: Vec<PathBuf>,
}

/// What a device may do in a second; `None` is without limit. A burst of one second's worth is possible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bytes a second.
    pub bytes: Option<u64>,
    /// Requests or packets a second.
    pub operations: Option<u64>,
}

/// A tap device in a network namespace.
#[derive(Debug, Clone)]
pub struct Tap {
    /// The file that the namespace is pinned at; the VMM runs in it.
    pub netns: PathBuf,
    /// The device.
    pub name: String,
    /// The guest's hardware address.
    pub mac: String,
}

/// Enough to find a VMM process again: the start time guards against a reused pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub start_time: u64,
}

/// What a driver can do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Capabilities {
    /// Whether guests run with hardware virtualisation.
    pub accelerated: bool,
    /// Whether the driver is fit to isolate hostile code.
    pub security_boundary: bool,
    /// The most virtual CPUs of one microVM.
    pub max_vcpus: u32,
    /// The most memory of one microVM in MiB.
    pub max_memory_mb: u32,
    /// Memory that the VMM may need beyond its guest's, in MiB.
    pub overhead_mb: u64,
    /// What a guest kernel has to be.
    pub kernel: KernelImage,
    /// Whether [`MicroVm::snapshot`] and [`Vmm::restore`] exist.
    pub snapshots: bool,
    /// Whether the driver itself keeps [`BootSpec::network_rate`].
    pub network_rate: bool,
}

/// The forms of a Linux kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelImage {
    /// `bzImage`, as distributions install it.
    Compressed,
    /// An ELF file with a PVH entry point (`vmlinux`).
    Elf,
}

/// How much of the memory a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// All of it; pages that were never touched are holes.
    Full,
    /// What changed since the last snapshot, or since the restore; everything else is a hole.
    Diff,
}

/// The files of a snapshot to be written. They are on the file system of the run directory, and replace what
/// is there.
#[derive(Debug, Clone)]
pub struct SnapshotFiles {
    /// Registers and devices, in the VMM's own format.
    pub state: PathBuf,
    /// Memory, page for page at its guest-physical offset.
    pub memory: PathBuf,
}

/// Where the memory of a restored microVM comes from.
#[derive(Debug, Clone)]
pub enum MemorySource {
    /// A file that is mapped privately.
    File(PathBuf),
    /// The unix socket of a page server, which gets the userfaultfd and answers its faults.
    PageServer(PathBuf),
}

/// A snapshot to be restored. Its files can be read by the VMM's user, if only through this path.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// See [`SnapshotFiles::state`].
    pub state: PathBuf,
    /// Its memory.
    pub memory: MemorySource,
    /// Whether the guest runs at once; else it stays paused until [`MicroVm::resume`].
    pub run: bool,
}

/// What a VMM process consumes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time of the VMM, guest included.
    pub cpu_time: Duration,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
}

/// How a microVM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The VMM's exit status where it is known (it is not for an adopted one).
    pub status: Option<i32>,
    /// The last lines of the VMM's own log.
    pub log: String,
}

/// Why a VMM could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// A value that no microVM of this driver can have.
    #[error("{field} {value} is not possible: {limit}")]
    Limit {
        /// What was asked for.
        field: &'static str,
        /// How much of it.
        value: u64,
        /// What is possible.
        limit: String,
    },
    /// The VMM program is older than what this driver speaks.
    #[error("{program} has version {found}, and {needed} or newer is needed: {remedy}")]
    TooOld {
        /// The program.
        program: String,
        /// Its version.
        found: String,
        /// What is needed.
        needed: String,
        /// What to do.
        remedy: String,
    },
    /// A file is not what the VMM can use.
    #[error("{what} cannot be used: {reason}")]
    Unfit {
        /// The thing.
        what: &'static str,
        /// What it is, and what it should be.
        reason: String,
    },
    /// The VMM program or a file it needs is absent.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// The thing.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The VMM ended before the microVM was up.
    #[error("the VMM ended while starting: {log}")]
    Ended {
        /// The last lines of its log.
        log: String,
    },
    /// The VMM did not answer in time.
    #[error("the VMM did not {action} within {limit:?}")]
    Deadline {
        /// What it was asked to do.
        action: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The host's disk is full.
    #[error("the host's disk has no room to {action}: free space or remove sandboxes")]
    Full {
        /// What was being done.
        action: String,
    },
    /// The kernel or the VMM refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The VMM's control socket said no.
    #[error("the VMM refused to {action}: {reason}")]
    Refused {
        /// What it was asked to do.
        action: &'static str,
        /// Its own words.
        reason: String,
    },
}

/// A kind of virtual machine monitor.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// `qemu` or `firecracker`.
    fn name(&self) -> &'static str;
    /// The program's version.
    fn version(&self) -> &str;
    /// What the driver can do.
    fn capabilities(&self) -> &Capabilities;
    /// Starts a microVM. Its process is a session of its own and survives the caller.
    async fn boot(&self, spec: &BootSpec) -> Result<Box<dyn MicroVm>, VmmError>;
    /// Starts a microVM from a snapshot: same devices, same number of CPUs and amount of memory, any id.
    async fn restore(&self, snapshot: &Snapshot, spec: &BootSpec) -> Result<Box<dyn MicroVm>, VmmError>;
    /// Takes up a microVM that is still running: `None` when it is gone.
    /// Without a recorded process id it is looked for by its run directory.
    async fn adopt(
        &self,
        spec: &BootSpec,
        process: Option<&ProcessId>,
    ) -> Result<Option<Box<dyn MicroVm>>, VmmError>;
}

/// One microVM.
#[async_trait]
pub trait MicroVm: Send + Sync {
    /// The VMM process.
    fn process(&self) -> ProcessId;
    /// Stops the virtual CPUs; memory stays.
    async fn pause(&self) -> Result<(), VmmError>;
    /// Lets the virtual CPUs run again.
    async fn resume(&self) -> Result<(), VmmError>;
    /// Takes the processor from the whole VMM, or gives it back. Nothing in it can keep that from happening, and it
    /// answers no other call meanwhile but [`MicroVm::kill`].
    fn freeze(&self, frozen: bool) -> Result<(), VmmError>;
    /// Writes a snapshot of the paused microVM, which stays paused.
    async fn snapshot(&self, kind: SnapshotKind, files: &SnapshotFiles) -> Result<(), VmmError>;
    /// Ends the VMM and returns when its process is gone. Repeating it is fine.
    async fn kill(&self) -> Result<(), VmmError>;
    /// Waits for the end of the VMM process. May be called any number of times.
    async fn exited(&self) -> Exit;
    /// What it consumes at the moment.
    fn stats(&self) -> Result<Stats, VmmError>;
    /// The last `max` bytes that the guest wrote to its console.
    async fn console(&self, max: usize) -> Vec<u8>;
}
