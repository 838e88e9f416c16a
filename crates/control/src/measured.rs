// SPDX-License-Identifier: Apache-2.0
//! Work that benchmarks time and that no call of the API does alone. It is hidden, and no part of what extensions use.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use wrenn_api::SandboxId;

use crate::db::metrics::{self, Point, Tier};

/// Keeps the metrics of a sandbox that ran for a day, as its pause does: as many points as the rings of its host have then. Returns the
/// number of those that were not kept before.
pub async fn keep_metrics_of_a_day(db: &PgPool, sandbox: SandboxId) -> sqlx::Result<u64> {
    let now = Utc::now();
    let full = [(Tier::TenMinutes, 1200, 500), (Tier::TwoHours, 240, 30_000), (Tier::Day, 288, 300_000)];
    let tiers = full.map(|(tier, points, every_ms)| {
        let point = |place: i32| point(now - TimeDelta::milliseconds(i64::from(place) * every_ms), place);
        (tier, (0..points).map(point).collect::<Vec<_>>())
    });
    metrics::keep(db, sandbox.uuid(), &tiers).await
}

/// Makes a point that differs from the others.
fn point(at: DateTime<Utc>, place: i32) -> Point {
    let number = i64::from(place);
    Point {
        at,
        cpu_hundredths: place,
        mem_bytes: number,
        disk_bytes: number,
        net_rx_bytes: number,
        net_tx_bytes: number,
        guest_mem_used_bytes: number,
        guest_mem_total_bytes: number,
        guest_disk_used_bytes: number,
        guest_disk_total_bytes: number,
    }
}
