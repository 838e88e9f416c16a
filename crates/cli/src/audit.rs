// SPDX-License-Identifier: Apache-2.0
//! `wrenn audit`: who did what, newest first, and exports of it.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use wrenn_api::{ActorKind, AuditOutcome, AuditRecord, ExportFormat};
use wrenn_client::{AuditFilter, Client};

use crate::{
    events::since,
    output::{self, Format, note},
};

/// Text after the help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  wrenn audit --from 7d --action sandbox.delete
  wrenn audit --actor key03halx8fdhw2fu3txwbd0kdw0 --outcome refused
  wrenn audit --from 2026-01-01T00:00:00Z --export csv > audit.csv";
/// Maximum number of records of a page.
const PAGE: u32 = 200;

/// Arguments of `wrenn audit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Maximum number of records that are shown
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 50, conflicts_with = "export")]
    number: u32,
    /// Only what this user or API key did, by id
    #[arg(long, value_name = "ACTOR")]
    actor: Option<String>,
    /// Only what actors of this kind did, such as user or api_key
    #[arg(long, value_name = "KIND")]
    actor_kind: Option<ActorKind>,
    /// Only this action, such as sandbox.create; may be repeated
    #[arg(long = "action", value_name = "ACTION")]
    actions: Vec<String>,
    /// Only what was done to this, by id
    #[arg(long, value_name = "RESOURCE")]
    resource: Option<String>,
    /// Only what was done to things of this kind, such as sandbox
    #[arg(long, value_name = "KIND")]
    resource_kind: Option<String>,
    /// Only what had this outcome: succeeded, refused, failed or unknown
    #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
    outcome: Option<AuditOutcome>,
    /// Only what was done since then: so long ago, such as 7d, or a time such as 2026-01-31T09:30:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    from: Option<DateTime<Utc>>,
    /// Only what was done before
    #[arg(long, value_name = "TIME", value_parser = since)]
    to: Option<DateTime<Utc>>,
    /// Show the logs of all teams, as administrators of the platform may
    #[arg(long, conflicts_with = "export")]
    platform: bool,
    /// Write all of it to standard output, as csv or as jsonl
    #[arg(long, value_name = "FORMAT", value_parser = export_format)]
    export: Option<ExportFormat>,
}

/// Runs `wrenn audit`.
pub(crate) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    let filter = AuditFilter {
        actor: args.actor.clone(),
        actor_kind: args.actor_kind,
        actions: args.actions.clone(),
        resource: args.resource.clone(),
        resource_kind: args.resource_kind.clone(),
        outcome: args.outcome,
        from: args.from,
        to: args.to,
    };
    if let Some(export) = args.export {
        let mut parts = client.export_audit_logs(&filter, export).await?;
        let mut stdout = io::stdout();
        while let Some(part) = parts.next().await {
            stdout.write_all(&part?).context("cannot write to standard output")?;
        }
        stdout.flush().context("cannot write to standard output")?;
        return Ok(0);
    }
    let client = if args.platform { client.for_platform() } else { client.clone() };
    let (mut all, mut cursor): (Vec<AuditRecord>, Option<String>) = (Vec::new(), None);
    loop {
        let wanted = (args.number as usize).saturating_sub(all.len()).min(PAGE as usize);
        if wanted == 0 {
            break;
        }
        let (page, next) = client.audit_logs(&filter, u32::try_from(wanted)?, cursor.as_deref()).await?;
        all.extend(page);
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    format.print(&all, || table(&all))?;
    if cursor.is_some() && format == Format::Text {
        note("There is more: see -n and --export.");
    }
    Ok(0)
}

fn outcome(text: &str) -> Result<AuditOutcome, String> {
    text.parse()
        .map_err(|()| format!("write one of {}", AuditOutcome::ALL.map(AuditOutcome::as_str).join(", ")))
}

fn export_format(text: &str) -> Result<ExportFormat, String> {
    text.parse().map_err(|()| "write csv or jsonl".to_owned())
}

fn table(all: &[AuditRecord]) -> String {
    let rows = all.iter().map(|record| {
        let actor = &record.actor;
        // Names come from others, and may hold what controls a terminal.
        let name = actor.name.as_ref().or(actor.id.as_ref()).map(|name| output::plain(name));
        let on = record.resource.as_ref().map(|on| output::plain(on.name.as_ref().unwrap_or(&on.id)));
        let outcome = record.error_code.as_ref().map(|code| format!("{}: {code}", record.outcome));
        [
            output::time(record.at),
            name.map_or_else(|| actor.kind.to_string(), |name| format!("{} {name}", actor.kind)),
            record.action.clone(),
            on.unwrap_or_else(|| "-".to_owned()),
            outcome.unwrap_or_else(|| record.outcome.to_string()),
            record.address.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    output::table(["TIME", "WHO", "ACTION", "ON", "OUTCOME", "FROM"], rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_is_a_line_that_controls_no_terminal() {
        let value = json!([{"id": "au03halx8fdhw2fu3txwbd0kdw0", "at": "2026-01-31T09:30:02Z",
            "team_id": "team03halx8fdhw2fu3txwbd0kdw0", "action": "sandbox.create",
            "actor": {"kind": "user", "id": "us03halx8fdhw2fu3txwbd0kdw0", "name": "Ada\u{1b}"},
            "resource": {"kind": "sandbox", "id": "sb03halx8fdhw2fu3txwbd0kdw0", "name": "web"}, "outcome": "refused",
            "error_code": "forbidden", "address": "192.0.2.7"}]);
        let all: Vec<AuditRecord> = serde_json::from_value(value).expect("records");
        let text = table(&all);
        let line = text.lines().nth(1).unwrap_or_default();
        for part in ["user Ada\\u{1b}", "sandbox.create", "web", "refused: forbidden", "192.0.2.7"] {
            assert!(line.contains(part), "{line}");
        }
    }
}
