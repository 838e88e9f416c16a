// SPDX-License-Identifier: Apache-2.0
//! Metrics of a sandbox.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::SandboxId;

/// How far the points of metrics go back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum MetricsRange {
    /// 5 minutes.
    #[serde(rename = "5m")]
    FiveMinutes,
    /// 10 minutes.
    #[default]
    #[serde(rename = "10m")]
    TenMinutes,
    /// An hour.
    #[serde(rename = "1h")]
    OneHour,
    /// 2 hours.
    #[serde(rename = "2h")]
    TwoHours,
    /// 6 hours.
    #[serde(rename = "6h")]
    SixHours,
    /// 12 hours.
    #[serde(rename = "12h")]
    TwelveHours,
    /// A day.
    #[serde(rename = "24h")]
    OneDay,
}

impl MetricsRange {
    /// Every range.
    pub const ALL: [Self; 7] = [
        Self::FiveMinutes,
        Self::TenMinutes,
        Self::OneHour,
        Self::TwoHours,
        Self::SixHours,
        Self::TwelveHours,
        Self::OneDay,
    ];

    /// The range as it stands in requests and responses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FiveMinutes => "5m",
            Self::TenMinutes => "10m",
            Self::OneHour => "1h",
            Self::TwoHours => "2h",
            Self::SixHours => "6h",
            Self::TwelveHours => "12h",
            Self::OneDay => "24h",
        }
    }

    /// The range in seconds.
    pub const fn seconds(self) -> u32 {
        match self {
            Self::FiveMinutes => 300,
            Self::TenMinutes => 600,
            Self::OneHour => 3600,
            Self::TwoHours => 7200,
            Self::SixHours => 21_600,
            Self::TwelveHours => 43_200,
            Self::OneDay => 86_400,
        }
    }
}

impl std::str::FromStr for MetricsRange {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|range| range.as_str() == text).ok_or(())
    }
}

/// What a sandbox has used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"sandbox_id": "sb03halx8fdhw2fu3txwbd0kdw0", "range": "10m", "points": [{
    "timestamp_unix": 1_769_851_800, "cpu_pct": 12.5, "mem_bytes": 161_480_704, "disk_bytes": 314_572_800, "net_rx_bytes": 20_480,
    "net_tx_bytes": 4096, "guest_mem_used_bytes": 104_857_600, "guest_mem_total_bytes": 520_093_696,
    "guest_disk_used_bytes": 1_181_116_006, "guest_disk_total_bytes": 5_217_320_960_u64
}]}))]
pub struct SandboxMetrics {
    /// The sandbox.
    #[schema(value_type = String, pattern = "^sb[0-9a-e][0-9a-z]{24}$")]
    pub sandbox_id: SandboxId,
    /// The range that was asked for.
    pub range: MetricsRange,
    /// At most 1200, the oldest first. While the sandbox is paused there are none, so that two may be far apart.
    pub points: Vec<MetricsPoint>,
}

/// What a sandbox used at a time: with a range of 5m or 10m as it was measured, else on average of 30 seconds (1h, 2h) or 5 minutes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "timestamp_unix": 1_769_851_800, "cpu_pct": 12.5, "mem_bytes": 161_480_704, "disk_bytes": 314_572_800, "net_rx_bytes": 20_480,
    "net_tx_bytes": 4096, "guest_mem_used_bytes": 104_857_600, "guest_mem_total_bytes": 520_093_696,
    "guest_disk_used_bytes": 1_181_116_006, "guest_disk_total_bytes": 5_217_320_960_u64
}))]
pub struct MetricsPoint {
    /// Time of its last measurement, in seconds since 1970. There are two measurements in a second.
    pub timestamp_unix: i64,
    /// Use of the virtual CPUs, in percent of all of them: 0 to 100.
    pub cpu_pct: f64,
    /// Memory of the host that it takes, in bytes.
    pub mem_bytes: u64,
    /// Bytes of the host that its disk takes.
    pub disk_bytes: u64,
    /// Bytes that it received since it was started or last resumed, those of commands, files and ports included. Not an average.
    pub net_rx_bytes: u64,
    /// Bytes that it sent since then.
    pub net_tx_bytes: u64,
    /// Memory that its programs and its kernel use, in bytes, as its guest says every five seconds; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub guest_mem_used_bytes: Option<u64>,
    /// All memory of the guest in bytes, as the guest says; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub guest_mem_total_bytes: Option<u64>,
    /// Bytes in use of its root file system, as the guest says; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub guest_disk_used_bytes: Option<u64>,
    /// Size of its root file system in bytes, as the guest says; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub guest_disk_total_bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_it_is_written() {
        for range in MetricsRange::ALL {
            assert_eq!(range.as_str().parse(), Ok(range));
            assert_eq!(serde_json::to_value(range).ok(), Some(range.as_str().into()));
            let (number, unit) = range.as_str().split_at(range.as_str().len() - 1);
            let unit = if unit == "m" { 60 } else { 3600 };
            assert_eq!(number.parse().ok(), Some(range.seconds() / unit));
        }
        assert_eq!(MetricsRange::default().as_str(), "10m");
        for wrong in ["", "10", "10M", "600", "7d"] {
            assert_eq!(wrong.parse::<MetricsRange>(), Err(()), "{wrong}");
        }
    }
}
