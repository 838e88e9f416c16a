// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox ls`: lists sandboxes, and the filters that other commands share with it.

use std::collections::HashSet;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use wrenn_api::{Sandbox, SandboxId, SandboxStatus};
use wrenn_client::{Client, SandboxFilter};

use crate::output::{self, Format};

/// Minimum length of an id in a table. Ids of sandboxes that were not created in the same millisecond differ there.
const SHORT: usize = 13;

/// Which sandboxes.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filter {
    /// Only sandboxes of this status; may be repeated, or be several with commas
    #[arg(long, value_name = "STATUS", value_parser = status, value_delimiter = ',')]
    status: Vec<SandboxStatus>,
    /// Only sandboxes with this label, NAME alone for any value; may be repeated
    #[arg(long, short = 'l', value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Only sandboxes from this template or snapshot
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Only the sandbox with this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl Filter {
    /// Returns the filter of the API.
    pub(super) fn request(&self) -> SandboxFilter {
        SandboxFilter {
            statuses: self.status.clone(),
            name: self.name.clone(),
            template: self.template.clone(),
            labels: self.label.clone(),
        }
    }

    /// Whether it lets everything pass.
    pub(super) fn is_empty(&self) -> bool {
        self.request() == SandboxFilter::default()
    }
}

/// Arguments of `wrenn sandbox ls`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// List deleted sandboxes too
    #[arg(long, short = 'a', conflicts_with = "status")]
    all: bool,
    /// Print the ids only
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
}

/// Runs `wrenn sandbox ls`.
pub(super) async fn run(client: &Client, args: &Args, format: Format) -> Result<()> {
    let mut filter = args.filter.request();
    if args.all {
        filter.statuses = SandboxStatus::ALL.to_vec();
    }
    let all = client.list_all(&filter).await?;
    format.print(&all, || {
        if args.quiet {
            return all.iter().map(|sandbox| sandbox.id.to_string()).collect::<Vec<_>>().join("\n");
        }
        table(&all, args.no_trunc, Utc::now())
    })
}

fn status(text: &str) -> Result<SandboxStatus, String> {
    let all = || SandboxStatus::ALL.map(SandboxStatus::as_str).join(", ");
    text.parse().map_err(|()| format!("write one of {}", all()))
}

fn table(all: &[Sandbox], whole_ids: bool, now: DateTime<Utc>) -> String {
    let length = if whole_ids { usize::MAX } else { length(all.iter().map(|sandbox| sandbox.id)) };
    let rows = all.iter().map(|sandbox| {
        let labels = sandbox.labels.iter().map(|(name, value)| format!("{name}={value}"));
        [
            sandbox.id.to_string().chars().take(length).collect(),
            sandbox.name.clone().unwrap_or_else(|| "-".to_owned()),
            state(sandbox),
            sandbox.template.clone(),
            sandbox.vcpus.to_string(),
            size(sandbox.memory_mb),
            size(sandbox.disk_size_mb),
            age(now - sandbox.created_at),
            labels.collect::<Vec<_>>().join(","),
        ]
    });
    output::table(["ID", "NAME", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "DISK", "AGE", "LABELS"], rows)
}

/// The status, and the code of its error.
fn state(sandbox: &Sandbox) -> String {
    let status = sandbox.status.as_str();
    sandbox.error.as_ref().map_or_else(|| status.to_owned(), |error| format!("{status} ({})", error.code))
}

/// Length at which the ids are still different.
pub(super) fn length(ids: impl Iterator<Item = SandboxId>) -> usize {
    let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
    let whole = ids.first().map_or(SHORT, String::len);
    let differ = |length: &usize| {
        let mut seen = HashSet::new();
        ids.iter().all(|id| seen.insert(id.get(..*length)))
    };
    (SHORT..whole).find(differ).unwrap_or(whole)
}

/// A size in MiB as people write it.
fn size(mebibytes: u32) -> String {
    if mebibytes >= 1024 && mebibytes.is_multiple_of(1024) {
        return format!("{} GiB", mebibytes / 1024);
    }
    format!("{mebibytes} MiB")
}

/// A time that has passed, in its largest unit.
fn age(passed: TimeDelta) -> String {
    let seconds = passed.num_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, name: Option<&str>) -> Sandbox {
        let value = serde_json::json!({
            "id": id, "name": name, "labels": {"a": "b", "c": ""}, "status": "running", "template": "minimal", "vcpus": 1,
            "memory_mb": 512, "disk_size_mb": 5120, "created_at": "2026-01-31T09:30:00Z",
            "last_updated": "2026-01-31T09:30:00Z",
        });
        serde_json::from_value(value).expect("a sandbox")
    }

    #[test]
    fn a_table_has_short_ids_that_differ() {
        let now = "2026-01-31T09:40:00Z".parse().expect("a time");
        let (one, two) = ("sb03halx8fdhw2fu3txwbd0kdw0", "sb03halx8fdhw2gu3txwbd0kdw0");
        let text = table(&[sandbox(one, Some("web"))], false, now);
        let lines: Vec<_> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "ID NAME STATUS TEMPLATE VCPUS MEMORY DISK AGE LABELS",
                "sb03halx8fdhw web running minimal 1 512 MiB 5 GiB 10m a=b,c="
            ]
        );
        let text = table(&[sandbox(one, None), sandbox(two, None)], false, now);
        assert!(text.contains("sb03halx8fdhw2f ") && text.contains("sb03halx8fdhw2g "), "{text}");
        assert!(table(&[sandbox(one, None)], true, now).contains(one));
        assert_eq!(table(&[], false, now).lines().count(), 1);
        // As a page that moved may bring it.
        assert!(table(&[sandbox(one, None), sandbox(one, None)], false, now).contains(one));
    }

    #[test]
    fn ages_have_one_unit() {
        let shown = |seconds| age(TimeDelta::seconds(seconds));
        let all = [-5, 0, 119, 120, 7199, 7200, 172_799, 172_800].map(shown);
        assert_eq!(all, ["0s", "0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
        assert_eq!([128, 1024, 1536, 20_480].map(size), ["128 MiB", "1 GiB", "1536 MiB", "20 GiB"]);
    }
}
