// SPDX-License-Identifier: Apache-2.0
//! Report of `make test`: a table of its rows, the slowest cases, and the rows that exceeded their budgets.

use std::{fs, io::Read as _, time::Instant};

use super::{plan::Row, run::Ended};

/// Number of slowest cases that are listed.
const SLOWEST: usize = 10;
/// Part of a row's budget by which it may be exceeded.
const EXCESS: f64 = 1.5;
/// Time in seconds that [`speed`] takes on the machine of `docs/testing.md` while it is busy.
const REFERENCE: f64 = 0.25;
/// Maximum size of a log that is read, in bytes.
const LOG_MAX: u64 = 64 << 20;

/// Time of this machine for a fixed computation, as a multiple of that of the machine on which the budgets were
/// measured; at least 1.
pub(super) fn speed() -> f64 {
    let begin = Instant::now();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..20_000_000_u32 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    let took = std::hint::black_box((state, begin.elapsed())).1;
    (took.as_secs_f64() / REFERENCE).max(1.0)
}

/// Prints the table and the slowest cases; returns the rows that took too much processor time.
pub(super) fn print(rows: &[(&Row, Ended)], speed: f64) -> Vec<String> {
    println!("\nbudgets are multiplied by {speed:.1}, the time of this machine for a computation");
    println!("{:<24} {:>8} {:>12} {:>8}", "row", "seconds", "CPU seconds", "budget");
    for (row, ended) in rows {
        let failed = if ended.passed { "" } else { "  FAILED" };
        let (took, name) = (ended.took.as_secs_f64(), row.name);
        println!("{name:<24} {took:>8.1} {:>12.1} {:>8}{failed}", ended.processor, row.budget);
    }
    let mut cases: Vec<(f64, String)> = Vec::new();
    for (row, ended) in rows {
        let mut text = Vec::new();
        // The report is no reason to fail.
        let read = fs::File::open(&ended.log).and_then(|file| file.take(LOG_MAX).read_to_end(&mut text));
        if read.is_ok() {
            let text = String::from_utf8_lossy(&text).into_owned();
            cases.extend(
                text.lines().filter_map(case).map(|(time, case)| (time, format!("{}: {case}", row.name))),
            );
        }
    }
    cases.sort_by(|one, other| other.0.total_cmp(&one.0));
    println!("\nslowest cases:");
    for (time, case) in cases.iter().take(SLOWEST) {
        println!("{time:>8.1} s  {case}");
    }
    let over = |(row, ended): &&(&Row, Ended)| ended.processor > f64::from(row.budget) * EXCESS * speed;
    let told = |(row, ended): &(&Row, Ended)| {
        format!(
            "{} took {:.0} s of processor time; its budget is {} s",
            row.name, ended.processor, row.budget
        )
    };
    rows.iter().filter(over).map(told).collect()
}

/// Returns the time and name of the case of a line: `test NAME ... ok <1.2s>`, or `took 1.2 s: NAME`.
fn case(line: &str) -> Option<(f64, String)> {
    // The line may begin with what the harness printed before the case.
    if let Some((_, rest)) = line.split_once("took ")
        && let Some((time, name)) = rest.split_once(" s: ")
    {
        return Some((time.parse().ok()?, name.to_owned()));
    }
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let time = result.split_once('<')?.1.strip_suffix("s>")?;
    Some((time.parse().ok()?, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_cases_are_read() {
        assert_eq!(case("test a::b ... ok <1.250s>"), Some((1.25, "a::b".to_owned())));
        assert_eq!(case("took 12.5 s: network::x"), Some((12.5, "network::x".to_owned())));
        assert_eq!(case("test x ... took 2.0 s: x"), Some((2.0, "x".to_owned())));
        assert_eq!(case("test a::b ... ok"), None);
        assert_eq!(case("running 3 tests"), None);
    }
}
