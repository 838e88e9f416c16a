// SPDX-License-Identifier: Apache-2.0
//! What a team's sandboxes have used, day by day, and statistics of those that run.

use std::str::FromStr;

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the sandboxes of a team have used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "from": "2026-01-30", "to": "2026-01-31",
    "total": {"vcpu_seconds": 7320, "memory_mb_seconds": 3_747_840, "disk_mb_seconds": 442_368_000},
    "days": [
        {"date": "2026-01-30", "vcpu_seconds": 0, "memory_mb_seconds": 0, "disk_mb_seconds": 0},
        {"date": "2026-01-31", "vcpu_seconds": 7320, "memory_mb_seconds": 3_747_840, "disk_mb_seconds": 442_368_000}
    ]
}))]
pub struct Usage {
    /// First day, in UTC.
    pub from: NaiveDate,
    /// Last day, in UTC.
    pub to: NaiveDate,
    /// What was used on all of these days.
    pub total: UsageAmounts,
    /// What was used on each of these days, the oldest first. Today ends now.
    pub days: Vec<UsageDay>,
}

/// What was used on a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"date": "2026-01-31", "vcpu_seconds": 7320, "memory_mb_seconds": 3_747_840, "disk_mb_seconds": 442_368_000}))]
pub struct UsageDay {
    /// The day, in UTC.
    pub date: NaiveDate,
    /// What was used.
    #[serde(flatten)]
    pub amounts: UsageAmounts,
}

/// What was used of virtual CPUs, memory and disk: the size of each sandbox times the time for which it had that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"vcpu_seconds": 7320, "memory_mb_seconds": 3_747_840, "disk_mb_seconds": 442_368_000}))]
pub struct UsageAmounts {
    /// Virtual CPUs times seconds, while sandboxes ran.
    pub vcpu_seconds: u64,
    /// MiB of memory times seconds, while sandboxes ran.
    pub memory_mb_seconds: u64,
    /// MiB of disk times seconds, from the creation of sandboxes to their deletion, paused ones included.
    pub disk_mb_seconds: u64,
}

/// Statistics of a team's sandboxes that run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "range": "1h", "current": {"running": 2, "vcpus": 4, "memory_mb": 2048}, "peaks": {"running": 7, "vcpus": 14, "memory_mb": 7168},
    "out_of_memory": 3, "series": [{"at": "2026-01-31T09:30:00Z", "running": 2, "vcpus": 4, "memory_mb": 2048}]
}))]
pub struct Stats {
    /// How far the series goes back.
    pub range: StatsRange,
    /// What there is now.
    pub current: StatsLevel,
    /// The most that there was at any time in the last 30 days, of each by itself.
    pub peaks: StatsLevel,
    /// Number of processes and whole sandboxes that were killed for want of memory since there is the team.
    #[serde(default)]
    pub out_of_memory: u64,
    /// The most that there was in each part of the range, the oldest first.
    pub series: Vec<StatsPoint>,
}

/// Number of sandboxes that run, and what they have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"running": 2, "vcpus": 4, "memory_mb": 2048}))]
pub struct StatsLevel {
    /// Number of sandboxes.
    pub running: u64,
    /// Their virtual CPUs.
    pub vcpus: u64,
    /// Their memory in MiB.
    pub memory_mb: u64,
}

/// The most that there was in a part of the range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"at": "2026-01-31T09:30:00Z", "running": 2, "vcpus": 4, "memory_mb": 2048}))]
pub struct StatsPoint {
    /// Beginning of the part.
    pub at: DateTime<Utc>,
    /// The most that there was, of each by itself.
    #[serde(flatten)]
    pub level: StatsLevel,
}

/// How far a series of statistics goes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum StatsRange {
    /// 5 minutes, in parts of 3 seconds.
    #[serde(rename = "5m")]
    FiveMinutes,
    /// An hour, in parts of 30 seconds.
    #[default]
    #[serde(rename = "1h")]
    OneHour,
    /// 6 hours, in parts of 3 minutes.
    #[serde(rename = "6h")]
    SixHours,
    /// A day, in parts of 12 minutes.
    #[serde(rename = "24h")]
    OneDay,
    /// 30 days, in parts of 6 hours.
    #[serde(rename = "30d")]
    ThirtyDays,
}

impl StatsRange {
    /// Every range.
    pub const ALL: [Self; 5] =
        [Self::FiveMinutes, Self::OneHour, Self::SixHours, Self::OneDay, Self::ThirtyDays];

    /// The range as it stands in requests and responses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FiveMinutes => "5m",
            Self::OneHour => "1h",
            Self::SixHours => "6h",
            Self::OneDay => "24h",
            Self::ThirtyDays => "30d",
        }
    }

    /// Number of seconds of a part.
    pub const fn step(self) -> u32 {
        match self {
            Self::FiveMinutes => 3,
            Self::OneHour => 30,
            Self::SixHours => 180,
            Self::OneDay => 720,
            Self::ThirtyDays => 21_600,
        }
    }

    /// Number of parts.
    pub const fn parts(self) -> u32 {
        match self {
            Self::FiveMinutes => 100,
            _ => 120,
        }
    }
}

impl FromStr for StatsRange {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|range| range.as_str() == text).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_json_and_parts_make_the_range() {
        let seconds = StatsRange::ALL.map(|range| range.step() * range.parts());
        assert_eq!(seconds, [300, 3600, 21_600, 86_400, 2_592_000]);
        for range in StatsRange::ALL {
            assert_eq!(serde_json::json!(range), range.as_str());
            assert_eq!(range.as_str().parse(), Ok(range));
        }
    }
}
