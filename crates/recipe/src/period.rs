// SPDX-License-Identifier: Apache-2.0
//! Durations as people write them, such as `1h30m`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// Units with their milliseconds, the largest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
/// Maximum number of milliseconds.
const MAX: u64 = 24 * 3_600_000;

/// A duration of whole milliseconds, up to a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period(Duration);

/// Error of a text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a duration: write whole numbers with the units h, m, s or ms, such as 30s or 1h30m, at most 24h"
)]
pub struct PeriodError;

impl Period {
    /// Returns the duration.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Returns whether it has no length.
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl FromStr for Period {
    type Err = PeriodError;

    fn from_str(text: &str) -> Result<Self, PeriodError> {
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        if text.is_empty() {
            return Err(PeriodError);
        }
        let (mut rest, mut total) = (text, 0_u64);
        while !rest.is_empty() {
            let (part, after) = part(rest).ok_or(PeriodError)?;
            total = total.checked_add(part).filter(|total| *total <= MAX).ok_or(PeriodError)?;
            rest = after;
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

/// Reads a number with its unit; returns the milliseconds and what follows.
fn part(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    // The smallest unit has the longest name.
    let found = UNITS.iter().rev().find_map(|(name, size)| Some((*size, rest.strip_prefix(name)?)));
    let (size, rest) = found?;
    Some((number.parse::<u64>().ok()?.checked_mul(size)?, rest))
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0s");
        }
        let mut left = self.0.as_millis() as u64;
        for (name, size) in UNITS {
            let count = left / size;
            left %= size;
            if count > 0 {
                write!(f, "{count}{name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_sums_of_units() {
        for (text, milliseconds, printed) in [
            ("30s", 30_000, "30s"),
            ("5m", 300_000, "5m"),
            ("1h30m", 5_400_000, "1h30m"),
            ("90s", 90_000, "1m30s"),
            ("500ms", 500, "500ms"),
            ("1m1ms", 60_001, "1m1ms"),
            ("24h", MAX, "24h"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.get(), Duration::from_millis(milliseconds), "{text}");
            assert_eq!(period.to_string(), printed);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "s", "5", "1.5h", "-1s", "+1s", "1d", "30 s", "30S", "24h1ms", "99999999999999999999h", "٣s"]
        {
            assert_eq!(text.parse::<Period>(), Err(PeriodError), "{text}");
        }
    }
}
