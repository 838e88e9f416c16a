// SPDX-License-Identifier: Apache-2.0
//! `wrenn sandbox rm` and `prune`: remove sandboxes, several at once.

use anyhow::Result;
use futures::{StreamExt as _, stream};
use serde_json::json;
use wrenn_api::{SandboxId, SandboxRef, SandboxStatus};
use wrenn_client::{Client, SandboxFilter};

use super::{find, list::Filter};
use crate::{
    confirm,
    failure::{Failure, Report},
    output::{Format, note},
    progress::during,
};

/// Number of sandboxes that are removed at a time.
const AT_ONCE: usize = 8;
/// Number of sandboxes that a question lists.
const LISTED: usize = 10;

/// Arguments of `wrenn sandbox rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The sandboxes: ids, beginnings of ids, or names
    #[arg(required_unless_present_any = ["all", "status", "label", "template", "name"], value_name = "ID")]
    ids: Vec<SandboxRef>,
    /// Remove all sandboxes of the team
    #[arg(long, short = 'a', conflicts_with = "ids")]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// Do not ask
    #[arg(long, short = 'y', visible_alias = "force", visible_short_alias = 'f')]
    yes: bool,
}

/// Arguments of `wrenn sandbox prune`.
#[derive(Debug, clap::Args)]
pub(crate) struct PruneArgs {
    /// Only sandboxes with this label, NAME alone for any value; may be repeated
    #[arg(long, short = 'l', value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Do not ask
    #[arg(long, short = 'y', visible_alias = "force", visible_short_alias = 'f')]
    yes: bool,
}

/// Runs `wrenn sandbox rm`. Sandboxes that are named are removed without a question.
pub(super) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    if !args.ids.is_empty() && !args.filter.is_empty() {
        return Err(Failure::new("usage", "name the sandboxes, or choose them by options: not both").into());
    }
    if args.ids.is_empty() {
        return chosen(client, &args.filter.request(), args.yes, format).await;
    }
    remove(client, args.ids.clone(), format).await
}

/// Runs `wrenn sandbox prune`.
pub(super) async fn prune(client: &Client, args: &PruneArgs, format: Format) -> Result<u8> {
    let filter = SandboxFilter {
        statuses: vec![SandboxStatus::Error],
        labels: args.label.clone(),
        ..SandboxFilter::default()
    };
    chosen(client, &filter, args.yes, format).await
}

/// Removes the sandboxes that pass a filter, once that is confirmed.
async fn chosen(client: &Client, filter: &SandboxFilter, yes: bool, format: Format) -> Result<u8> {
    let mut all = client.list_all(filter).await?;
    all.retain(|sandbox| sandbox.status != SandboxStatus::Stopped);
    if !all.is_empty() && !yes {
        for sandbox in all.iter().take(LISTED) {
            let name = sandbox.name.as_ref().map(|name| format!("  {name}")).unwrap_or_default();
            note(&format!("{}  {}{name}", sandbox.id, sandbox.status.as_str()));
        }
        if all.len() > LISTED {
            note(&format!("and {} more", all.len() - LISTED));
        }
        let what =
            if all.len() == 1 { "this sandbox".to_owned() } else { format!("these {} sandboxes", all.len()) };
        confirm::removal(&what, "with their disks").await?;
    }
    remove(client, all.into_iter().map(|sandbox| sandbox.id.into()).collect(), format).await
}

/// Removes sandboxes, prints the ids of those that are removed, and tells why others are not.
async fn remove(client: &Client, sandboxes: Vec<SandboxRef>, format: Format) -> Result<u8> {
    let what = match sandboxes.as_slice() {
        [one] => format!("removing sandbox {one}"),
        several => format!("removing {} sandboxes", several.len()),
    };
    let attempts = stream::iter(sandboxes).map(|sandbox| async move {
        let removed = one(client, &sandbox).await;
        (sandbox, removed)
    });
    let results: Vec<_> = during(&what, attempts.buffered(AT_ONCE).collect()).await;
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    for (sandbox, result) in results {
        match result {
            Ok(id) => removed.push(id.to_string()),
            // The other sandboxes are removed all the same.
            Err(error) => {
                let (name, text) = (sandbox.to_string(), format!("{error:#}"));
                let subject = if text.contains(&name) { String::new() } else { format!("{name}: ") };
                note(&format!("wrenn: {subject}{text}"));
                failed.push(json!({ "id": name, "error": Report::of(&error) }));
            }
        }
    }
    format.print(&json!({ "removed": removed, "failed": failed }), || removed.join("\n"))?;
    Ok(u8::from(!failed.is_empty()))
}

async fn one(client: &Client, sandbox: &SandboxRef) -> Result<SandboxId> {
    let id = find(client, sandbox).await?;
    client.delete(id).await?;
    Ok(id)
}
