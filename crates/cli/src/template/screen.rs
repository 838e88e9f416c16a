// SPDX-License-Identifier: Apache-2.0
//! Where a build is shown: lines on standard error or output, and below them on a terminal what is in work.

use std::{
    env,
    io::{self, IsTerminal as _},
};

use anyhow::Result;
use indicatif::ProgressBar;

use crate::{
    output::{line, note},
    progress::spinner,
};

/// Where the lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lines {
    /// They are progress: standard error.
    Progress,
    /// They are what was asked for: standard output.
    Result,
}

/// Shows a build.
pub(super) struct Screen {
    lines: Lines,
    /// What is in work; nothing without a terminal.
    in_work: ProgressBar,
}

impl Screen {
    /// Shows lines, and what is in work if `live`.
    pub(super) fn new(lines: Lines, live: bool) -> Self {
        Self { lines, in_work: if live { spinner("building") } else { ProgressBar::hidden() } }
    }

    /// Returns whether lines may have colours.
    pub(super) fn has_colours(&self) -> bool {
        let terminal = match self.lines {
            Lines::Progress => io::stderr().is_terminal(),
            Lines::Result => io::stdout().is_terminal(),
        };
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        terminal && !set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
    }

    /// Shows lines.
    pub(super) fn show(&self, lines: &[String]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let text = lines.join("\n");
        self.in_work.suspend(|| match self.lines {
            Lines::Progress => {
                note(&text);
                Ok(())
            }
            Lines::Result => line(&text),
        })
    }

    /// Shows a line of progress.
    pub(super) fn note(&self, text: &str) {
        self.in_work.suspend(|| note(text));
    }

    /// Shows nothing in work any more, as before a result is printed.
    pub(super) fn end_work(&self) {
        self.in_work.finish_and_clear();
    }

    /// Shows what is in work now.
    pub(super) fn set_in_work(&self, what: String) {
        if self.in_work.message() != what {
            self.in_work.set_message(what);
            self.in_work.reset_elapsed();
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.end_work();
    }
}
