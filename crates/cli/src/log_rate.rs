// SPDX-License-Identifier: Apache-2.0
//! Bounds how many lines a second each place of the program writes to the log, so that a fault that repeats without a pause
//! fills no disk.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{Event, Subscriber, callsite::Identifier};
use tracing_subscriber::layer::{Context, Layer};

/// Lines of one place in a period. The request log of a busy server stays below.
const LINES: u64 = 10_000;
/// How long a period is.
const PERIOD: Duration = Duration::from_secs(10);

/// The bound on the rate of every place.
#[derive(Debug, Default)]
pub(crate) struct LogRate {
    places: Mutex<HashMap<Identifier, Place>>,
}

#[derive(Debug)]
struct Place {
    since: Instant,
    lines: u64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is written.
    Written,
    /// It is written, and so many before it were not.
    WrittenAfter(u64),
    /// It is the first of the period that is left out.
    FirstLeftOut,
    /// It is left out.
    LeftOut,
}

impl Place {
    fn judge(&mut self, now: Instant) -> Verdict {
        let left_out = self.lines.saturating_sub(LINES);
        if now.duration_since(self.since) >= PERIOD {
            *self = Self { since: now, lines: 1 };
            return if left_out > 0 { Verdict::WrittenAfter(left_out) } else { Verdict::Written };
        }
        self.lines += 1;
        match self.lines {
            ..=LINES => Verdict::Written,
            lines if lines == LINES + 1 => Verdict::FirstLeftOut,
            _ => Verdict::LeftOut,
        }
    }
}

impl<S: Subscriber> Layer<S> for LogRate {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let meta = event.metadata();
        let verdict = {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            places.entry(meta.callsite()).or_insert(Place { since: now, lines: 0 }).judge(now)
        };
        let (file, line) = (meta.file().unwrap_or_default(), meta.line().unwrap_or_default());
        match verdict {
            Verdict::Written => true,
            Verdict::WrittenAfter(count) => {
                tracing::warn!(file, line, count, "lines of one place were left out of the log");
                true
            }
            Verdict::FirstLeftOut => {
                tracing::warn!(
                    file,
                    line,
                    seconds = PERIOD.as_secs(),
                    "one place writes too many lines: more of them are left out of the log for a while"
                );
                false
            }
            Verdict::LeftOut => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, MutexGuard},
    };

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn a_place_is_silent_for_a_while_and_says_how_much_it_left_out() {
        let begin = Instant::now();
        let mut place = Place { since: begin, lines: 0 };
        assert!((0..LINES).all(|_| place.judge(begin) == Verdict::Written));
        assert_eq!(place.judge(begin), Verdict::FirstLeftOut);
        assert_eq!(place.judge(begin), Verdict::LeftOut);
        assert_eq!(place.judge(begin + PERIOD), Verdict::WrittenAfter(2));
        assert_eq!(place.judge(begin + PERIOD), Verdict::Written);
        assert_eq!(place.judge(begin + PERIOD * 3), Verdict::Written);
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_repeats_without_a_pause_does_not_fill_the_log() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber.with(LogRate::default()), || {
            for _ in 0..3 * LINES {
                tracing::warn!("again");
            }
            tracing::warn!("another place");
        });
        let text = String::from_utf8_lossy(&lines.lock()).into_owned();
        let count = |words: &str| text.lines().filter(|line| line.contains(words)).count() as u64;
        assert!(count("again") <= 2 * LINES, "{} lines", count("again"));
        assert_eq!(count("another place"), 1);
    }
}
