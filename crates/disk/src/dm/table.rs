// SPDX-License-Identifier: Apache-2.0
//! Tables of device-mapper and the status of their targets.

use super::numbers::Numbers;

/// Sectors of 512 bytes per chunk: 4 KiB, the block size of the file systems. Larger chunks would copy
/// unchanged data.
pub(crate) const CHUNK_SECTORS: u64 = 8;
const CHUNK: u64 = CHUNK_SECTORS * 512;
/// Number of chunks described by one chunk of a snapshot's index.
const INDEXED: u64 = CHUNK / 16;
/// Chunks for the header and for the index chunk that is cleared ahead of the one in use.
const SLACK: u64 = 16;

/// Type of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Range of another device.
    Linear {
        device: Numbers,
        offset: u64,
    },
    Zero,
    /// `origin` with the changes in `cow`.
    Snapshot {
        origin: Numbers,
        cow: Numbers,
    },
}

/// Line of a table; start and length in sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) kind: Kind,
}

impl Target {
    pub(crate) fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Linear { .. } => "linear",
            Kind::Zero => "zero",
            Kind::Snapshot { .. } => "snapshot",
        }
    }

    pub(crate) fn parameters(&self) -> String {
        match &self.kind {
            Kind::Linear { device, offset } => format!("{device} {offset}"),
            Kind::Zero => String::new(),
            // P = persistent: the changes survive the mapping.
            Kind::Snapshot { origin, cow } => format!("{origin} {cow} P {CHUNK_SECTORS}"),
        }
    }
}

/// Table of an image of `image` sectors followed by zeros up to `size` sectors.
pub(crate) fn base(device: Numbers, image: u64, size: u64) -> Vec<Target> {
    let linear = Kind::Linear { device, offset: 0 };
    let mut targets = vec![Target { start: 0, length: image.min(size), kind: linear }];
    if image < size {
        targets.push(Target { start: image, length: size - image, kind: Kind::Zero });
    }
    targets
}

/// Table of a snapshot of `origin` with `size` sectors and its changes in `cow`.
pub(crate) fn snapshot(origin: Numbers, cow: Numbers, size: u64) -> Vec<Target> {
    vec![Target { start: 0, length: size, kind: Kind::Snapshot { origin, cow } }]
}

/// Size in bytes of a copy-on-write file with space for every chunk of a device of `size` bytes and for their
/// index. The file is sparse: only the file system below can be full, never the file.
pub(crate) fn cow_size(size: u64) -> u64 {
    let chunks = size.div_ceil(CHUNK);
    (chunks + chunks.div_ceil(INDEXED) + SLACK) * CHUNK
}

/// Status of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TargetStatus {
    pub(crate) kind: String,
    pub(crate) text: String,
}

/// State of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotStatus {
    /// Valid; used and total sectors.
    Works { used: u64, total: u64 },
    /// It lost changes; reads fail.
    Invalid,
}

impl TargetStatus {
    /// Parses `USED/TOTAL METADATA`; all other texts of the kernel (`Invalid`, `Overflow`, `Merge failed`,
    /// `Unknown`) mean that the snapshot is unusable.
    pub(crate) fn snapshot(&self) -> Option<SnapshotStatus> {
        if self.kind != "snapshot" {
            return None;
        }
        let figures = || {
            let (used, total) = self.text.split_whitespace().next()?.split_once('/')?;
            Some((used.parse().ok()?, total.parse().ok()?))
        };
        Some(match figures() {
            Some((used, total)) => SnapshotStatus::Works { used, total },
            None => SnapshotStatus::Invalid,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOP: Numbers = Numbers { major: 7, minor: 3 };

    #[test]
    fn a_base_has_a_tail_of_zeros_only_where_the_disk_is_larger() {
        let lines = |targets: Vec<Target>| {
            let line = |t: &Target| {
                format!("{} {} {} {}", t.start, t.length, t.kind(), t.parameters()).trim().to_owned()
            };
            targets.iter().map(line).collect::<Vec<_>>()
        };
        assert_eq!(lines(base(LOOP, 800, 800)), ["0 800 linear 7:3 0"]);
        assert_eq!(lines(base(LOOP, 800, 2000)), ["0 800 linear 7:3 0", "800 1200 zero"]);
        let device = Numbers { major: 253, minor: 300 };
        assert_eq!(lines(snapshot(device, LOOP, 2000)), ["0 2000 snapshot 253:300 7:3 P 8"]);
    }

    #[test]
    fn a_cow_file_has_room_for_every_chunk_and_its_index() {
        for size in [4096, 1 << 20, (1 << 20) + 1, 300 << 20, 20 << 30] {
            let chunks: u64 = (size as u64).div_ceil(4096);
            let room = cow_size(size as u64) / 4096;
            // Header, one index chunk per 256 chunks, and the cleared one after the last.
            assert!(room >= chunks + chunks.div_ceil(256) + 2, "{size}");
            assert!(room < chunks + chunks / 200 + 32, "{size}");
        }
    }

    #[test]
    fn a_snapshot_is_read_and_anything_unknown_is_invalid() {
        let status = |text: &str| TargetStatus { kind: "snapshot".into(), text: text.into() }.snapshot();
        assert_eq!(status("48/135296 16"), Some(SnapshotStatus::Works { used: 48, total: 135_296 }));
        for text in
            ["Invalid", "Overflow", "Merge failed", "Unknown", "", "x/y 1", "1 2", "99999999999999999999/1 1"]
        {
            assert_eq!(status(text), Some(SnapshotStatus::Invalid), "{text}");
        }
        assert_eq!(TargetStatus { kind: "linear".into(), text: "1/2 3".into() }.snapshot(), None);
    }
}
