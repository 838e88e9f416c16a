// SPDX-License-Identifier: Apache-2.0
//! What a template is on the hosts that have it.

use uuid::Uuid;

/// Kind of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A snapshot: a disk, mostly with memory.
    Snapshot,
    /// An image, from which disks are made.
    Image,
}

impl Kind {
    /// Word of the database.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Image => "image",
        }
    }

    /// Reads the word of the database.
    pub(crate) fn of(text: &str) -> Self {
        if text == Self::Image.as_str() { Self::Image } else { Self::Snapshot }
    }
}

/// What a template is on the hosts that have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Artifact {
    pub(crate) kind: Kind,
    pub(crate) id: Uuid,
    /// Host that had it first.
    pub(crate) host: Uuid,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_stored_by_name() {
        for kind in [Kind::Snapshot, Kind::Image] {
            assert_eq!(Kind::of(kind.as_str()), kind);
        }
    }
}
