// SPDX-License-Identifier: Apache-2.0
//! What sandboxes used that do not run: all tiers of paused ones, and the tier of a day of deleted ones.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

/// How far the points of a tier go back, and what each of them is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Measurements of 10 minutes.
    TenMinutes,
    /// Averages of 30 seconds, of 2 hours.
    TwoHours,
    /// Averages of 5 minutes, of a day.
    Day,
}

impl Tier {
    /// Every tier, the shortest first.
    pub(crate) const ALL: [Self; 3] = [Self::TenMinutes, Self::TwoHours, Self::Day];

    /// The finest tier that goes back so many seconds.
    pub(crate) fn of(seconds: u32) -> Self {
        Self::ALL.into_iter().find(|tier| seconds <= tier.seconds()).unwrap_or(Self::Day)
    }

    /// How many seconds it goes back.
    pub(crate) const fn seconds(self) -> u32 {
        match self {
            Self::TenMinutes => 600,
            Self::TwoHours => 7200,
            Self::Day => 86_400,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::TenMinutes => "10m",
            Self::TwoHours => "2h",
            Self::Day => "24h",
        }
    }
}

/// A point of metrics, as a host tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) at: DateTime<Utc>,
    pub(crate) cpu_hundredths: i32,
    pub(crate) mem_bytes: i64,
    pub(crate) disk_bytes: i64,
    pub(crate) net_rx_bytes: i64,
    pub(crate) net_tx_bytes: i64,
    pub(crate) guest_mem_used_bytes: i64,
    pub(crate) guest_mem_total_bytes: i64,
    pub(crate) guest_disk_used_bytes: i64,
    pub(crate) guest_disk_total_bytes: i64,
}

/// Keeps these points of a sandbox, and no other ones, in one statement; of a deleted one, those of a day. Returns the number of those
/// that were not kept before.
pub(crate) async fn keep(db: &PgPool, sandbox: Uuid, tiers: &[(Tier, Vec<Point>)]) -> sqlx::Result<u64> {
    let begun = Instant::now();
    let all: Vec<(Tier, &Point)> =
        tiers.iter().flat_map(|(tier, points)| points.iter().map(move |point| (*tier, point))).collect();
    let names: Vec<String> = all.iter().map(|(tier, _)| tier.as_str().to_owned()).collect();
    let times: Vec<DateTime<Utc>> = all.iter().map(|(_, point)| point.at).collect();
    let cpu: Vec<i32> = all.iter().map(|(_, point)| point.cpu_hundredths).collect();
    let columns: [fn(&Point) -> i64; 8] = [
        |point| point.mem_bytes,
        |point| point.disk_bytes,
        |point| point.net_rx_bytes,
        |point| point.net_tx_bytes,
        |point| point.guest_mem_used_bytes,
        |point| point.guest_mem_total_bytes,
        |point| point.guest_disk_used_bytes,
        |point| point.guest_disk_total_bytes,
    ];
    let [mem, disk, rx, tx, guest_mem, guest_mem_all, guest_disk, guest_disk_all] =
        columns.map(|of| all.iter().map(|(_, point)| of(point)).collect::<Vec<i64>>());
    // None is deleted and inserted at once: what one part of a statement does, the other one does not see.
    let kept = sqlx::query!(
        "WITH told AS (
            SELECT n.tier, n.at, n.cpu, n.mem, n.disk, n.rx, n.tx, n.guest_mem, n.guest_mem_all, n.guest_disk, n.guest_disk_all
            FROM unnest($2::text[], $3::timestamptz[], $4::integer[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
                $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[])
                AS n (tier, at, cpu, mem, disk, rx, tx, guest_mem, guest_mem_all, guest_disk, guest_disk_all)),
         gone AS (
            DELETE FROM metrics_points p WHERE p.sandbox_id = $1
                AND NOT EXISTS (SELECT 1 FROM told n WHERE n.tier = p.tier AND n.at = p.at))
         INSERT INTO metrics_points (sandbox_id, team_id, tier, at, cpu_hundredths, mem_bytes, disk_bytes, net_rx_bytes,
            net_tx_bytes, guest_mem_used_bytes, guest_mem_total_bytes, guest_disk_used_bytes, guest_disk_total_bytes)
         SELECT s.id, s.team_id, n.tier, n.at, n.cpu, n.mem, n.disk, n.rx, n.tx, n.guest_mem, n.guest_mem_all, n.guest_disk,
            n.guest_disk_all
         FROM sandboxes s, told n
         WHERE s.id = $1 AND (n.tier = '24h' OR s.status NOT IN ('stopping', 'stopped')) ORDER BY n.tier, n.at
         ON CONFLICT DO NOTHING",
        sandbox,
        &names[..],
        &times[..],
        &cpu[..],
        &mem[..],
        &disk[..],
        &rx[..],
        &tx[..],
        &guest_mem[..],
        &guest_mem_all[..],
        &guest_disk[..],
        &guest_disk_all[..]
    )
    .execute(db)
    .await?;
    metrics::histogram!("wrenn_metrics_keep_seconds").record(begun.elapsed().as_secs_f64());
    Ok(kept.rows_affected())
}

/// Removes what is kept of a sandbox but the tier of a day.
pub(crate) async fn keep_day(db: &PgPool, sandbox: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM metrics_points WHERE sandbox_id = $1 AND tier <> '24h'", sandbox)
        .execute(db)
        .await
        .map(drop)
}

/// Returns the points that are kept of a sandbox, of so many seconds up to the newest one, the oldest first, of the finest tier that
/// reaches so far.
pub(crate) async fn range(db: &PgPool, sandbox: Uuid, seconds: u32) -> sqlx::Result<Vec<Point>> {
    sqlx::query_as!(
        Point,
        "SELECT at, cpu_hundredths, mem_bytes, disk_bytes, net_rx_bytes, net_tx_bytes, guest_mem_used_bytes,
            guest_mem_total_bytes, guest_disk_used_bytes, guest_disk_total_bytes
         FROM metrics_points
         WHERE sandbox_id = $1 AND tier = $2
             AND at > (SELECT max(at) FROM metrics_points WHERE sandbox_id = $1 AND tier = $2) - make_interval(secs => $3)
         ORDER BY at LIMIT 1200",
        sandbox,
        Tier::of(seconds).as_str(),
        f64::from(seconds)
    )
    .fetch_all(db)
    .await
}

/// Deletes up to `limit` points that are older than `age`, and returns their number.
pub(crate) async fn forget_old(db: &PgPool, age: Duration, limit: i64) -> sqlx::Result<u64> {
    // By their places, which stay while the rows are locked: a key of three columns would make the planner read the table.
    let forgotten = sqlx::query!(
        "DELETE FROM metrics_points WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM metrics_points WHERE at < now() - make_interval(secs => $1)
            ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED))",
        age.as_secs_f64(),
        limit
    )
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected())
}

#[cfg(test)]
mod tests {
    use wrenn_api::MetricsRange;

    use super::*;

    #[test]
    fn a_range_is_of_the_finest_tier_that_reaches_so_far() {
        let tiers = MetricsRange::ALL.map(|range| Tier::of(range.seconds()).as_str());
        assert_eq!(tiers, ["10m", "10m", "2h", "2h", "24h", "24h", "24h"]);
        assert_eq!(Tier::of(u32::MAX), Tier::Day);
        assert!(Tier::ALL.iter().all(|tier| Tier::of(tier.seconds()) == *tier));
    }
}
