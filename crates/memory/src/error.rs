// SPDX-License-Identifier: Apache-2.0
//! Errors of generations.

use std::io;

use crate::{BuildId, Damage, HeaderError};

/// Reason why a generation cannot be made, loaded or removed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A generation, or a file of one, is not there.
    #[error("{what} of snapshot {build} is missing: start the sandbox without its memory, or delete it")]
    Missing {
        /// Generation.
        build: BuildId,
        /// Missing file.
        what: &'static str,
    },
    /// A file is not what was written.
    #[error("{what} of snapshot {build} is damaged: {damage}; start the sandbox without its memory")]
    Damaged {
        /// Generation.
        build: BuildId,
        /// Damaged file.
        what: &'static str,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Its header cannot be read.
    #[error("snapshot {build}: {reason}")]
    Header {
        /// Generation.
        build: BuildId,
        /// Reason.
        reason: HeaderError,
    },
    /// It was made with something else than what would load it.
    #[error(
        "snapshot {build} was made with {what} {made_with:?}, and here is {here:?}: start the sandbox without its memory"
    )]
    Mismatch {
        /// Generation.
        build: BuildId,
        /// What differs.
        what: &'static str,
        /// Value when it was made.
        made_with: String,
        /// Current value.
        here: String,
    },
    /// Other generations need it.
    #[error("snapshot {build} is in use by {users:?}: delete them first")]
    InUse {
        /// Generation.
        build: BuildId,
        /// Generations that need it.
        users: Vec<BuildId>,
    },
    /// The kernel refused something.
    #[error("cannot {action}: {source}")]
    Io {
        /// Failed action.
        action: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Turns an error of the kernel into one of this action.
pub(crate) fn failed(action: &'static str) -> impl FnOnce(io::Error) -> MemoryError {
    move |source| MemoryError::Io { action, source }
}
