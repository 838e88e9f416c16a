// SPDX-License-Identifier: Apache-2.0
//! A generation: its manifest, its header and its files.

use crate::{Header, Manifest};

/// Name of the manifest's file.
pub(crate) const MANIFEST: &str = "manifest";

/// A generation whose manifest and header are sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its header.
    pub header: Header,
}

/// File of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Header with the mapping.
    Header,
    /// Content of blocks.
    Data,
    /// State of registers and devices, in the VMM's own format.
    State,
    /// Working set, which a generation may have or not. It is a hint and has no sums.
    WorkingSet,
}

impl Part {
    /// Files that every generation has.
    pub(crate) const ALL: [Self; 3] = [Self::Header, Self::Data, Self::State];

    /// Name of the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Data => "data",
            Self::State => "state",
            Self::WorkingSet => "working_set",
        }
    }

    /// Name for people.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Header => "the header",
            Self::Data => "the memory",
            Self::State => "the state",
            Self::WorkingSet => "the working set",
        }
    }
}
