// SPDX-License-Identifier: Apache-2.0
//! Progress of an import: how many bytes of the layers, as they are stored, are fetched and unpacked, for those who wait for it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what an import has done.
#[derive(Debug, Default)]
pub(super) struct Progress {
    total: AtomicU64,
    fetched: AtomicU64,
    unpacked: AtomicU64,
}

/// How far an import is, in bytes of its layers as they are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HowFar {
    /// Bytes of all layers; 0 as long as the import waits for its turn.
    pub(crate) total: u64,
    /// Bytes that have come.
    pub(crate) fetched: u64,
    /// Bytes that are unpacked. When these are all, the file system is written.
    pub(crate) unpacked: u64,
}

impl Progress {
    /// Records how many bytes there are.
    pub(super) fn begin(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Adds bytes that have come.
    pub(super) fn fetched(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Records how many bytes are unpacked.
    pub(super) fn unpacked(&self, bytes: u64) {
        self.unpacked.store(bytes, Ordering::Relaxed);
    }

    /// Returns how far it is. A layer that there is several times is fetched once and unpacked several times.
    pub(super) fn now(&self) -> HowFar {
        let total = self.total.load(Ordering::Relaxed);
        let of_total = |counter: &AtomicU64| counter.load(Ordering::Relaxed).min(total);
        HowFar { total, fetched: of_total(&self.fetched), unpacked: of_total(&self.unpacked) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_told_to_be_done_than_there_is() {
        let progress = Progress::default();
        assert_eq!(progress.now(), HowFar::default());
        progress.begin(10);
        progress.fetched(3);
        progress.fetched(4);
        assert_eq!(progress.now(), HowFar { total: 10, fetched: 7, unpacked: 0 });
        progress.fetched(3);
        progress.unpacked(12);
        assert_eq!(progress.now(), HowFar { total: 10, fetched: 10, unpacked: 10 });
    }
}
