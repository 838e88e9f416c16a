// SPDX-License-Identifier: Apache-2.0
//! Usage and statistics of a team: what its sandboxes have used day by day, and how many run.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use wrenn_api::{Stats, StatsLevel, StatsPoint, StatsRange, UsageAmounts, UsageDay};

use crate::{
    audit::csv_line,
    caller::{Caller, Permission},
    db::usage::{self, Day, Level, Part},
    error::Fault,
    state::{App, State},
};

/// Days of the peaks.
const PEAKS: i64 = 30;
/// Days for which spans are kept after their end, more than those of the peaks.
const SPANS: i32 = 35;
/// Interval between looks whether a day is over.
const ROUND: Duration = Duration::from_secs(60);
/// Maximum number of spans deleted by one statement.
const BATCH: i64 = 10_000;

/// Usage and statistics.
#[derive(Clone)]
pub struct Usage {
    state: Arc<State>,
}

impl Usage {
    /// Maximum number of days of a request.
    pub const DAYS_MAX: u32 = 366;
    /// Number of days if nothing else is wanted, today included.
    pub const DAYS: u64 = 30;

    pub(crate) const fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// Returns what the caller's team has used from one day to another, both included. Default: the last 30 days.
    pub async fn read(
        &self,
        caller: &Caller,
        from: Option<NaiveDate>,
        to: Option<NaiveDate>,
    ) -> Result<wrenn_api::Usage, Fault> {
        caller.require(Permission::UsageRead)?;
        let (from, to) = period(Utc::now().date_naive(), from, to)?;
        let days = usage::days(&self.state.db, caller.team().uuid(), from, to).await?;
        Ok(summed(from, to, &days))
    }

    /// Returns statistics of the caller's team.
    pub async fn stats(&self, caller: &Caller, range: StatsRange) -> Result<Stats, Fault> {
        caller.require(Permission::UsageRead)?;
        let (db, team, now) = (&self.state.db, caller.team().uuid(), Utc::now());
        let since = beginning(now, range);
        let (step, parts) = (range.step() as i32, range.parts() as i32);
        let current = usage::current(db, team).await?;
        let peaks = usage::peaks(db, team, now - TimeDelta::days(PEAKS)).await?;
        let series = usage::series(db, team, since, step, parts).await?;
        Ok(Stats {
            range,
            current: level(current),
            peaks: level(peaks),
            out_of_memory: u64::try_from(usage::out_of_memory(db, team).await?).unwrap_or_default(),
            series: points(since, range, &series),
        })
    }

    /// Renders usage as comma-separated values.
    pub fn csv(usage: &wrenn_api::Usage) -> String {
        let mut text = "date,vcpu_seconds,memory_mb_seconds,disk_mb_seconds\r\n".to_owned();
        for UsageDay { date, amounts } in &usage.days {
            text.push_str(&csv_line(&[
                date.to_string(),
                amounts.vcpu_seconds.to_string(),
                amounts.memory_mb_seconds.to_string(),
                amounts.disk_mb_seconds.to_string(),
            ]));
        }
        text
    }
}

/// Sums up days that are over, and removes old records, until the server stops.
pub(crate) async fn run(app: App) {
    loop {
        if let Err(error) = sum_up(&app).await {
            tracing::debug!(%error, "usage cannot be summed up; it is tried again");
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
    }
}

async fn sum_up(app: &App) -> Result<(), Fault> {
    while let Some(day) = usage::sum_up(&app.db).await? {
        tracing::info!(%day, "usage of a day is summed up");
    }
    while usage::forget_old(&app.db, SPANS, BATCH).await? == BATCH as u64 {}
    Ok(())
}

/// Returns the first and the last day that are wanted.
fn period(
    today: NaiveDate,
    from: Option<NaiveDate>,
    to: Option<NaiveDate>,
) -> Result<(NaiveDate, NaiveDate), Fault> {
    let to = to.unwrap_or(today);
    let from = from.or_else(|| to.checked_sub_days(Days::new(Usage::DAYS - 1))).unwrap_or(to);
    if from > to {
        return Err(Fault::invalid(format!("from is {from}, which is later than to, {to}")));
    }
    let days = (to - from).num_days() + 1;
    if days > i64::from(Usage::DAYS_MAX) {
        let message = format!("from {from} to {to} are {days} days: ask for at most {}", Usage::DAYS_MAX);
        return Err(Fault::invalid(message));
    }
    Ok((from, to))
}

fn summed(from: NaiveDate, to: NaiveDate, days: &[Day]) -> wrenn_api::Usage {
    // The sum is of what was used, not of what was rounded.
    let total = |of: fn(&Day) -> i64| seconds(days.iter().map(of).fold(0, i64::saturating_add));
    let total = UsageAmounts {
        vcpu_seconds: total(|day| day.vcpu_ms),
        memory_mb_seconds: total(|day| day.memory_mb_ms),
        disk_mb_seconds: total(|day| day.disk_mb_ms),
    };
    let days = days.iter().map(|day| UsageDay {
        date: day.day,
        amounts: UsageAmounts {
            vcpu_seconds: seconds(day.vcpu_ms),
            memory_mb_seconds: seconds(day.memory_mb_ms),
            disk_mb_seconds: seconds(day.disk_mb_ms),
        },
    });
    wrenn_api::Usage { from, to, total, days: days.collect() }
}

fn seconds(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or_default() / 1000
}

/// Returns the beginning of a range whose last part has the present in it.
fn beginning(now: DateTime<Utc>, range: StatsRange) -> DateTime<Utc> {
    let step = i64::from(range.step());
    let last = now.timestamp().div_euclid(step) * step;
    DateTime::from_timestamp(last - step * i64::from(range.parts() - 1), 0).unwrap_or(now)
}

fn level(level: Level) -> StatsLevel {
    let number = |number: i64| u64::try_from(number).unwrap_or_default();
    let Level { running, vcpus, memory_mb } = level;
    StatsLevel { running: number(running), vcpus: number(vcpus), memory_mb: number(memory_mb) }
}

/// Returns a point for each part, also where there was nothing.
fn points(since: DateTime<Utc>, range: StatsRange, parts: &[Part]) -> Vec<StatsPoint> {
    let of = |part: u32| {
        let found = parts.iter().find(|one| i64::from(one.part) == i64::from(part));
        let there =
            found.map(|one| Level { running: one.running, vcpus: one.vcpus, memory_mb: one.memory_mb });
        let at = since + TimeDelta::seconds(i64::from(part) * i64::from(range.step()));
        StatsPoint { at, level: level(there.unwrap_or_default()) }
    };
    (0..range.parts()).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> NaiveDate {
        text.parse().expect("a date")
    }

    #[test]
    fn periods_are_of_thirty_days_or_as_wanted() {
        let today = date("2026-03-01");
        assert_eq!(period(today, None, None).ok(), Some((date("2026-01-31"), today)));
        let day = Some(date("2026-02-28"));
        assert_eq!(period(today, day, day).ok(), day.zip(day));
        let told = |from, to| period(today, Some(date(from)), Some(date(to))).map_err(|fault| fault.message);
        assert!(told("2026-03-02", "2026-03-01").is_err_and(|told| told.contains("later than to")));
        assert!(told("2025-03-01", "2026-03-01").is_ok());
        assert!(told("2025-02-28", "2026-03-01").is_err_and(|told| told.contains("367 days")));
    }

    #[test]
    fn the_total_is_of_what_was_used() {
        let day = |text| Day { day: date(text), vcpu_ms: 1999, memory_mb_ms: 500, disk_mb_ms: 0 };
        let usage = summed(date("2026-01-30"), date("2026-01-31"), &[day("2026-01-30"), day("2026-01-31")]);
        assert_eq!((usage.total.vcpu_seconds, usage.total.memory_mb_seconds), (3, 1));
        assert_eq!((usage.days[1].amounts.vcpu_seconds, usage.days[1].amounts.memory_mb_seconds), (1, 0));
        let csv = Usage::csv(&usage);
        assert_eq!(csv.lines().nth(2), Some("2026-01-31,1,0,0"), "{csv}");
    }

    #[test]
    fn each_part_has_a_point_and_the_last_one_has_the_present_in_it() {
        let now = "2026-01-31T09:30:59Z".parse().expect("a time");
        for range in StatsRange::ALL {
            let since = beginning(now, range);
            let found = [Part { part: 1, running: 2, vcpus: 4, memory_mb: 1024 }];
            let points = points(since, range, &found);
            assert_eq!(points.len(), range.parts() as usize);
            let last = points.last().expect("points").at;
            assert!(last <= now && now - last < TimeDelta::seconds(range.step().into()), "{range:?}");
            assert_eq!((points[0].level, points[1].level.vcpus), (StatsLevel::default(), 4));
        }
    }
}
