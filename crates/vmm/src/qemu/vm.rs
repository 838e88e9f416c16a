// SPDX-License-Identifier: Apache-2.0
//! A QEMU microVM.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use async_trait::async_trait;
use serde_json::json;
use tokio::time::{Instant, sleep};
use wrenn_memory::Changes;

use super::{command::qmp_socket, qmp::Qmp};
use crate::{
    BootSpec, Exit, MicroVm, ProcessId, SnapshotFiles, SnapshotKind, Stats, VmmError,
    care::Care,
    guest_memory::GuestMemory,
    running::{Running, blocking, failed, spawn},
    taken::{self, NEW_STATE},
};

/// Time limit for the first response of QEMU's control socket.
const START_LIMIT: Duration = Duration::from_secs(15);
/// Interval between connection attempts during the start.
const START_POLL: Duration = Duration::from_millis(5);

/// A QEMU process and its files.
pub(super) struct QemuVm {
    running: Running,
    memory_mb: u32,
}

/// Watch settings; a guest that shuts down ends its QEMU.
fn care(spec: &BootSpec) -> Care {
    Care { farewell: None, before: 0, memory_mb: spec.memory_mb }
}

/// Starts QEMU and waits until the guest runs.
pub(super) async fn boot(command: Command, spec: &BootSpec) -> Result<QemuVm, VmmError> {
    start(command, spec, "running", "start").await
}

/// Starts QEMU and waits until it has loaded a snapshot, and then lets the guest go on if it shall run.
pub(super) async fn restore(command: Command, spec: &BootSpec, run: bool) -> Result<QemuVm, VmmError> {
    let action = "load the snapshot";
    let loaded = start(command, spec, "paused", action).await;
    let vm = loaded.map_err(|error| match error {
        // QEMU ends when it does not understand a state.
        VmmError::Ended { log } => VmmError::Refused { action, reason: log },
        other => other,
    })?;
    if run {
        vm.resume().await?;
    }
    Ok(vm)
}

async fn start(
    command: Command,
    spec: &BootSpec,
    state: &str,
    action: &'static str,
) -> Result<QemuVm, VmmError> {
    let running = Running::start(spec, care(spec), move || spawn(command)).await?;
    if let Err(error) = reaches(&running, state, action).await {
        running.kill().await?;
        return Err(error);
    }
    Ok(QemuVm { running, memory_mb: spec.memory_mb })
}

/// Waits until the microVM is in this state.
async fn reaches(running: &Running, state: &str, action: &'static str) -> Result<(), VmmError> {
    let begin = Instant::now();
    let mut qmp = None;
    loop {
        running.check_alive().await?;
        if qmp.is_none() {
            qmp = Qmp::connect(&qmp_socket(running.run_dir())).await.ok();
        }
        if let Some(open) = &mut qmp {
            match open.execute("query-status", action).await {
                Ok(status) if status["status"] == state => return Ok(()),
                Ok(_) => {}
                // If it has ended, its log says more than its closed socket.
                Err(error) => {
                    sleep(START_POLL).await;
                    running.check_alive().await?;
                    return Err(error);
                }
            }
        }
        if begin.elapsed() > START_LIMIT {
            return Err(VmmError::Deadline { action, limit: START_LIMIT });
        }
        sleep(START_POLL).await;
    }
}

/// Adopts a running QEMU.
pub(super) async fn adopt(spec: &BootSpec, recorded: Option<&ProcessId>) -> Result<Option<QemuVm>, VmmError> {
    let running = Running::adopt(&spec.run_dir, care(spec), recorded).await?;
    Ok(running.map(|running| QemuVm { running, memory_mb: spec.memory_mb }))
}

impl QemuVm {
    async fn control(&self, command: &str, action: &'static str) -> Result<(), VmmError> {
        let mut qmp = Qmp::connect(&qmp_socket(self.running.run_dir())).await?;
        qmp.execute(command, action).await.map(drop)
    }

    /// Writes the state of registers and devices of the paused microVM into the run directory. QEMU saves it
    /// without the memory only by the command that is made for Xen.
    async fn save_state(&self, path: &Path) -> Result<(), VmmError> {
        let action = "write the snapshot";
        let mut qmp = Qmp::connect(&qmp_socket(self.running.run_dir())).await?;
        if qmp.execute("query-status", action).await?["status"] != "paused" {
            let reason = "the microVM runs: pause it first".to_owned();
            return Err(VmmError::Refused { action, reason });
        }
        let arguments = json!({ "filename": path, "live": false });
        qmp.execute_with("xen-save-devices-state", &arguments, action).await.map(drop)
    }
}

fn find_memory(pid: i32, memory_mb: u32) -> io::Result<GuestMemory> {
    GuestMemory::find(pid, u64::from(memory_mb) << 20)
}

/// Copies the memory of the process into a new file, which is renamed when it is complete.
fn copy_memory(pid: i32, memory_mb: u32, kind: SnapshotKind, to: &Path) -> io::Result<()> {
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let copied = File::create(&partial).and_then(|file| {
        find_memory(pid, memory_mb)?.copy(kind == SnapshotKind::Full, &file)?;
        fs::rename(&partial, to)
    });
    copied.inspect_err(|_| drop(fs::remove_file(&partial)))
}

#[async_trait]
impl MicroVm for QemuVm {
    fn process(&self) -> ProcessId {
        self.running.id().clone()
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.control("stop", "pause").await
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.control("cont", "resume").await
    }

    fn freeze(&self, frozen: bool) -> Result<(), VmmError> {
        self.running.freeze(frozen)
    }

    async fn snapshot(&self, kind: SnapshotKind, files: &SnapshotFiles) -> Result<(), VmmError> {
        let saved = self.running.run_dir().join(NEW_STATE);
        self.save_state(&saved).await?;
        let (pid, memory_mb, files) = (self.running.id().pid, self.memory_mb, files.clone());
        blocking("write the snapshot", move || {
            let copied = copy_memory(pid, memory_mb, kind, &files.memory);
            let taken = copied.and_then(|()| taken::all(&[(saved.clone(), files.state.clone())]));
            taken.map_err(|error| {
                // Half a snapshot is useless.
                [&saved, &files.memory].into_iter().for_each(|half| drop(fs::remove_file(half)));
                failed("write the snapshot", error)
            })
        })
        .await
    }

    async fn snapshot_state(&self, state: &Path) -> Result<Option<Box<dyn Changes + Send>>, VmmError> {
        let saved = self.running.run_dir().join(NEW_STATE);
        self.save_state(&saved).await?;
        let (pid, memory_mb, state) = (self.running.id().pid, self.memory_mb, state.to_owned());
        blocking("write the snapshot", move || {
            let taken = taken::all(&[(saved.clone(), state)]).and_then(|()| find_memory(pid, memory_mb));
            taken.map(|memory| Some(Box::new(memory) as Box<dyn Changes + Send>)).map_err(|error| {
                drop(fs::remove_file(&saved));
                failed("write the snapshot", error)
            })
        })
        .await
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.running.kill().await
    }

    async fn exited(&self) -> Exit {
        self.running.exited().await
    }

    fn stats(&self) -> Result<Stats, VmmError> {
        self.running.stats()
    }

    async fn console(&self, max: usize) -> Vec<u8> {
        self.running.console(max).await
    }
}
