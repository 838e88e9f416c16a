// SPDX-License-Identifier: Apache-2.0
//! How users refer to a sandbox: by its id, by the beginning of its id, or by its name.

use std::{fmt, str::FromStr};

use crate::SandboxId;

/// Maximum length of a reference that is no id: that of a label in DNS.
const MAX: usize = 63;

/// A sandbox: its id, or what the control plane looks up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SandboxRef {
    /// The id.
    Id(SandboxId),
    /// A name, or the beginning of an id: lower-case letters, digits and '-'.
    Lookup(String),
}

/// Error of a text that refers to no sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no sandbox: give its id, at least the first {min} characters of it, or its name (lower-case letters, digits and '-')", min = SandboxId::BEGINNING_MIN)]
pub struct ReferenceError(String);

impl FromStr for SandboxRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte != b'-');
        let is_label = text.len() <= MAX
            && ends(text.bytes().next())
            && ends(text.bytes().last())
            && text.bytes().all(known);
        if is_label {
            return Ok(Self::Lookup(text.to_owned()));
        }
        Err(ReferenceError(text.chars().take(MAX).collect()))
    }
}

impl From<SandboxId> for SandboxRef {
    fn from(id: SandboxId) -> Self {
        Self::Id(id)
    }
}

impl fmt::Display for SandboxRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Lookup(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_names_and_beginnings_are_references() {
        let id = SandboxId::new();
        assert_eq!(id.to_string().parse(), Ok(SandboxRef::Id(id)));
        let longest = "x".repeat(63);
        for text in ["web", "sb03hal", "a", "1", "ci-42", &longest] {
            assert_eq!(text.parse(), Ok(SandboxRef::Lookup(text.to_owned())));
        }
    }

    #[test]
    fn other_texts_are_refused_with_what_is_taken() {
        let long = "x".repeat(64);
        for text in ["", "-a", "a-", "Web", "a.b", "a/b", "../x", "a b", "ä", &long] {
            let error = text.parse::<SandboxRef>().expect_err(text).to_string();
            assert!(error.contains("or its name"), "{error}");
        }
    }
}
