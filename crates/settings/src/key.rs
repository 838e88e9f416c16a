// SPDX-License-Identifier: Apache-2.0
//! Keys without the type of their field: names, accepted values, documentation.

use std::net::SocketAddr;

/// A configuration key.
#[derive(Debug, Clone)]
pub struct Key {
    /// Name, such as `server.listen`.
    pub name: &'static str,
    /// Values that it takes.
    pub kind: Kind,
    /// Default as Markdown.
    pub default: String,
    /// Documentation as Markdown: the field's doc comment.
    pub doc: &'static str,
    /// Environment variable, if other programs use the same.
    pub shared_variable: Option<&'static str>,
}

/// Values that a key takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// Path of a file or a directory.
    Path,
    /// IP address and port.
    Address,
    /// Number from a minimum to a maximum.
    Number(u64, u64, Unit),
    /// One of these words.
    OneOf(Vec<&'static str>),
}

/// Unit of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// None, or the one that the key's name says.
    Plain,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

impl Key {
    /// Name of the environment variable: `WRENN_A_B` for `a.b`, unless it is shared with other programs.
    pub fn variable(&self) -> String {
        let own = || format!("WRENN_{}", self.name.to_ascii_uppercase().replace('.', "_"));
        self.shared_variable.map_or_else(own, str::to_owned)
    }

    /// Checks a value; the error says what is possible.
    pub fn check(&self, value: &str) -> Result<(), String> {
        self.kind.check(value)
    }
}

impl Kind {
    fn check(&self, value: &str) -> Result<(), String> {
        match self {
            Self::Text | Self::Path => Ok(()),
            Self::Address if value.parse::<SocketAddr>().is_ok() => Ok(()),
            Self::Address => Err("not an address with a port, such as 127.0.0.1:9725".to_owned()),
            Self::Number(min, max, _)
                if value.parse::<u64>().is_ok_and(|number| (*min..=*max).contains(&number)) =>
            {
                Ok(())
            }
            Self::Number(min, max, _) => Err(format!("not a number from {min} to {max}")),
            Self::OneOf(words) if words.contains(&value) => Ok(()),
            Self::OneOf(words) => Err(format!("not one of {}", words.join(", "))),
        }
    }
}
