// SPDX-License-Identifier: Apache-2.0
//! A QEMU microVM.

use std::{process::Command, time::Duration};

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use super::{command::qmp_socket, qmp::Qmp};
use crate::{
    BootSpec, Exit, MicroVm, ProcessId, SnapshotFiles, SnapshotKind, Stats, VmmError,
    running::{Care, Running, spawn},
};

/// Time limit for the first response of QEMU's control socket.
const START_LIMIT: Duration = Duration::from_secs(15);
/// Interval between connection attempts during the start.
const START_POLL: Duration = Duration::from_millis(5);

/// A QEMU process and its files.
pub(super) struct QemuVm {
    running: Running,
}

/// Watch settings; a guest that shuts down ends its QEMU.
fn care(spec: &BootSpec) -> Care {
    Care { farewell: None, before: 0, memory_mb: spec.memory_mb }
}

/// Starts QEMU and waits until the guest runs.
pub(super) async fn start(command: Command, spec: &BootSpec) -> Result<QemuVm, VmmError> {
    let running = Running::start(spec, care(spec), move || spawn(command)).await?;
    if let Err(error) = runs(&running).await {
        running.kill().await?;
        return Err(error);
    }
    Ok(QemuVm { running })
}

/// Waits until the guest runs.
async fn runs(running: &Running) -> Result<(), VmmError> {
    let begin = Instant::now();
    loop {
        running.check_alive().await?;
        if let Ok(mut qmp) = Qmp::connect(&qmp_socket(running.run_dir())).await
            && qmp.execute("query-status", "start").await?["status"] == "running"
        {
            return Ok(());
        }
        if begin.elapsed() > START_LIMIT {
            return Err(VmmError::Deadline { action: "start", limit: START_LIMIT });
        }
        sleep(START_POLL).await;
    }
}

/// Adopts a running QEMU.
pub(super) async fn adopt(spec: &BootSpec, recorded: Option<&ProcessId>) -> Result<Option<QemuVm>, VmmError> {
    let running = Running::adopt(&spec.run_dir, care(spec), recorded).await?;
    Ok(running.map(|running| QemuVm { running }))
}

impl QemuVm {
    async fn control(&self, command: &str, action: &'static str) -> Result<(), VmmError> {
        let mut qmp = Qmp::connect(&qmp_socket(self.running.run_dir())).await?;
        qmp.execute(command, action).await.map(drop)
    }
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

    async fn snapshot(&self, _kind: SnapshotKind, _files: &SnapshotFiles) -> Result<(), VmmError> {
        Err(super::no_snapshots())
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
