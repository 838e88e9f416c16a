// SPDX-License-Identifier: Apache-2.0
//! The log of a build as its worker writes it: in batches, so that a command which prints a lot costs few statements.

use std::{mem, time::Duration};

use chrono::Utc;
use sqlx::PgExecutor;
use tokio::time::Instant;
use wrenn_api::BuildStream;

use super::stop::Stop;
use crate::{
    db::{
        build_logs::{self, Entry},
        builds::Claim,
    },
    state::App,
};

/// Longest time for which an entry waits for others, and the number of bytes after which it does not. An entry has at most this
/// number of bytes, too.
const WAIT: Duration = Duration::from_millis(200);
const BYTES: usize = 32 << 10;

/// Log of a build.
pub(super) struct Log {
    app: App,
    claim: Claim,
    pending: Pending,
}

/// Entries that are not written yet.
#[derive(Default)]
struct Pending {
    entries: Vec<Entry>,
    bytes: usize,
    /// When the first one came.
    since: Option<Instant>,
}

impl Log {
    /// Creates the log of a build that a worker has claimed.
    pub(super) fn new(app: &App, claim: Claim) -> Self {
        Self { app: app.clone(), claim, pending: Pending::default() }
    }

    /// Adds a message of the builder to a step; 0 is the whole build.
    pub(super) fn say(&mut self, step: u32, text: impl AsRef<str>) {
        self.pending.add(step, BuildStream::System, text.as_ref());
    }

    /// Adds output of a step.
    pub(super) fn output(&mut self, step: u32, stream: BuildStream, text: &str) {
        self.pending.output(step, stream, text);
    }

    /// When what was added is to be written; `None` if there is nothing.
    pub(super) fn due(&self) -> Option<Instant> {
        let since = self.pending.since?;
        Some(if self.pending.bytes >= BYTES { since } else { since + WAIT })
    }

    /// Writes what was added. Stops if another worker has the build.
    pub(super) async fn flush(&mut self) -> Result<(), Stop> {
        write(&self.app.db, self.claim, mem::take(&mut self.pending)).await
    }

    /// Writes what was added in a transaction, as [`Self::flush`].
    pub(super) async fn flush_in(&mut self, tx: &mut sqlx::PgConnection) -> Result<(), Stop> {
        write(tx, self.claim, mem::take(&mut self.pending)).await
    }
}

async fn write<'e>(db: impl PgExecutor<'e>, claim: Claim, pending: Pending) -> Result<(), Stop> {
    if pending.entries.is_empty() || build_logs::append(db, claim, &pending.entries).await? {
        return Ok(());
    }
    Err(Stop::Lost)
}

impl Pending {
    fn add(&mut self, step: u32, stream: BuildStream, text: &str) {
        // PostgreSQL has no NUL in texts.
        let text = text.replace('\0', "\u{fffd}");
        self.bytes += text.len();
        self.since.get_or_insert_with(Instant::now);
        self.entries.push(Entry { step: step as i32, stream, text, at: Utc::now() });
    }

    /// Adds output, to the last entry as long as that is of the same stream.
    fn output(&mut self, step: u32, stream: BuildStream, text: &str) {
        let text = text.replace('\0', "\u{fffd}");
        let mut text = text.as_str();
        while !text.is_empty() {
            let room = self.last(step, stream).map_or(0, |last| BYTES.saturating_sub(last.len()));
            let joins = text.floor_char_boundary(room);
            let piece = if joins == 0 { text.floor_char_boundary(BYTES) } else { joins };
            let (piece, rest) = text.split_at(piece);
            match self.last(step, stream) {
                Some(last) if joins > 0 => {
                    last.push_str(piece);
                    self.bytes += piece.len();
                }
                _ => self.add(step, stream, piece),
            }
            text = rest;
        }
    }

    /// Returns the text of the last entry, if it is of this stream of the step.
    fn last(&mut self, step: u32, stream: BuildStream) -> Option<&mut String> {
        let last = self.entries.last_mut()?;
        (last.step == step as i32 && last.stream == stream).then_some(&mut last.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: BuildStream = BuildStream::Stdout;
    const ERR: BuildStream = BuildStream::Stderr;

    fn texts(pending: &Pending) -> Vec<&str> {
        pending.entries.iter().map(|entry| entry.text.as_str()).collect()
    }

    #[test]
    fn output_of_one_stream_is_joined() {
        let mut pending = Pending::default();
        pending.output(1, OUT, "a\n");
        pending.output(1, OUT, "b\n");
        pending.output(1, ERR, "c\n");
        pending.output(1, OUT, "d\n");
        pending.output(2, OUT, "e\n");
        pending.add(2, BuildStream::System, "done");
        pending.add(2, BuildStream::System, "really");
        pending.output(2, OUT, "");
        assert_eq!(texts(&pending), ["a\nb\n", "c\n", "d\n", "e\n", "done", "really"]);
        assert_eq!(pending.bytes, 20);
    }

    #[test]
    fn entries_are_not_larger_than_a_batch() {
        let mut pending = Pending::default();
        let text = "ä".repeat(BYTES);
        pending.output(1, OUT, "x");
        pending.output(1, OUT, &text);
        let texts = texts(&pending);
        assert!(texts.iter().all(|text| text.len() <= BYTES) && texts.len() == 3, "{}", texts.len());
        assert_eq!(texts.concat(), format!("x{text}"));
    }

    #[test]
    fn no_entry_has_what_the_database_does_not_take() {
        let mut pending = Pending::default();
        pending.output(1, OUT, "a\0b");
        pending.output(1, OUT, "\0");
        assert_eq!(texts(&pending), ["a\u{fffd}b\u{fffd}"]);
    }
}
