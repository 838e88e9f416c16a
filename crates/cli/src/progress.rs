// SPDX-License-Identifier: Apache-2.0
//! Progress line of what takes long: transfers, and other requests.

use std::{
    io::IsTerminal as _,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time after which the line is shown.
const LONG: Duration = Duration::from_secs(1);

/// Interval at which the line of a request changes.
const TICK: Duration = Duration::from_millis(200);

/// Waits for a request. If it takes long, a line on the terminal says what is being done, and for how long.
pub(crate) async fn during<T>(what: &str, request: impl Future<Output = T>) -> T {
    let mut request = pin!(request);
    if let Ok(answer) = tokio::time::timeout(LONG, &mut request).await {
        return answer;
    }
    let bar = spinner(what).with_elapsed(LONG);
    let answer = request.await;
    bar.finish_and_clear();
    answer
}

/// Shows a line on the terminal that says what is being done, and for how long.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{msg} ... {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}

/// Counts the bytes of a transfer, also from other threads, and shows them on a terminal if it takes long.
#[derive(Clone)]
pub(crate) struct Counter(Arc<Mutex<Progress>>);

impl Counter {
    /// Starts a transfer of `total` bytes, if known.
    pub(crate) fn new(total: Option<u64>) -> Self {
        Self(Arc::new(Mutex::new(Progress { begin: Instant::now(), total, bytes: 0, bar: None })))
    }

    /// Adds bytes.
    pub(crate) fn add(&self, bytes: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(bytes);
    }

    /// Returns the bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

/// A transfer.
struct Progress {
    begin: Instant,
    total: Option<u64>,
    bytes: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn add(&mut self, bytes: usize) {
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
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
