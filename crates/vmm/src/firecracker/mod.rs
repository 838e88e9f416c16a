// SPDX-License-Identifier: Apache-2.0
//! Firecracker driver, for production. Each microVM is a process in its own jail, made by Firecracker's
//! jailer, in which every file has the same name for each sandbox: a snapshot can be restored under any id.

mod api;
mod arch;
mod config;
mod jail;
mod version;
mod vm;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use crate::{
    BootSpec, Capabilities, Diffs, KernelImage, MicroVm, ProcessId, Snapshot, Vmm, VmmError, limits,
    running::blocking,
};

use version::Release;

/// Usual name of the program.
pub const PROGRAM: &str = "firecracker";
/// Usual name of the jailer.
pub const JAILER: &str = "jailer";

/// How Firecracker is isolated from the host.
#[derive(Debug, Clone)]
pub enum Isolation {
    /// By the jailer: own user, root directory and namespaces, and only the devices that it needs.
    Jailer {
        /// Path of the jailer, of the same release.
        program: PathBuf,
        /// An empty directory that only the agent uses. Jails are mounted on it in namespaces of their own,
        /// so that it stays empty for all others.
        dir: PathBuf,
    },
    /// By its user id and its seccomp filters alone. Not fit for hostile code.
    Unjailed,
}

/// The Firecracker driver.
#[derive(Debug)]
pub struct Firecracker {
    program: PathBuf,
    version: String,
    release: Release,
    isolation: Isolation,
    capabilities: Capabilities,
}

impl Firecracker {
    /// Finds the programs and checks their versions. Blocks for some milliseconds.
    pub fn new(program: &Path, isolation: Isolation) -> Result<Self, VmmError> {
        let (version, release) = version::of_firecracker(program)?;
        if let Isolation::Jailer { program: jailer, .. } = &isolation {
            version::check_jailer(jailer, &version)?;
        }
        let capabilities = Capabilities {
            accelerated: true,
            security_boundary: matches!(isolation, Isolation::Jailer { .. }),
            max_vcpus: limits::max_vcpus(32),
            max_memory_mb: limits::max_memory_mb(),
            memory_copies: 1,
            overhead_mb: 128,
            kernel: KernelImage::Elf,
            diffs: Diffs::SinceSnapshot,
            page_server: true,
            snapshot_fault: release.snapshot_fault().map(str::to_owned),
            network_rate: true,
        };
        Ok(Self { program: program.to_owned(), version, release, isolation, capabilities })
    }
}

/// Checks that this process may use KVM.
fn check_kvm() -> Result<(), VmmError> {
    let Err(error) = File::options().read(true).write(true).open("/dev/kvm") else { return Ok(()) };
    if error.kind() == io::ErrorKind::NotFound {
        let remedy = "load the kernel's KVM module (modprobe kvm-intel or kvm-amd); on a cloud machine enable nested \
                      virtualisation";
        return Err(VmmError::Missing { what: "/dev/kvm".to_owned(), remedy: remedy.to_owned() });
    }
    let reason = format!("{error}; run the agent as root, or add its user to the group that owns the device");
    Err(VmmError::Unfit { what: "/dev/kvm", reason })
}

fn check(can: &Capabilities, spec: &BootSpec) -> Result<(), VmmError> {
    limits::check(can, spec)?;
    check_kvm()
}

#[async_trait]
impl Vmm for Firecracker {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn boot(&self, spec: &BootSpec) -> Result<Box<dyn MicroVm>, VmmError> {
        let (can, wanted) = (self.capabilities.clone(), spec.clone());
        let fit = blocking("start the VMM", move || {
            check(&can, &wanted)?;
            limits::check_files(&wanted)?;
            arch::check_kernel(&wanted.kernel)
        });
        fit.await?;
        Ok(Box::new(vm::boot(&self.program, self.release, &self.isolation, spec).await?))
    }

    async fn restore(&self, snapshot: &Snapshot, spec: &BootSpec) -> Result<Box<dyn MicroVm>, VmmError> {
        let (can, wanted) = (self.capabilities.clone(), spec.clone());
        blocking("start the VMM", move || check(&can, &wanted)).await?;
        Ok(Box::new(vm::restore(&self.program, self.release, &self.isolation, snapshot, spec).await?))
    }

    async fn adopt(
        &self,
        spec: &BootSpec,
        process: Option<&ProcessId>,
    ) -> Result<Option<Box<dyn MicroVm>>, VmmError> {
        let vm = vm::adopt(self.release, spec, process).await?;
        Ok(vm.map(|vm| Box::new(vm) as Box<dyn MicroVm>))
    }
}
