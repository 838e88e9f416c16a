//! What this machine has.

use std::{fs, num::NonZero, path::PathBuf};

/// Online processors.
pub(crate) fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, NonZero::get) as u32
}

/// Memory in MiB.
pub(crate) fn memory_mb() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or_default() / 1024
}

/// The program of this name in `PATH`, or its usual place.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| PathBuf::from("/usr/bin").join(name))
}
