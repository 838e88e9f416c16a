//! QEMU: the driver for machines without working KVM, by emulation, and with it where it works.

mod command;
mod qmp;
mod vm;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{BootSpec, Capabilities, MicroVm, ProcessId, Vmm, VmmError};

/// How QEMU runs guest code.
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
}

/// The program's usual name on x86-64.
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
            security_boundary: accel == Accel::Kvm,
            max_vcpus: max_vcpus(),
            max_memory_mb: max_memory_mb(),
        };
        Ok(Self { program: program.to_owned(), version, accel, capabilities })
    }

    fn check(&self, spec: &BootSpec) -> Result<(), VmmError> {
        let limits = &self.capabilities;
        for (field, value, max) in
            [("vcpus", spec.vcpus, limits.max_vcpus), ("memory_mb", spec.memory_mb, limits.max_memory_mb)]
        {
            let min = if field == "vcpus" { 1 } else { 64 };
            if !(min..=max).contains(&value) {
                let limit = format!("this host takes {min} to {max}");
                return Err(VmmError::Limit { field, value: u64::from(value), limit });
            }
        }
        for (what, path) in [("the guest kernel", &spec.kernel), ("the initial RAM disk", &spec.initrd)] {
            if !path.exists() {
                let remedy = "build the guest's files (make assets)".to_owned();
                return Err(VmmError::Missing { what: what.to_owned(), remedy });
            }
        }
        Ok(())
    }
}

fn max_vcpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32).clamp(1, 64) * 2
}

fn max_memory_mb() -> u32 {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram as u64 * u64::from(info.mem_unit);
    (bytes >> 20).min(1 << 20) as u32
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
        self.check(spec)?;
        let command = command::build(&self.program, self.accel, spec)?;
        Ok(Box::new(vm::start(command, spec).await?))
    }

    async fn adopt(
        &self,
        spec: &BootSpec,
        process: Option<&ProcessId>,
    ) -> Result<Option<Box<dyn MicroVm>>, VmmError> {
        let vm = vm::adopt(&spec.run_dir, process)?;
        Ok(vm.map(|vm| Box::new(vm) as Box<dyn MicroVm>))
    }
}
