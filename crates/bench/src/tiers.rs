// SPDX-License-Identifier: Apache-2.0
//! Time of the statement that keeps the metrics of a sandbox with full rings, as PostgreSQL counts it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use wrenn_testkit::Stack;

use crate::row::Row;

const ROUNDS: usize = 20;
/// Adds as many points as the rings of a sandbox have after a day: 10 minutes of measurements, 2 hours of averages of 30 seconds,
/// and a day of those of 5 minutes.
const KEEP: &str = "EXPLAIN (ANALYZE, TIMING OFF, SUMMARY ON)
    INSERT INTO metrics_points (sandbox_id, team_id, tier, at, cpu_hundredths, mem_bytes, disk_bytes, net_rx_bytes, net_tx_bytes,
        guest_mem_used_bytes, guest_mem_total_bytes, guest_disk_used_bytes, guest_disk_total_bytes)
    SELECT one.id, t.id, n.tier, now() - n.at * interval '1 second', n.at, n.at, n.at, n.at, n.at, n.at, n.at, n.at, n.at
    FROM (SELECT gen_random_uuid() AS id) one, (SELECT id FROM teams LIMIT 1) t, (
        SELECT '10m' AS tier, at FROM generate_series(1, 1200) AS raw (at)
        UNION ALL SELECT '2h', at FROM generate_series(1, 240) AS middle (at)
        UNION ALL SELECT '24h', at FROM generate_series(1, 288) AS day (at)) n";
/// What is before the time in the last line of what PostgreSQL explains.
const TOOK: &str = "Execution Time: ";

/// Runs the statement for another sandbox each time.
pub(crate) fn kept(stack: &Stack) -> Result<Row> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let explained = stack.sql(KEEP)?;
        let took = explained.lines().find_map(|line| line.strip_prefix(TOOK)?.strip_suffix(" ms"));
        let took: f64 = took.with_context(|| format!("no time in {explained}"))?.parse()?;
        times.push(Duration::from_secs_f64(took / 1000.0));
    }
    stack.sql("DELETE FROM metrics_points")?;
    Ok(Row::time("keeping the metrics of a sandbox of a day, one statement (ms)", &times, 100.0))
}
