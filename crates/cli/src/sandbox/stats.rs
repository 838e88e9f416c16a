// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox stats`: what sandboxes use, once.

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::HumanBytes;
use serde::Serialize;
use wrenn_api::{MetricsPoint, MetricsRange, Sandbox, SandboxId, SandboxRef, SandboxStatus};
use wrenn_client::{Client, Error, SandboxFilter};

use super::list;
use crate::output::{self, Format};

/// Number of sandboxes that are asked for at a time.
const AT_ONCE: usize = 8;

/// Arguments of `wrenn sandbox stats`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The sandboxes: ids, beginnings of ids, or names; without one, all that run or are paused
    #[arg(value_name = "ID")]
    ids: Vec<SandboxRef>,
}

/// A sandbox, and what it used when it was measured last.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) sandbox_id: SandboxId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) status: SandboxStatus,
    /// None if it was not measured yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latest: Option<MetricsPoint>,
}

impl Row {
    /// What it uses now: a paused one uses its disk only.
    pub(super) fn now(&self) -> Option<&MetricsPoint> {
        self.latest.as_ref().filter(|_| self.status == SandboxStatus::Running)
    }
}

/// Runs `wrenn sandbox stats`.
pub(super) async fn run(client: &Client, args: &Args, format: Format) -> Result<()> {
    let rows = if args.ids.is_empty() { all(client).await? } else { of(client, &args.ids).await? };
    format.print(&rows, || table(&rows))
}

/// Asks for all sandboxes that run or are paused, the newest first.
pub(super) async fn all(client: &Client) -> Result<Vec<Row>> {
    let statuses = vec![SandboxStatus::Running, SandboxStatus::Paused];
    let listed = client.list_all(&SandboxFilter { statuses, ..SandboxFilter::default() }).await?;
    let rows = stream::iter(listed).map(|sandbox| async move {
        match row(client, sandbox).await {
            // It was removed since it was listed.
            Err(Error::Api { status: 404, .. }) => Ok(None),
            row => row.map(Some),
        }
    });
    let rows: Vec<Option<Row>> = rows.buffered(AT_ONCE).try_collect().await?;
    Ok(rows.into_iter().flatten().collect())
}

/// Asks for these sandboxes.
async fn of(client: &Client, ids: &[SandboxRef]) -> Result<Vec<Row>> {
    let rows = stream::iter(ids.to_vec())
        .map(|id| async move { row(client, client.get(id).await?).await })
        .buffered(AT_ONCE);
    Ok(rows.try_collect().await?)
}

async fn row(client: &Client, sandbox: Sandbox) -> Result<Row, Error> {
    let Sandbox { id: sandbox_id, name, status, .. } = sandbox;
    let metrics = client.metrics(sandbox_id, MetricsRange::FiveMinutes).await?;
    Ok(Row { sandbox_id, name, status, latest: metrics.points.last().copied() })
}

/// Formats what a guest says that it uses, and of how much.
fn guest(used: Option<(u64, u64)>) -> String {
    used.map_or_else(|| "-".to_owned(), |(used, all)| format!("{} / {}", HumanBytes(used), HumanBytes(all)))
}

/// Formats what sandboxes use: memory and disk of the host, and of each what the guest has in use and how much it has.
pub(super) fn table(rows: &[Row]) -> String {
    let length = list::length(rows.iter().map(|row| row.sandbox_id));
    let rows = rows.iter().map(|row| {
        let figure = |point: Option<&MetricsPoint>, text: fn(&MetricsPoint) -> String| {
            point.map_or_else(|| "-".to_owned(), text)
        };
        let (now, latest) = (row.now(), row.latest.as_ref());
        [
            row.sandbox_id.to_string().chars().take(length).collect(),
            row.name.clone().unwrap_or_else(|| "-".to_owned()),
            row.status.as_str().to_owned(),
            figure(now, |point| format!("{:.1} %", point.cpu_pct)),
            figure(now, |point| HumanBytes(point.mem_bytes).to_string()),
            guest(now.and_then(|point| point.guest_mem_used_bytes.zip(point.guest_mem_total_bytes))),
            figure(latest, |point| HumanBytes(point.disk_bytes).to_string()),
            guest(latest.and_then(|point| point.guest_disk_used_bytes.zip(point.guest_disk_total_bytes))),
            figure(latest, |point| HumanBytes(point.net_rx_bytes).to_string()),
            figure(latest, |point| HumanBytes(point.net_tx_bytes).to_string()),
        ]
    });
    let heads = ["ID", "NAME", "STATUS", "CPU", "MEMORY", "IN GUEST", "DISK", "IN GUEST", "RECEIVED", "SENT"];
    output::table(heads, rows)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A sandbox that used so much.
    pub(in crate::sandbox) fn used(name: &str, status: SandboxStatus, cpu_pct: f64, mib: u64) -> Row {
        let latest = MetricsPoint {
            timestamp_unix: 1,
            cpu_pct,
            mem_bytes: mib << 20,
            disk_bytes: mib << 21,
            net_rx_bytes: mib << 10,
            net_tx_bytes: mib,
            guest_mem_used_bytes: Some(mib << 19),
            guest_mem_total_bytes: Some(mib << 20),
            guest_disk_used_bytes: Some(mib << 21),
            guest_disk_total_bytes: Some(mib << 22),
        };
        let sandbox_id = "sb03halx8fdhw2fu3txwbd0kdw0".parse().expect("an id");
        Row { sandbox_id, name: Some(name.to_owned()), status, latest: Some(latest) }
    }

    #[test]
    fn a_paused_sandbox_takes_its_disk_only() {
        let new = Row { latest: None, name: None, ..used("", SandboxStatus::Running, 0.0, 0) };
        let mut silent = used("old", SandboxStatus::Running, 0.0, 1);
        silent.latest = silent.latest.map(|point| MetricsPoint {
            guest_mem_total_bytes: None,
            guest_disk_used_bytes: None,
            ..point
        });
        let rows = [
            used("web", SandboxStatus::Running, 12.34, 3),
            used("db", SandboxStatus::Paused, 12.34, 3),
            silent,
            new,
        ];
        let text = table(&rows);
        let lines: Vec<_> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let id = "sb03halx8fdhw2fu3txwbd0kdw0";
        assert_eq!(
            lines,
            [
                "ID NAME STATUS CPU MEMORY IN GUEST DISK IN GUEST RECEIVED SENT".to_owned(),
                format!(
                    "{id} web running 12.3 % 3.00 MiB 1.50 MiB / 3.00 MiB 6.00 MiB 6.00 MiB / 12.00 MiB 3.00 KiB 3 B"
                ),
                format!("{id} db paused - - - 6.00 MiB 6.00 MiB / 12.00 MiB 3.00 KiB 3 B"),
                format!("{id} old running 0.0 % 1.00 MiB - 2.00 MiB - 1.00 KiB 1 B"),
                format!("{id} - running - - - - - - -"),
            ]
        );
    }
}
