// SPDX-License-Identifier: Apache-2.0
//! Check that a generation is as it was written.

use std::fs::File;

use crate::{BuildId, MemoryError, Sums};

/// Open files of a generation whose content was not checked yet. A change of their owners does not matter any more.
#[derive(Debug)]
pub struct Verification {
    files: Vec<Opened>,
}

/// An open file, and the sums of what was written.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) build: BuildId,
    /// Name of the file for people.
    pub(crate) what: &'static str,
    pub(crate) file: File,
    pub(crate) sums: Sums,
}

impl Verification {
    /// Check of these files.
    pub(crate) fn of(files: Vec<Opened>) -> Self {
        Self { files }
    }

    /// Checks that every byte is as it was written.
    pub fn run(&self) -> Result<(), MemoryError> {
        self.files.iter().try_for_each(|Opened { build, what, file, sums }| {
            sums.check(file).map_err(|damage| MemoryError::Damaged { build: *build, what, damage })
        })
    }
}
