// SPDX-License-Identifier: Apache-2.0
//! Free space and reserve of a store.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{DiskError, Health, Pressure, failed};

/// Maximum of the default reserve, which is 5 % of the file system.
const RESERVE_MAX: u64 = 2 << 30;
/// Minimum of the default reserve (or 25 % of a small file system): data written by guests between two checks
/// must fit.
const RESERVE_MIN: u64 = 1 << 30;

/// Free space of one store.
#[derive(Debug, Clone)]
pub(crate) struct FreeSpace {
    /// Directory of the store.
    pub(crate) dir: PathBuf,
    /// Directory of the sparse file in which the store's file system is; its free space counts too.
    pub(crate) below: Option<PathBuf>,
    /// Bytes that should stay free.
    pub(crate) reserve: Option<u64>,
    /// Whether guests write to block devices, for whose dirty pages no space is reserved in the file system.
    pub(crate) devices: bool,
}

/// Upper bound of the dirty pages of block devices in bytes.
fn unwritten() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or_default()
            << 10
    };
    (bytes("Dirty:") + bytes("Writeback:")).min(bytes("Buffers:"))
}

/// Returns total and free bytes of the file system of `dir`.
fn measure(dir: &Path) -> Result<(u64, u64), DiskError> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| failed("measure the volume store")(e.into()))?;
    Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

fn usual_reserve(total: u64) -> u64 {
    (total / 20).max(RESERVE_MIN.min(total / 4)).min(RESERVE_MAX)
}

impl FreeSpace {
    /// Returns the current free space.
    pub(crate) fn pressure(&self) -> Result<Pressure, DiskError> {
        let (total, mut free) = measure(&self.dir)?;
        if let Some(below) = &self.below {
            free = free.min(measure(below)?.1);
        }
        let reserve = self.reserve.unwrap_or_else(|| usual_reserve(total));
        let unwritten = if self.devices { unwritten() } else { 0 };
        Ok(Pressure { total, free, unwritten, reserve })
    }

    /// Fails if less than the reserve is available.
    pub(crate) fn check(&self) -> Result<(), DiskError> {
        if self.pressure()?.is_low() { Err(DiskError::Full) } else { Ok(()) }
    }

    /// Returns the health of a valid volume of the store.
    pub(crate) fn health(&self) -> Result<Health, DiskError> {
        let now = self.pressure()?;
        let low = Health::Low { free: now.available(), reserve: now.reserve };
        Ok(if now.is_low() { low } else { Health::Ok })
    }

    /// Fails with ENOSPC if less than the reserve is available. Called between pieces of a long copy, which
    /// must not use up the space of running sandboxes.
    pub(crate) fn check_piece(&self) -> io::Result<()> {
        match self.check() {
            Err(DiskError::Full) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            // The next write fails if there is a real problem.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_holds_what_is_written_between_two_looks() {
        let gib = 1 << 30;
        assert_eq!(usual_reserve(gib), gib / 4);
        assert_eq!(usual_reserve(10 * gib), gib);
        assert_eq!(usual_reserve(30 * gib), 3 * gib / 2);
        assert_eq!(usual_reserve(1000 * gib), 2 * gib);
    }

    #[test]
    fn what_is_not_written_yet_is_not_free() {
        let now = Pressure { total: 1000, free: 100, unwritten: 60, reserve: 50 };
        assert!(now.is_low() && now.available() == 40);
        assert!(!Pressure { unwritten: 50, ..now }.is_low());
        assert_eq!(Pressure { unwritten: 200, ..now }.available(), 0);
    }

    #[test]
    fn the_room_below_counts_too() {
        let room = |below: Option<&str>| FreeSpace {
            dir: "/proc".into(),
            below: below.map(PathBuf::from),
            reserve: None,
            devices: false,
        };
        // /proc has no free space, like a full file system.
        assert_eq!(FreeSpace { dir: "/tmp".into(), ..room(Some("/proc")) }.pressure().unwrap().free, 0);
        assert!(FreeSpace { dir: "/tmp".into(), ..room(None) }.pressure().unwrap().free > 0);
    }
}
