// SPDX-License-Identifier: Apache-2.0
//! Places in the text of a recipe.

use serde::{Deserialize, Serialize};

/// Place of a character: line and column count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Place {
    /// Returns the place of what follows `text`, which begins at the first character.
    pub(crate) fn after(text: &str) -> Self {
        let line = text.matches('\n').count() + 1;
        let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self { line: line as u32, column: column as u32 }
    }
}

/// Where an instruction stands in its recipe. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First line.
    pub line: u32,
    /// Column in the first line.
    pub column: u32,
    /// Last line, that of the end of its heredocs.
    pub last_line: u32,
}

impl Span {
    pub(crate) const fn place(self) -> Place {
        Place { line: self.line, column: self.column }
    }
}
