// SPDX-License-Identifier: Apache-2.0
//! `wrenn events`: prints events, one per line, until interrupted.

use anyhow::{Context, Result};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use futures::StreamExt as _;
use wrenn_api::{EventKind, SandboxRef};
use wrenn_client::{Client, Event, EventFilter};

use crate::{
    creation::seconds,
    output::{Format, line, plain},
    sandbox::find,
};

/// Text after the help.
pub(crate) const EXAMPLES: &str = "\
A line has the time, the new status, the sandbox's id, its name, its template, its error, who did it if that has a name, and in
brackets why it happened unless a user wanted it. out_of_memory is no status: a process was killed for want of memory, which the line
names. snapshot.created, snapshot.deleted, host.up and host.down are of snapshots and of the team's own hosts. With --json each line is a JSON object with id, event and data.

Examples:
  wrenn events --since 10m
  wrenn events --sandbox web --type error --type missing";

/// Arguments of `wrenn events`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// First show the events since this time: how long ago, such as 10m, or a time such as 2026-01-31T09:30:00Z
    #[arg(long, value_name = "TIME", value_parser = since, conflicts_with = "after")]
    since: Option<DateTime<Utc>>,
    /// First show the events after this one, by its id (of --json); 0 shows all that are kept
    #[arg(long, value_name = "EVENT")]
    after: Option<String>,
    /// Show only events of this sandbox: its id, also of a deleted one, the beginning of its id, or its name
    #[arg(long, short = 's', value_name = "ID")]
    sandbox: Option<SandboxRef>,
    /// Show only events of this type, such as running or sandbox.running; may be repeated
    #[arg(long = "type", short = 't', value_name = "TYPE", value_parser = kind)]
    kinds: Vec<EventKind>,
}

/// Runs `wrenn events`. With JSON it prints one value per line, because the stream has no end.
pub(crate) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    // The id outlives the name.
    let sandbox = match &args.sandbox {
        Some(sandbox) => Some(find(client, sandbox).await?.into()),
        None => None,
    };
    let filter = EventFilter {
        after: args.after.clone(),
        since: args.since.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)),
        sandbox,
        kinds: args.kinds.clone(),
    };
    let mut events = client.events(&filter).await?;
    while let Some(event) = events.next().await {
        let event = event?;
        match format {
            Format::Json => line(&serde_json::to_string(&event).context("cannot write JSON")?)?,
            Format::Text => line(&text(&event))?,
        }
    }
    Ok(0)
}

/// Parses the time of the first event: how long ago, or a time.
pub(crate) fn since(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago =
        seconds(text).ok().and_then(|ago| Utc::now().checked_sub_signed(TimeDelta::seconds(ago.into())));
    ago.ok_or_else(|| "write how long ago, such as 10m, or a time such as 2026-01-31T09:30:00Z".to_owned())
}

/// Parses the type of an event, with or without `sandbox.`.
fn kind(text: &str) -> Result<EventKind, String> {
    let known = EventKind::asked_for(text).or_else(|| EventKind::asked_for(&format!("sandbox.{text}")));
    known.ok_or_else(|| {
        let all = EventKind::all().map(|kind| kind.to_string());
        let all: Vec<_> = all.map(|kind| kind.trim_start_matches("sandbox.").to_owned()).collect();
        format!("write one of {}", all.join(", "))
    })
}

fn text(event: &Event) -> String {
    // Typed values would lose the events of a newer server.
    let (data, sandbox) = (&event.data, &event.data["sandbox"]);
    let field = |value: &serde_json::Value| plain(value.as_str().unwrap_or("-"));
    let at = data["at"].as_str().and_then(|at| at.parse::<DateTime<Utc>>().ok());
    let at = at.map_or_else(|| "-".to_owned(), |at| at.to_rfc3339_opts(SecondsFormat::Secs, true));
    let what = event.event.strip_prefix("sandbox.").unwrap_or(&event.event);
    let by = by(data);
    if !sandbox.is_object() {
        let (snapshot, host) = (&data["snapshot"], &data["host"]);
        let about = if snapshot.is_object() {
            format!("{}  {}", field(&snapshot["name"]), field(&snapshot["template"]))
        } else if host.is_object() {
            field(&host["id"])
        } else {
            field(&data["reason"])
        };
        return format!("{at:<20}  {what:<8}  {about}{by}");
    }
    let (error, killed) = (&sandbox["error"], &sandbox["last_out_of_memory"]);
    let why = if what == "out_of_memory" {
        format!(
            "  killed: {} (pid {})",
            field(&killed["command"]),
            killed["pid"].as_u64().unwrap_or_default()
        )
    } else if error.is_object() {
        format!("  {}: {}", field(&error["code"]), field(&error["message"]))
    } else {
        String::new()
    };
    format!(
        "{at:<20}  {what:<8}  {}  {}  {}{why}{by}",
        field(&sandbox["id"]),
        field(&sandbox["name"]),
        field(&sandbox["template"])
    )
}

/// Who did it, by name, and why, unless somebody just wanted it.
fn by(data: &serde_json::Value) -> String {
    let name = data["actor"]["name"].as_str().map(|name| format!("  by {}", plain(name)));
    let cause = data["cause"].as_str().filter(|cause| *cause != "user");
    let cause = cause.map(|cause| format!("  ({})", plain(cause)));
    name.unwrap_or_default() + &cause.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_ago_or_absolute() {
        assert_eq!(since("2026-01-31T10:30:00+01:00"), since("2026-01-31T09:30:00Z"));
        let begin = since("10m").expect("a time");
        let ago = Utc::now() - begin;
        assert!((600..660).contains(&ago.num_seconds()), "{ago}");
        for wrong in ["", "yesterday", "10x", "2026-01-31"] {
            assert!(since(wrong).is_err_and(|error| error.contains("10m")), "{wrong}");
        }
    }

    #[test]
    fn types_are_statuses() {
        assert_eq!(kind("running"), kind("sandbox.running"));
        assert_eq!(kind("out_of_memory"), Ok(EventKind::OutOfMemory));
        for wrong in ["", "resync", "flying", "sandbox."] {
            assert!(kind(wrong).is_err_and(|error| error.contains("running, pausing")), "{wrong}");
        }
    }

    #[test]
    fn an_event_is_a_line() {
        let event = |kind: &str, data| Event { id: Some("1-0".into()), event: kind.into(), data };
        let sandbox = json!({"id": "sb03halx8fdhw2fu3txwbd0kdw0", "name": "web", "template": "minimal"});
        let data = json!({"at": "2026-01-31T09:30:02.500001Z", "sandbox": sandbox});
        assert_eq!(
            text(&event("sandbox.running", data)),
            "2026-01-31T09:30:02Z  running   sb03halx8fdhw2fu3txwbd0kdw0  web  minimal"
        );
        let error = json!({"code": "agent_error", "message": "it did not\nboot \u{1b}[31m"});
        let data =
            json!({"at": "2026-01-31T09:30:02Z", "sandbox": {"id": "sb1", "template": "t", "error": error}});
        assert_eq!(
            text(&event("sandbox.error", data)),
            "2026-01-31T09:30:02Z  error     sb1  -  t  agent_error: it did not\\nboot \\u{1b}[31m"
        );
        let killed = json!({"at": "2026-01-31T09:30:02Z", "pid": 412, "command": "py\n"});
        let data = json!({"at": "2026-01-31T09:30:02Z", "sandbox": {"id": "sb1", "template": "t", "last_out_of_memory": killed}});
        assert_eq!(
            text(&event("sandbox.out_of_memory", data)),
            "2026-01-31T09:30:02Z  out_of_memory  sb1  -  t  killed: py\\n (pid 412)"
        );
        let snapshot = json!({"name": "after-setup", "template": "minimal"});
        let data = json!({"at": "2026-01-31T09:30:02Z", "cause": "user", "actor": {"kind": "user", "name": "Ada"}, "snapshot": snapshot});
        assert_eq!(
            text(&event("snapshot.created", data)),
            "2026-01-31T09:30:02Z  snapshot.created  after-setup  minimal  by Ada"
        );
        let data = json!({"at": "2026-01-31T09:30:02Z", "cause": "host", "actor": {"kind": "host"}, "host": {"id": "host1"}});
        assert_eq!(text(&event("host.down", data)), "2026-01-31T09:30:02Z  host.down  host1  (host)");
        assert_eq!(text(&event("resync", json!({"reason": "why"}))), "-                     resync    why");
    }
}
