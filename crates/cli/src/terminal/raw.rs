// SPDX-License-Identifier: Apache-2.0
//! Raw mode of the user's terminal, which is restored in every case that this program sees.

use std::io;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use wrenn_api::TerminalSize;

/// Raw mode, until this is dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Enters raw mode; `None` if standard input is no terminal.
    pub(crate) fn enter() -> Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("cannot read the modes of the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("cannot set the modes of the terminal")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Not what was typed meanwhile: it is for the shell that comes next.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Returns the size of the user's terminal, if standard output is one.
pub(super) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    let max = TerminalSize::MAX;
    let (cols, rows) = (u32::from(size.ws_col).min(max.cols), u32::from(size.ws_row).min(max.rows));
    (cols > 0 && rows > 0).then_some(TerminalSize { cols, rows })
}
