// SPDX-License-Identifier: Apache-2.0
//! `GET /metrics`: resource usage of the sandbox in the format of sandbox clients.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    extract::{Query, State},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;

use crate::out_of_memory::Kills;

/// Time over which CPU usage is measured.
const WINDOW: Duration = Duration::from_millis(100);

/// Parameters of the request.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    /// Whether to measure the CPU usage, which takes [`WINDOW`]. The host measures it itself.
    cpu: Option<bool>,
}

/// Measures and responds. What the kernel has killed for want of memory is an extension of the format.
pub(crate) async fn get(State(kills): State<Arc<Kills>>, Query(wanted): Query<Wanted>) -> Response {
    let cpu_used = if wanted.cpu.unwrap_or(true) { Some(cpu_used().await) } else { None };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (mem_total, cache) = (meminfo(&memory, "MemTotal:"), meminfo(&memory, "Cached:"));
    let mem_used = mem_total.saturating_sub(meminfo(&memory, "MemAvailable:"));
    let (disk_used, disk_total) = rustix::fs::statfs("/").map_or((0, 0), |s| {
        let block = s.f_bsize as u64;
        ((s.f_blocks - s.f_bfree) * block, s.f_blocks * block)
    });
    let mut told = json!({
        "ts": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        "cpu_count": cpus,
        "mem_total": mem_total,
        "mem_used": mem_used,
        "mem_cache": cache,
        "mem_total_mib": mem_total >> 20,
        "mem_used_mib": mem_used >> 20,
        "disk_used": disk_used,
        "disk_total": disk_total,
        "out_of_memory": kills.list(),
    });
    if let Some(used) = cpu_used {
        told["cpu_used_pct"] = used.into();
    }
    Json(told).into_response()
}

/// Measures the use of all CPUs in percent.
async fn cpu_used() -> f64 {
    let before = cpu_times();
    tokio::time::sleep(WINDOW).await;
    let (busy, total) = match (before, cpu_times()) {
        (Some((b0, t0)), Some((b1, t1))) => (b1.saturating_sub(b0), t1.saturating_sub(t0)),
        _ => (0, 0),
    };
    if total == 0 { 0.0 } else { (busy as f64 / total as f64 * 10_000.0).round() / 100.0 }
}

/// Busy and total ticks of all CPUs.
fn cpu_times() -> Option<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).filter_map(|t| t.parse().ok()).collect();
    let total = ticks.iter().take(8).sum::<u64>();
    Some((total - ticks.get(3)? - ticks.get(4)?, total))
}

fn meminfo(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
