// SPDX-License-Identifier: Apache-2.0
//! Untrusted text (of a guest, a tenant or an agent), escaped and cut for logs.

use std::fmt;

/// Maximum number of bytes shown of a text.
pub const SHOWN: usize = 512;

/// Untrusted text. `Display` escapes it, so that it can neither forge a log line nor control a terminal, and
/// cuts it after [`SHOWN`] bytes.
///
/// ```
/// # use wrenn_rpc::Foreign;
/// assert_eq!(Foreign("a\nb\u{1b}[2J").to_string(), r#""a\nb\u{1b}[2J""#);
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Foreign<'a>(pub &'a str);

impl fmt::Display for Foreign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= SHOWN {
            return write!(f, "{:?}", self.0);
        }
        let end = (0..=SHOWN).rev().find(|end| self.0.is_char_boundary(*end)).unwrap_or_default();
        write!(f, "{:?}… ({} bytes)", &self.0[..end], self.0.len())
    }
}

impl fmt::Debug for Foreign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_on_its_line() {
        let forged =
            "x\n2026-01-01T00:00:00Z  INFO wrenn: FORGED\r\u{1b}[31mRED\u{1b}[2J\u{9b}31m\u{2028}\u{202e}";
        let shown = Foreign(forged).to_string();
        assert!(!shown.chars().any(|c| c.is_control() || ['\u{2028}', '\u{202e}'].contains(&c)), "{shown}");
        assert_eq!(format!("{:?}", Foreign(forged)), shown);
    }

    #[test]
    fn long_foreign_text_is_cut_between_characters() {
        let text = "é".repeat(4 << 20);
        let shown = Foreign(&text).to_string();
        assert!(shown.len() < 2 * SHOWN && shown.ends_with("… (8388608 bytes)"), "{shown}");
    }
}
