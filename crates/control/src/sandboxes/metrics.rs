// SPDX-License-Identifier: Apache-2.0
//! Metrics of a sandbox: its host has those of one that runs, the database those of one that is paused, and the tier of a day of one
//! that was deleted. Reading them is no use of the sandbox.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use uuid::Uuid;
use wrenn_api::{ErrorCode, MetricsPoint, MetricsRange, SandboxId, SandboxMetrics, SandboxStatus};
use wrenn_rpc::host::v1::{self, MetricsRequest};

use super::lookup::{agent, find};
use crate::{
    agents::{AgentClient, deadline, within},
    db::{
        metrics::{self, Point, Tier},
        sandboxes::{Known, Row},
    },
    error::Fault,
    state::App,
};

/// Maximum number of points that are taken from a host.
const POINTS_MAX: usize = 1200;
/// A host's measure of the use of all virtual CPUs.
const CPU_MAX: u32 = 10_000;
/// Time limit for a host to tell what a sandbox used that was paused or is removed: neither waits longer for it.
const KEEP: Duration = Duration::from_secs(1);

/// Reads the metrics of a sandbox that runs or is paused.
pub(super) async fn read(
    app: &App,
    team: Uuid,
    id: SandboxId,
    range: MetricsRange,
) -> Result<SandboxMetrics, Fault> {
    let row = find(app, team, id).await?;
    if let Some(why) = lack(row.status()) {
        return Err(Fault::new(ErrorCode::NotFound, format!("sandbox {id} has no metrics: {why}")));
    }
    let kept = match row.status() {
        SandboxStatus::Paused => metrics::range(&app.db, row.id, range.seconds()).await?,
        _ => Vec::new(),
    };
    // Its host has them, too, if they could not be kept when it was paused.
    let points = if kept.is_empty() { of_host(app, &row, range.seconds()).await? } else { kept };
    Ok(SandboxMetrics { sandbox_id: id, range, points: points.iter().map(public).collect() })
}

/// Keeps all that a sandbox used that was paused, so that it is told also while its host is away. A failure is only logged.
pub(super) async fn keep_paused(app: &App, row: &Known) {
    let asked = tokio::time::timeout(KEEP, all_tiers(app, row)).await.unwrap_or_else(|_| Err(too_slow()));
    let kept = match asked {
        // It was paused before it was measured.
        Ok(tiers) if tiers.iter().all(|(_, points)| points.is_empty()) => return,
        Ok(tiers) => metrics::keep(&app.db, row.id, &tiers).await.map_err(Fault::from),
        Err(fault) => Err(fault),
    };
    note(row, kept.map(drop));
}

/// Returns what a sandbox used in the last day, which is about to be removed from its host; none if its host does not say.
pub(super) async fn before_removal(app: &App, row: &Known) -> Vec<Point> {
    let (Some(host), Some(_)) = (row.host_id, row.started_at) else { return Vec::new() };
    let asked = async { ask(&agent(app, host).await?, row.id, Tier::Day.seconds(), KEEP).await };
    let asked = tokio::time::timeout(KEEP, asked).await.unwrap_or_else(|_| Err(too_slow()));
    asked.unwrap_or_else(|fault| {
        // Of a host that is away, each attempt to remove it says so.
        tracing::debug!(sandbox_id = %row.public_id(), code = %fault.code, %fault, "a host does not say what a sandbox used");
        Vec::new()
    })
}

/// Keeps what a removed sandbox used in its last day: these points, or what was kept of it before. A failure is only logged.
pub(super) async fn keep_removed(app: &App, row: &Known, day: Vec<Point>) {
    if row.started_at.is_none() {
        return;
    }
    let kept = if day.is_empty() {
        metrics::keep_day(&app.db, row.id).await
    } else {
        metrics::keep(&app.db, row.id, &[(Tier::Day, day)]).await.map(drop)
    };
    note(row, kept.map_err(Fault::from));
}

fn note(row: &Known, kept: Result<(), Fault>) {
    if let Err(error) = kept {
        tracing::info!(sandbox_id = %row.public_id(), code = %error.code, %error, "what a sandbox used is not kept");
    }
}

fn too_slow() -> Fault {
    Fault::new(ErrorCode::Timeout, format!("the host did not say within {} s what it used", KEEP.as_secs()))
}

async fn all_tiers(app: &App, row: &Known) -> Result<Vec<(Tier, Vec<Point>)>, Fault> {
    let agent = agent(app, row.host_id.unwrap_or_default()).await?;
    let asked = Tier::ALL.map(|tier| ask(&agent, row.id, tier.seconds(), KEEP));
    Ok(Tier::ALL.into_iter().zip(try_join_all(asked).await?).collect())
}

async fn of_host(app: &App, row: &Row, seconds: u32) -> Result<Vec<Point>, Fault> {
    let none = || Fault::new(ErrorCode::HostUnavailable, format!("sandbox {} has no host", row.public_id()));
    let agent = agent(app, row.host_id.ok_or_else(none)?).await?;
    ask(&agent, row.id, seconds, deadline::STATE).await
}

/// Asks a host for the points of so many seconds up to the newest one.
async fn ask(agent: &AgentClient, id: Uuid, seconds: u32, limit: Duration) -> Result<Vec<Point>, Fault> {
    let sandbox_id = SandboxId::from(id).to_string();
    let request = MetricsRequest { sandbox_id, range_sec: seconds, ..Default::default() };
    let answer = agent.metrics_with_options(request, within(limit)).await?.into_owned();
    Ok(answer.points.iter().take(POINTS_MAX).filter_map(taken).collect())
}

/// Why there are no metrics of a sandbox of this status, if so. Only its host knows whether a missing one runs.
fn lack(status: SandboxStatus) -> Option<&'static str> {
    match status {
        SandboxStatus::Running
        | SandboxStatus::Pausing
        | SandboxStatus::Paused
        | SandboxStatus::Resuming
        | SandboxStatus::Missing => None,
        SandboxStatus::Pending | SandboxStatus::Starting => {
            Some("it is still starting: wait until its status is running")
        }
        SandboxStatus::Stopping | SandboxStatus::Stopped => Some("it was deleted"),
        SandboxStatus::Error => Some("it has failed: resume or delete it"),
    }
}

/// Takes a point of a host; none if its time is none.
fn taken(point: &v1::MetricsPoint) -> Option<Point> {
    let bytes = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let at: DateTime<Utc> = DateTime::from_timestamp_millis(point.timestamp_unix_ms)?;
    Some(Point {
        at,
        cpu_hundredths: point.cpu_hundredths.min(CPU_MAX) as i32,
        mem_bytes: bytes(point.mem_bytes),
        disk_bytes: bytes(point.disk_bytes),
        net_rx_bytes: bytes(point.net_rx_bytes),
        net_tx_bytes: bytes(point.net_tx_bytes),
        guest_mem_used_bytes: bytes(point.guest_mem_used_bytes),
        guest_mem_total_bytes: bytes(point.guest_mem_total_bytes),
        guest_disk_used_bytes: bytes(point.guest_disk_used_bytes),
        guest_disk_total_bytes: bytes(point.guest_disk_total_bytes),
    })
}

fn public(point: &Point) -> MetricsPoint {
    let bytes = |number: i64| u64::try_from(number).unwrap_or_default();
    let known = |total: i64, number: i64| (total > 0).then(|| bytes(number));
    let (mem_total, disk_total) = (point.guest_mem_total_bytes, point.guest_disk_total_bytes);
    MetricsPoint {
        timestamp_unix: point.at.timestamp(),
        cpu_pct: f64::from(point.cpu_hundredths) / 100.0,
        mem_bytes: bytes(point.mem_bytes),
        disk_bytes: bytes(point.disk_bytes),
        net_rx_bytes: bytes(point.net_rx_bytes),
        net_tx_bytes: bytes(point.net_tx_bytes),
        guest_mem_used_bytes: known(mem_total, point.guest_mem_used_bytes),
        guest_mem_total_bytes: known(mem_total, mem_total),
        guest_disk_used_bytes: known(disk_total, point.guest_disk_used_bytes),
        guest_disk_total_bytes: known(disk_total, disk_total),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_or_is_paused_has_metrics() {
        let with: Vec<_> = SandboxStatus::ALL.into_iter().filter(|status| lack(*status).is_none()).collect();
        let expected = [
            SandboxStatus::Running,
            SandboxStatus::Pausing,
            SandboxStatus::Paused,
            SandboxStatus::Resuming,
            SandboxStatus::Missing,
        ];
        assert_eq!(with, expected);
    }

    #[test]
    fn a_host_may_say_anything() {
        let said = v1::MetricsPoint {
            timestamp_unix_ms: 1_769_851_800_999,
            cpu_hundredths: u32::MAX,
            mem_bytes: u64::MAX,
            guest_mem_used_bytes: 5,
            guest_mem_total_bytes: 9,
            guest_disk_used_bytes: 5,
            ..Default::default()
        };
        let point = public(&taken(&said).expect("a point"));
        assert_eq!((point.timestamp_unix, point.mem_bytes), (1_769_851_800, i64::MAX as u64));
        assert!((point.cpu_pct - 100.0).abs() < f64::EPSILON, "{}", point.cpu_pct);
        assert_eq!((point.guest_mem_used_bytes, point.guest_mem_total_bytes), (Some(5), Some(9)));
        // Without a total nothing is known.
        assert_eq!((point.guest_disk_used_bytes, point.guest_disk_total_bytes), (None, None));
        assert_eq!(taken(&v1::MetricsPoint { timestamp_unix_ms: i64::MAX, ..said }), None);
    }
}
