// SPDX-License-Identifier: Apache-2.0
//! QEMU driver: emulation on machines without working KVM, or KVM. Neither is a security boundary: QEMU runs
//! without a root directory of its own.

mod command;
mod qmp;
mod sealed_memory;
mod vm;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    BootSpec, Capabilities, Diffs, KernelImage, MicroVm, ProcessId, Snapshot, Vmm, VmmError, limits,
    running::blocking,
};

use command::Saved;
use sealed_memory::SealedMemory;

/// QEMU's accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Software emulation.
    Tcg,
    /// Hardware virtualisation.
    Kvm,
}

/// The QEMU driver.
#[derive(Debug)]
pub struct Qemu {
    program: PathBuf,
    version: String,
    accel: Accel,
    capabilities: Capabilities,
    shared: Arc<SealedMemory>,
}

/// Usual name of the program on x86-64.
pub const PROGRAM: &str = "qemu-system-x86_64";

impl Qemu {
    /// Finds the program and reads its version. Blocks for some milliseconds.
    pub fn new(program: &Path, accel: Accel) -> Result<Self, VmmError> {
        let missing = || VmmError::Missing {
            what: program.display().to_string(),
            remedy: "install QEMU (Debian: apt-get install qemu-system-x86)".to_owned(),
        };
        let output = Command::new(program).arg("--version").output().map_err(|_| missing())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().nth(3).ok_or_else(missing)?.to_owned();
        let capabilities = Capabilities {
            accelerated: accel == Accel::Kvm,
            // It sees the host's files: it has its own user, network namespace and seccomp filters, but no
            // root directory of its own.
            security_boundary: false,
            max_vcpus: limits::max_vcpus(64),
            max_memory_mb: limits::max_memory_mb(),
            // A guest that booted has a private mapping of a memfd.
            memory_copies: 2,
            // Half of it is translated code (`command.rs`).
            overhead_mb: 1024,
            kernel: KernelImage::Compressed,
            diffs: Diffs::SinceStart,
            page_server: false,
            snapshot_fault: None,
            network_rate: false,
        };
        Ok(Self { program: program.to_owned(), version, accel, capabilities, shared: Arc::default() })
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn boot(&self, spec: &BootSpec) -> Result<Box<dyn MicroVm>, VmmError> {
        limits::check(&self.capabilities, spec)?;
        let (program, accel, wanted) = (self.program.clone(), self.accel, spec.clone());
        let command = blocking("start the VMM", move || {
            limits::check_files(&wanted)?;
            command::build(&program, accel, &wanted, None)
        });
        Ok(Box::new(vm::boot(command.await?, spec).await?))
    }

    async fn restore(&self, snapshot: &Snapshot, spec: &BootSpec) -> Result<Box<dyn MicroVm>, VmmError> {
        limits::check(&self.capabilities, spec)?;
        let (program, accel, wanted) = (self.program.clone(), self.accel, spec.clone());
        let (shared, run, snapshot) = (self.shared.clone(), snapshot.run, snapshot.clone());
        let command = blocking("start the VMM", move || {
            limits::check_files(&wanted)?;
            let saved = Saved::open(&snapshot, &shared)?;
            command::build(&program, accel, &wanted, Some(saved))
        });
        Ok(Box::new(vm::restore(command.await?, spec, run).await?))
    }

    async fn adopt(
        &self,
        spec: &BootSpec,
        process: Option<&ProcessId>,
    ) -> Result<Option<Box<dyn MicroVm>>, VmmError> {
        let vm = vm::adopt(spec, process).await?;
        Ok(vm.map(|vm| Box::new(vm) as Box<dyn MicroVm>))
    }
}
