// SPDX-License-Identifier: Apache-2.0
//! `wrenn usage`: what the team's sandboxes have used, day by day, and what they use now.

use anyhow::Result;
use chrono::NaiveDate;
use wrenn_api::{Stats, StatsRange, Usage, UsageAmounts};
use wrenn_client::{Client, UsageDays};

use crate::output::{self, Format, line};

/// Text after the help.
pub(crate) const EXAMPLES: &str = "\
Days are those of UTC. Virtual CPUs and memory count while sandboxes run, disks until they are deleted.

Examples:
  wrenn usage --from 2026-01-01 --to 2026-01-31 --csv > january.csv
  wrenn usage --now 24h";

const SECONDS_PER_HOUR: f64 = 3600.0;
const MIB_PER_GIB: f64 = 1024.0;

/// Arguments of `wrenn usage`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// First day, such as 2026-01-01 [default: the server's, a month ago]
    #[arg(long, value_name = "DAY")]
    from: Option<NaiveDate>,
    /// Last day [default: today]
    #[arg(long, value_name = "DAY")]
    to: Option<NaiveDate>,
    /// Write comma-separated values, in whole units times seconds
    #[arg(long)]
    csv: bool,
    /// Show what runs now, the peaks of the last 30 days, and how it was over this time: 5m, 1h, 6h, 24h or 30d
    #[arg(
        long,
        value_name = "RANGE",
        num_args = 0..=1,
        default_missing_value = "1h",
        value_parser = range,
        conflicts_with_all = ["from", "to", "csv"]
    )]
    now: Option<StatsRange>,
}

/// Runs `wrenn usage`.
pub(crate) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    if let Some(range) = args.now {
        let stats = client.stats(range).await?;
        format.print(&stats, || of_stats(&stats))?;
        return Ok(0);
    }
    let days =
        UsageDays { from: args.from.map(|day| day.to_string()), to: args.to.map(|day| day.to_string()) };
    if args.csv {
        line(client.usage_csv(&days).await?.trim_end())?;
        return Ok(0);
    }
    let usage = client.usage(&days).await?;
    format.print(&usage, || table(&usage))?;
    Ok(0)
}

fn range(text: &str) -> Result<StatsRange, String> {
    text.parse().map_err(|()| format!("write one of {}", StatsRange::ALL.map(StatsRange::as_str).join(", ")))
}

fn table(usage: &Usage) -> String {
    let used = |amounts: &UsageAmounts| *amounts != UsageAmounts::default();
    let days =
        usage.days.iter().filter(|day| used(&day.amounts)).map(|day| row(day.date.to_string(), &day.amounts));
    let total = row("total".to_owned(), &usage.total);
    output::table(["DAY", "VCPU HOURS", "MEMORY GiB HOURS", "DISK GiB HOURS"], days.chain([total]))
}

fn row(day: String, amounts: &UsageAmounts) -> [String; 4] {
    // Numbers that people read; the exact ones are in JSON and CSV.
    #[allow(clippy::cast_precision_loss)]
    let hours = |seconds: u64, unit: f64| format!("{:.2}", seconds as f64 / unit / SECONDS_PER_HOUR);
    [
        day,
        hours(amounts.vcpu_seconds, 1.0),
        hours(amounts.memory_mb_seconds, MIB_PER_GIB),
        hours(amounts.disk_mb_seconds, MIB_PER_GIB),
    ]
}

fn of_stats(stats: &Stats) -> String {
    let level = |name: String, level: &wrenn_api::StatsLevel| {
        [name, level.running.to_string(), level.vcpus.to_string(), format!("{} MiB", level.memory_mb)]
    };
    let ends = [level("now".to_owned(), &stats.current), level("peak of 30 days".to_owned(), &stats.peaks)];
    let series = stats.series.iter().map(|point| level(output::time(point.at), &point.level));
    let table = output::table(["", "RUNNING", "VCPUS", "MEMORY"], ends.into_iter().chain(series));
    match stats.out_of_memory {
        0 => table,
        number => format!("{table}\nKilled for want of memory until now: {number}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn days_without_use_are_left_out_and_units_are_hours() {
        let day = |date: &str, seconds: u64| {
            let memory = seconds * 512;
            json!({"date": date, "vcpu_seconds": seconds, "memory_mb_seconds": memory, "disk_mb_seconds": 0})
        };
        let value = json!({"from": "2026-01-30", "to": "2026-01-31", "days": [day("2026-01-30", 0), day("2026-01-31", 7200)],
            "total": {"vcpu_seconds": 7200, "memory_mb_seconds": 3_686_400, "disk_mb_seconds": 0}});
        let text = table(&serde_json::from_value(value).expect("usage"));
        let lines: Vec<Vec<_>> = text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [["2026-01-31", "2.00", "1.00", "0.00"], ["total", "2.00", "1.00", "0.00"]]);
    }

    #[test]
    fn ranges_are_those_of_the_api() {
        assert_eq!(range("24h"), Ok(StatsRange::OneDay));
        assert!(range("2h").is_err_and(|told| told.contains("5m, 1h")));
    }
}
