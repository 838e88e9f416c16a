//! A line on the terminal that says how far a long transfer is.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is over within this needs no line.
const LONG: Duration = Duration::from_secs(1);

/// Counts the bytes of a transfer, and shows them on a terminal once it takes long.
pub(crate) struct Progress {
    begin: Instant,
    total: Option<u64>,
    bytes: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// A transfer of so many bytes, where that is known.
    pub(crate) fn new(total: Option<u64>) -> Self {
        Self { begin: Instant::now(), total, bytes: 0, bar: None }
    }

    /// Counts bytes.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.bar.is_none() && self.begin.elapsed() > LONG && std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(self.total, ProgressDrawTarget::stderr());
            let template = match self.total {
                Some(_) => "{bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
                None => "{bytes}, {bytes_per_sec}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.bytes);
        }
    }

    /// The bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
