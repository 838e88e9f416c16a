// SPDX-License-Identifier: Apache-2.0
//! One measurement of what a sandbox uses.

use std::time::Duration;

use crate::sandbox::usage::Figures;

/// The whole time of all virtual CPUs of a sandbox, in the unit of [`Sample::cpu`].
pub(super) const CPU_MAX: u16 = 10_000;

/// What a sandbox used at a time, or on average.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Unix time in milliseconds.
    pub(crate) time_ms: u64,
    /// CPU time since the sample before, in hundredths of a percent of what its virtual CPUs have: 0 to [`CPU_MAX`].
    pub(crate) cpu: u16,
    /// Resident memory of its VMM in bytes.
    pub(crate) mem_bytes: u64,
    /// Bytes that its disk occupies on the host.
    pub(crate) disk_bytes: u64,
    /// Bytes that its guest has received in the slot that it is in.
    pub(crate) net_rx_bytes: u64,
    /// Bytes that its guest has sent from there.
    pub(crate) net_tx_bytes: u64,
    /// What its guest says of itself.
    pub(crate) guest: Figures,
}

impl Sample {
    /// Returns how many of its `vcpus` virtual CPUs the sandbox used, in thousandths.
    pub(super) fn cpu_milli(&self, vcpus: u32) -> u64 {
        u64::from(self.cpu) * u64::from(vcpus) * 1000 / u64::from(CPU_MAX)
    }
}

/// Returns the use of `vcpus` virtual CPUs whose VMM took so much CPU time. The VMM's own threads count, too, so that there may be
/// more of it than the virtual CPUs have.
pub(super) fn cpu(used: Duration, elapsed: Duration, vcpus: u32) -> u16 {
    let had = elapsed.as_secs_f64() * f64::from(vcpus);
    if had > 0.0 {
        let max = f64::from(CPU_MAX);
        (used.as_secs_f64() / had * max).round().min(max) as u16
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_several_cpus_is_told_in_cpus() {
        for (cpu, vcpus, expected) in [(0, 4, 0), (2500, 4, 1000), (CPU_MAX, 2, 2000), (CPU_MAX, 64, 64_000)]
        {
            assert_eq!(Sample { cpu, ..Sample::default() }.cpu_milli(vcpus), expected, "{cpu} of {vcpus}");
        }
    }

    #[test]
    fn the_use_of_cpus_is_a_part_of_what_there_was() {
        let ms = Duration::from_millis;
        for (used, elapsed, vcpus, expected) in [
            (0, 500, 1, 0),
            (250, 500, 1, 5000),
            (250, 500, 4, 1250),
            (500, 500, 1, CPU_MAX),
            // The VMM's own work.
            (510, 500, 1, CPU_MAX),
            (1, 30_000, 3, 0),
            (10, 30_000, 1, 3),
            (10, 0, 1, 0),
            (10, 500, 0, 0),
        ] {
            assert_eq!(
                cpu(ms(used), ms(elapsed), vcpus),
                expected,
                "{used} ms of {vcpus} times {elapsed} ms"
            );
        }
    }
}
