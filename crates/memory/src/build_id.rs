// SPDX-License-Identifier: Apache-2.0
//! Identity of a generation.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Identity of a generation, which is never used again. Sorted by the time of its making.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildId(Uuid);

impl BuildId {
    /// Number of bytes of [`BuildId::to_bytes`].
    pub(crate) const LENGTH: usize = 16;

    /// Makes a new identity.
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// Identity with this number, for tests and formats.
    pub const fn from_u128(number: u128) -> Self {
        Self(Uuid::from_u128(number))
    }

    /// The identity as in a header; `None` for zeros, which stand for no generation.
    pub(crate) fn from_bytes(bytes: [u8; Self::LENGTH]) -> Option<Self> {
        let id = Uuid::from_bytes(bytes);
        (!id.is_nil()).then_some(Self(id))
    }

    /// Bytes in a header.
    pub(crate) fn to_bytes(self) -> [u8; Self::LENGTH] {
        self.0.into_bytes()
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// A text that is no build id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a build id has 32 hexadecimal digits in lower case, not only zeros")]
pub struct NoBuildId;

impl FromStr for BuildId {
    type Err = NoBuildId;

    /// Parses what `Display` writes, and nothing else: it names directories.
    fn from_str(text: &str) -> Result<Self, NoBuildId> {
        let id = Uuid::try_parse(text).map_err(|_| NoBuildId)?;
        if id.simple().to_string() == text && !id.is_nil() { Ok(Self(id)) } else { Err(NoBuildId) }
    }
}
