// SPDX-License-Identifier: Apache-2.0
//! Limits of a microVM on this machine.

use crate::{BootSpec, Capabilities, VmmError, running::failed};

/// Minimum memory of a microVM in MiB.
const MIN_MEMORY_MB: u32 = 64;

/// Maximum number of vCPUs: twice the machine's CPUs, but not more than the VMM's limit.
pub(crate) fn max_vcpus(vmm: u32) -> u32 {
    std::thread::available_parallelism().map_or(2, |count| count.get() as u32 * 2).min(vmm)
}

/// Maximum memory in MiB: the machine's memory.
pub(crate) fn max_memory_mb() -> u32 {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram as u64 * u64::from(info.mem_unit);
    (bytes >> 20).min(1 << 20) as u32
}

/// Checks that the driver supports the requested vCPUs and memory.
pub(crate) fn check(can: &Capabilities, spec: &BootSpec) -> Result<(), VmmError> {
    let ranges = [
        ("vcpus", spec.vcpus, 1, can.max_vcpus),
        ("memory_mb", spec.memory_mb, MIN_MEMORY_MB, can.max_memory_mb),
    ];
    for (field, value, min, max) in ranges {
        if !(min..=max).contains(&value) {
            let limit = format!("this host takes {min} to {max}");
            return Err(VmmError::Limit { field, value: u64::from(value), limit });
        }
    }
    Ok(())
}

/// Checks that the files of a boot exist.
pub(crate) fn check_files(spec: &BootSpec) -> Result<(), VmmError> {
    let guest = "build the guest's files (make assets)";
    let parts = [
        ("the guest kernel", Some(&spec.kernel), guest),
        ("the initial RAM disk", spec.initrd.as_ref(), guest),
        ("the root disk", spec.disk.as_ref(), "delete the sandbox and create another"),
    ];
    for (what, path, remedy) in parts {
        let Some(path) = path else { continue };
        if !path.try_exists().map_err(|error| failed(format!("look for {what}"), error))? {
            return Err(VmmError::Missing { what: what.to_owned(), remedy: remedy.to_owned() });
        }
    }
    Ok(())
}
