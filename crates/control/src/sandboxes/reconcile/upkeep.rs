// SPDX-License-Identifier: Apache-2.0
//! Upkeep that concerns no host in particular: the fleet's epoch, old records, and the gauges that count
//! rows.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use wrenn_api::SandboxStatus;

use super::{PERIOD, Said};
use crate::{
    by::By,
    db::{
        builds, fleet, hosts, idempotency, metrics as metrics_points, outbox,
        sandboxes::{self, Change},
        sessions, tickets,
    },
    error::Fault,
    state::App,
    telemetry,
};

/// Interval between raises of the epoch: an older backup is detected when it is restored.
const RAISE: Duration = Duration::from_secs(60);
/// Interval between counts of rows.
const MEASURE: Duration = Duration::from_secs(5);
/// Interval between deletions of old records; shorter if their retention is shorter.
const PRUNE: Duration = Duration::from_secs(60);
/// Maximum number of records deleted by one statement, and of failed sandboxes deleted at a time.
const BATCH: i64 = 500;
/// Maximum number of points of metrics deleted by one statement.
const POINTS: i64 = 10_000;
/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// Runs the upkeep until the server stops.
pub(super) async fn run(app: &App) {
    let (mut raise, mut measure, mut prune) = (Job::every(RAISE), Job::every(MEASURE), Job::every(PRUNE));
    prune.period = PRUNE.min(app.limits.record_retention).max(PERIOD);
    loop {
        if raise.is_due() {
            let raised = fleet::raise(&app.db, RAISE).await.map_err(Fault::from);
            raise.said.tell(&raised, "the fleet's epoch cannot be raised");
        }
        if measure.is_due() {
            telemetry::pools(&app.db, &app.access_db);
            let measured = count_rows(app).await;
            measure.said.tell(&measured, "the rows of the database cannot be counted");
        }
        if prune.is_due() {
            let pruned = remove_old(app).await;
            prune.said.tell(&pruned, "old records cannot be removed");
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// A periodic job.
struct Job {
    period: Duration,
    last: Option<Instant>,
    said: Said,
}

impl Job {
    fn every(period: Duration) -> Self {
        Self { period, last: None, said: Said::default() }
    }

    fn is_due(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= self.period);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

async fn count_rows(app: &App) -> Result<(), Fault> {
    let counts: HashMap<String, i64> = sandboxes::by_status(&app.db).await?.into_iter().collect();
    let present = SandboxStatus::ALL.into_iter().filter(|status| *status != SandboxStatus::Stopped);
    for status in present.map(SandboxStatus::as_str) {
        let count = counts.get(status).copied().unwrap_or_default();
        metrics::gauge!("wrenn_sandboxes", "status" => status).set(count as f64);
    }
    telemetry::by_status("wrenn_hosts", &["online", "unreachable"], &hosts::by_status(&app.db).await?);
    telemetry::by_status("wrenn_builds", &["pending", "running"], &builds::open_by_status(&app.db).await?);
    telemetry::room(&hosts::candidates(&app.db).await?);
    metrics::gauge!("wrenn_hosts_ejected").set(hosts::ejected(&app.db).await? as f64);
    metrics::gauge!("wrenn_hosts_quarantined").set(hosts::quarantined(&app.db).await? as f64);
    let (waiting, oldest) = outbox::waiting(&app.db).await?;
    metrics::gauge!("wrenn_outbox_events").set(waiting as f64);
    metrics::gauge!("wrenn_outbox_oldest_seconds").set(oldest);
    Ok(())
}

async fn remove_old(app: &App) -> Result<(), Fault> {
    idempotency::prune(&app.db).await?;
    sessions::remove_old(&app.db).await?;
    tickets::remove_old(&app.db).await?;
    let age = app.limits.record_retention;
    while sandboxes::forget_stopped(&app.db, age, BATCH).await? == BATCH as u64 {}
    let kept = Duration::from_secs(u64::from(app.limits.metrics_keep_days) * DAY);
    while metrics_points::forget_old(&app.db, kept, POINTS).await? == POINTS as u64 {}
    // Something may be left of it on its host, so it is deleted as by its user.
    for row in sandboxes::failed_before(&app.db, age, BATCH).await? {
        let to = if row.host_id.is_some() { SandboxStatus::Stopping } else { SandboxStatus::Stopped };
        sandboxes::change(&app.db, &row, Change::to(to).by(By::LIFETIME), app.limits.lease).await?;
        tracing::info!(sandbox_id = %row.public_id(), "deleting a sandbox that failed long ago");
    }
    app.outbox.notify_one();
    Ok(())
}
