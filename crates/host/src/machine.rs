// SPDX-License-Identifier: Apache-2.0
//! Hardware and programs of this machine.

use std::{fs, path::PathBuf};

use anyhow::Context;

/// Size of the machine. It is read once, at the start: later there may be no descriptor left for it, and a machine of unknown
/// size must not be taken for a small one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// Number of online processors.
    pub(crate) cpus: u32,
    /// Memory in MiB.
    pub(crate) memory_mb: u64,
}

impl Machine {
    /// Reads the size of this machine.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let cpus = std::thread::available_parallelism().context("the processors cannot be counted")?;
        let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo cannot be read")?;
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        let memory_mb = kib.context("/proc/meminfo does not say how much memory there is")? / 1024;
        Ok(Self { cpus: cpus.get() as u32, memory_mb })
    }
}

/// Path of a program in `PATH`, or its usual path.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| PathBuf::from("/usr/bin").join(name))
}
