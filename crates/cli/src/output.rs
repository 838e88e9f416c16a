//! What goes to the terminal: text or one JSON value on standard output, progress on standard error.

use std::io::{self, Write as _};

use anyhow::{Context, Result};
use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON value.
    Json,
}

impl Format {
    /// Prints a result: the value itself, or its text.
    pub(crate) fn print(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        match self {
            Self::Json => line(&serde_json::to_string_pretty(value).context("cannot write JSON")?),
            Self::Text => line(&text()),
        }
    }
}

/// Prints a line of results; an empty text prints nothing.
pub(crate) fn line(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n"));
    written.and_then(|()| stdout.flush()).context("cannot write to standard output")
}

/// Prints a line of progress. Nobody reading it is no failure.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether the reader of our output went away, as `head` does.
pub(crate) fn reader_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
