// SPDX-License-Identifier: Apache-2.0
//! Permission bits of files.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Permission bits, with set-user-id, set-group-id and sticky.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(u16);

/// Error of a text that is not a mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not a mode: write 1 to 4 octal digits, such as 0755; symbols such as u+x are for RUN chmod")]
pub struct ModeError;

impl Mode {
    /// Returns the bits.
    pub const fn bits(self) -> u16 {
        self.0
    }
}

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        let digits = (1..=4).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        let bits = u16::from_str_radix(text, 8).ok().filter(|_| digits);
        bits.map(Self).ok_or(ModeError)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        for (text, bits) in [("0755", 0o755), ("755", 0o755), ("4755", 0o4755), ("0", 0), ("7777", 0o7777)] {
            assert_eq!(text.parse(), Ok(Mode(bits)));
        }
        assert_eq!(Mode(0o644).to_string(), "0644");
        for text in ["", "u+x", "00755", "0o755", "888", "+755", "rwxr-xr-x"] {
            assert_eq!(text.parse::<Mode>(), Err(ModeError), "{text}");
        }
    }
}
