// SPDX-License-Identifier: Apache-2.0
//! Terminals of processes: their size, and what they show.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"cols": 120, "rows": 40}))]
pub struct TerminalSize {
    /// Number of columns.
    #[schema(minimum = 1, maximum = 1000)]
    pub cols: u32,
    /// Number of rows.
    #[schema(minimum = 1, maximum = 500)]
    pub rows: u32,
}

impl TerminalSize {
    /// Largest terminal.
    pub const MAX: Self = Self { cols: 1000, rows: 500 };

    /// Returns whether there can be a terminal of this size.
    pub fn is_possible(self) -> bool {
        (1..=Self::MAX.cols).contains(&self.cols) && (1..=Self::MAX.rows).contains(&self.rows)
    }
}

/// What a terminal shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "cols": 80, "rows": 24, "text": "$ ls\nnotes.txt\n$", "scrollback": "", "cursor": {"row": 2, "col": 2, "visible": true},
    "alternate": false, "offset": 31, "ended": false
}))]
pub struct TerminalScreen {
    /// Number of columns.
    pub cols: u32,
    /// Number of rows.
    pub rows: u32,
    /// The text of its rows, without spaces at their ends and without empty rows at the end.
    pub text: String,
    /// The text of the lines that have left the screen at its top, the last 200 at most.
    pub scrollback: String,
    /// Where its cursor is.
    pub cursor: TerminalCursor,
    /// Whether a program, such as an editor, uses the alternate screen.
    pub alternate: bool,
    /// How many bytes its process has written.
    pub offset: u64,
    /// Whether its process has ended.
    pub ended: bool,
}

/// Cursor of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"row": 2, "col": 2, "visible": true}))]
pub struct TerminalCursor {
    /// Its row, from 0.
    pub row: u32,
    /// Its column, from 0; the number of columns if the row is full.
    pub col: u32,
    /// Whether it is shown.
    pub visible: bool,
}
