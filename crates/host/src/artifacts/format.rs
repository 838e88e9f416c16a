// SPDX-License-Identifier: Apache-2.0
//! What an artifact consists of while it moves: files in pieces of 4 MiB, each with its digest, and a digest of all of it.
//!
//! A piece that has zeros only is left out, so that disks and memory keep their holes. Each piece is one block of LZ4: that is as
//! fast as a disk and a network, where a better compression would be what everything waits for.

use std::{collections::BTreeMap, fmt};

use sha2::{Digest as _, Sha256};
use wrenn_api::ErrorCode;
use wrenn_os::sparse_file::Extent;
use wrenn_rpc::fault::Of;

use crate::error::AgentError;

/// Version that is written, the only one that is read.
pub(super) const FORMAT: u32 = 1;
/// Length of a piece in bytes.
pub(super) const PIECE: u64 = 4 << 20;
/// Maximum length of a record in bytes.
pub(super) const RECORD_MAX: usize = 4 << 20;

/// SHA-256 of something.
pub(super) type Sum = [u8; 32];

/// What an artifact is on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A named snapshot.
    Snapshot = 1,
    /// An image.
    Image = 2,
}

/// File of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    /// Content of the disk.
    Disk = 1,
    /// Memory, each block at its place.
    Memory = 2,
    /// State of registers and devices.
    State = 3,
}

/// A part of an artifact on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Comes first.
    Head(Head),
    /// Those of all files, in any order.
    Piece(Piece),
    /// Comes last.
    End(End),
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    /// Id that the control plane gave it.
    pub(crate) id: String,
    /// Lengths of the files in bytes.
    pub(crate) files: BTreeMap<Name, u64>,
}

/// Piece of a file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) file: Name,
    /// Its number in the file, from 0.
    pub(crate) index: u64,
    /// Digest and length before its compression.
    pub(crate) sum: Sum,
    pub(crate) length: u32,
    /// What [`pack`] made of it.
    pub(crate) data: Vec<u8>,
}

/// What completes an artifact.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Description for the agent that takes it in.
    pub(crate) record: Vec<u8>,
    /// Digest of all that was sent.
    pub(crate) sum: Sum,
}

/// Digests of pieces.
#[derive(Debug, Default)]
pub(super) struct Sums(BTreeMap<(Name, u64), Sum>);

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "snapshot",
            Self::Image => "image",
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::State => "state",
        })
    }
}

/// Without the content, which may have secrets.
impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "piece {} of the {}, {} bytes", self.index, self.file, self.length)
    }
}

/// Without the record, which has secrets.
impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "end with a record of {} bytes", self.record.len())
    }
}

impl Piece {
    /// Makes a piece of this content.
    pub(super) fn of(file: Name, index: u64, content: &[u8]) -> Self {
        let (sum, data) = (Sha256::digest(content).into(), pack(content));
        Self { file, index, sum, length: content.len() as u32, data }
    }

    /// Returns the content, if it is what the digest was made of.
    pub(super) fn content(self) -> Option<Vec<u8>> {
        let content = unpack(self.data, self.length as usize)?;
        let sum: Sum = Sha256::digest(&content).into();
        (sum == self.sum).then_some(content)
    }
}

impl Sums {
    /// Adds the digest of a piece; returns false if it has one.
    pub(super) fn add(&mut self, piece: &Piece) -> bool {
        self.0.insert((piece.file, piece.index), piece.sum).is_none()
    }

    /// Digest of an artifact with this head, these pieces and this record: `ArtifactEnd.sha256` of host.proto.
    pub(super) fn total(&self, head: &Head, record: &[u8]) -> Sum {
        let mut all = Sha256::new();
        all.update((head.kind as u32).to_be_bytes());
        for (name, length) in &head.files {
            all.update((*name as u32).to_be_bytes());
            all.update(length.to_be_bytes());
        }
        all.update((self.0.len() as u64).to_be_bytes());
        for ((name, index), sum) in &self.0 {
            all.update((*name as u32).to_be_bytes());
            all.update(index.to_be_bytes());
            all.update(sum);
        }
        all.update(record);
        all.finalize().into()
    }
}

/// Length of a piece of a file of this length; none if it is beyond the end.
pub(super) fn piece_length(length: u64, index: u64) -> Option<u64> {
    let rest = length.checked_sub(index.checked_mul(PIECE)?)?;
    (rest > 0).then_some(rest.min(PIECE))
}

/// Numbers of the pieces of a file of this length that have some of these extents, which are in order.
pub(super) fn pieces(extents: &[Extent], length: u64) -> Vec<u64> {
    let mut all: Vec<u64> = Vec::new();
    for extent in extents {
        let end = extent.end.min(length);
        if extent.start < end {
            let (first, last) = (extent.start / PIECE, (end - 1) / PIECE);
            let next = all.last().map_or(first, |before| first.max(before + 1));
            all.extend(next..=last);
        }
    }
    all
}

/// Compresses a piece, unless it would not become shorter.
fn pack(content: &[u8]) -> Vec<u8> {
    let packed = lz4_flex::block::compress(content);
    if packed.len() < content.len() { packed } else { content.to_vec() }
}

/// Returns a piece of this length; none if the data is not one. Takes no more memory, whatever the data says.
fn unpack(data: Vec<u8>, length: usize) -> Option<Vec<u8>> {
    if data.len() >= length {
        return (data.len() == length).then_some(data);
    }
    let mut content = vec![0; length];
    let unpacked = lz4_flex::block::decompress_into(&data, &mut content).ok()?;
    (unpacked == length).then_some(content)
}

/// Error for an artifact that was sent and is not what was exported.
pub(super) fn damaged(kind: Kind, what: impl fmt::Display) -> AgentError {
    let code = match kind {
        Kind::Snapshot => ErrorCode::SnapshotDamaged,
        Kind::Image => ErrorCode::ImageDamaged,
    };
    let message =
        format!("the {kind} was damaged on its way to the host: {what}; send it again from another copy");
    // Another copy may be sound, wherever it is taken in.
    AgentError { of: Of::OF_CALLER, ..AgentError::new(code, message) }
}

/// Error for a stream that does not have the form of an artifact.
pub(super) fn malformed(what: impl fmt::Display) -> AgentError {
    AgentError::new(ErrorCode::InvalidRequest, format!("the stream is no artifact: {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(content: &[u8]) -> Piece {
        Piece::of(Name::Disk, 3, content)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Every byte of an extent is in a piece that is named, once and in order, and no piece is empty.
        #[test]
        fn pieces_cover_the_extents(
            gaps in prop::collection::vec((1..9_u64 << 20, 1..9_u64 << 20), 0..20),
            cut in 0..80_u64 << 20,
        ) {
            let mut at = 0;
            let extents: Vec<_> = gaps.into_iter().map(|(gap, length)| {
                let start = at + gap;
                at = start + length;
                Extent { start, end: at }
            }).collect();
            let all = pieces(&extents, cut);
            prop_assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
            let touches = |index: u64| extents.iter().any(|extent| {
                extent.start.max(index * PIECE) < extent.end.min(cut).min((index + 1) * PIECE)
            });
            for index in 0..=cut / PIECE + 2 {
                prop_assert_eq!(all.contains(&index), touches(index), "piece {}", index);
                prop_assert!(!touches(index) || piece_length(cut, index).is_some());
            }
            let lengths: u64 = (0..).map_while(|index| piece_length(cut, index)).sum();
            prop_assert_eq!(lengths, cut);
        }

        #[test]
        fn a_piece_is_what_it_was_made_of(
            content in prop::collection::vec(0..4_u8, 1..5000),
            flip in any::<prop::sample::Index>(),
        ) {
            let made = piece(&content);
            prop_assert!(made.data.len() <= content.len());
            prop_assert_eq!(made.clone().content(), Some(content));
            let mut changed = made.clone();
            let at = flip.index(changed.data.len());
            changed.data[at] ^= 0x40;
            // LZ4 has several forms of the same content.
            prop_assert!(changed.content().is_none_or(|content| Some(content) == made.content()));
        }

        /// Whatever comes, nothing larger than the piece is made of it.
        #[test]
        fn what_is_no_piece_is_refused(data in prop::collection::vec(any::<u8>(), 0..300), length in 0..600_usize) {
            prop_assert!(unpack(data, length).is_none_or(|content| content.len() == length));
        }
    }

    #[test]
    fn what_cannot_be_compressed_is_sent_as_it_is() {
        let content: Vec<u8> = (0..=255).collect();
        let made = piece(&content);
        assert_eq!(made.data, content);
        assert_eq!(made.content(), Some(content));
        let longer = Piece { length: 255, ..piece(&[1; 256]) };
        assert_eq!(longer.content(), None);
    }

    #[test]
    fn the_digest_is_of_everything() {
        let head = |length| Head { kind: Kind::Image, id: "i".into(), files: [(Name::Disk, length)].into() };
        let mut sums = Sums::default();
        assert!(sums.add(&piece(b"a")) && !sums.add(&piece(b"b")), "a piece comes once");
        let total = sums.total(&head(1), b"record");
        assert_ne!(sums.total(&head(2), b"record"), total);
        assert_ne!(sums.total(&head(1), b"Record"), total);
        assert_ne!(sums.total(&Head { kind: Kind::Snapshot, ..head(1) }, b"record"), total);
        sums.add(&Piece { index: 4, ..piece(b"a") });
        assert_ne!(sums.total(&head(1), b"record"), total);
    }

    /// The digest of format 1 never changes: artifacts in stores have it.
    #[test]
    fn the_digest_is_the_one_that_is_documented() {
        let head = Head {
            kind: Kind::Snapshot,
            id: "s".into(),
            files: [(Name::Disk, 0x0102_0304_0506), (Name::State, 9)].into(),
        };
        let mut sums = Sums::default();
        let made = Piece::of(Name::State, 0, b"some state");
        sums.add(&made);
        let mut bytes = vec![0, 0, 0, 1];
        bytes.extend([0, 0, 0, 1, 0, 0, 1, 2, 3, 4, 5, 6]);
        bytes.extend([0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 9]);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(Sha256::digest(b"some state"));
        bytes.extend(b"record");
        let expected: Sum = Sha256::digest(&bytes).into();
        assert_eq!(sums.total(&head, b"record"), expected);
    }
}
