// SPDX-License-Identifier: Apache-2.0
//! Terminal output: results as text or one JSON value on standard output, progress on standard error.

use std::io::{self, Write as _};

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use comfy_table::{Table, presets};
use serde::Serialize;

/// Format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Text for people.
    Text,
    /// One JSON value.
    Json,
}

impl Format {
    /// Prints a result as JSON or as text.
    pub(crate) fn print(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        match self {
            Self::Json => line(&serde_json::to_string_pretty(value).context("cannot write JSON")?),
            Self::Text => line(&text()),
        }
    }
}

/// Prints a line of results; prints nothing for an empty text.
pub(crate) fn line(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n"));
    written.and_then(|()| stdout.flush()).context("cannot write to standard output")
}

/// Prints a line of progress; ignores errors.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Returns whether the error is a closed output, as with `head`.
pub(crate) fn reader_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// Formats a table without lines, of a header and rows.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Formats named texts, one per line.
pub(crate) fn lines(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    fields.iter().map(|(name, text)| format!("{name:<width$}  {text}")).collect::<Vec<_>>().join("\n")
}

/// Formats all present fields of a value, one per line.
pub(crate) fn fields(value: &impl Serialize) -> String {
    let plain = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let value = serde_json::to_value(value).unwrap_or_default();
    let fields = value.as_object().into_iter().flatten().flat_map(|(name, value)| match value {
        serde_json::Value::Object(inner) => {
            inner.iter().map(|(key, value)| (format!("{name}.{key}"), plain(value))).collect()
        }
        other => vec![(name.clone(), plain(other))],
    });
    fields.map(|(name, value)| format!("{name:<28} {value}")).collect::<Vec<_>>().join("\n")
}

/// Formats text that others chose, such as a name, on one line: what controls a terminal is escaped.
pub(crate) fn plain(text: &str) -> String {
    // Quotes control nothing, and many a name has one.
    text.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")
}

/// Formats a time in a table.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_as_they_are_and_control_no_terminal() {
        for name in ["Ada's team", "the \"other\" one", "計算機", "e\u{301}"] {
            assert_eq!(plain(name), name);
        }
        assert_eq!(plain("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\nb");
    }
}
