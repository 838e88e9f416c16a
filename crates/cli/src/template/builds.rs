// SPDX-License-Identifier: Apache-2.0
//! Builds that were asked for: list, log, cancel, and a terminal where one has failed.

use anyhow::Result;
use chrono::{DateTime, Utc};
use serde_json::json;
use wrenn_api::{Build, BuildId, BuildStatus};
use wrenn_client::Client;

use super::{
    follow::{Until, follow},
    of::Of,
    plain::plain,
    reference::name,
    screen::{Lines, Screen},
    view::{Style, View, duration},
};
use crate::{
    failure::Failure,
    output::{self, Format, note, time},
    signals::{Stop, exit_status},
    terminal,
};

/// Text after the help of `logs`.
pub(super) const LOGS_EXAMPLES: &str = "\
Without --follow the log of a build that goes on ends with what is there now. With --json each line is an entry of the log,
with its step and stream.

Examples:
  wrenn template logs BUILD --follow
  wrenn template logs BUILD --step 3";
/// User of the terminal of `debug`: what failed may have been done by any user.
const ROOT: &str = "root";

/// Arguments of `wrenn template builds`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Only builds of this template
    #[arg(long, value_name = "NAME", value_parser = name)]
    template: Option<String>,
    /// How many, the newest
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    limit: u32,
    #[command(flatten)]
    of: Of,
}

/// Arguments of `wrenn template logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// The build
    build: BuildId,
    /// Only the output of this step
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    step: Option<u32>,
    /// Go on until the build ends
    #[arg(long, short = 'f')]
    follow: bool,
    #[command(flatten)]
    of: Of,
}

/// Runs `wrenn template builds`.
pub(super) async fn list(client: &Client, args: &ListArgs, format: Format) -> Result<u8> {
    let all = args.of.client(client).list_builds(args.template.as_deref(), args.limit).await?;
    format.print(&all, || table(&all, Utc::now()))?;
    Ok(0)
}

/// Runs `wrenn template logs`.
pub(super) async fn logs(client: &Client, args: &LogsArgs, format: Format) -> Result<u8> {
    let (mut stop, client) = (Stop::new()?, &args.of.client(client));
    let build = client.get_build(args.build).await?;
    let (id, json) = (build.id, format == Format::Json);
    let screen = Screen::new(Lines::Result, args.follow && !json);
    let style = Style { json, explain: true, colour: screen.has_colours(), step: args.step };
    let (mut view, until) = (View::new(style), if args.follow { Until::End } else { Until::Now });
    let build = tokio::select! {
        build = follow(client, build, args.step, &mut view, &screen, until) => build?,
        name = stop.received() => return Ok(exit_status(name)),
    };
    screen.end_work();
    match &build.error {
        Some(error) => screen.note(&format!("wrenn: {} ({})", plain(&error.message), error.code)),
        None if build.status.is_final() => screen.note(&format!("wrenn: build {id} is {}", build.status)),
        None => {
            let status = build.status;
            screen.note(&format!("wrenn: build {id} is {status}; --follow shows how it goes on"));
        }
    }
    Ok(0)
}

/// Runs `wrenn template cancel`.
pub(super) async fn cancel(client: &Client, id: BuildId, format: Format) -> Result<u8> {
    client.cancel_build(id).await?;
    format.print(&json!({ "cancelled": id }), || id.to_string())?;
    Ok(0)
}

/// Runs `wrenn template debug`.
pub(super) async fn debug(client: &Client, id: BuildId) -> Result<u8> {
    let build = client.get_build(id).await?;
    let refused = |message: String| Failure::new("invalid_state", message);
    match build.status {
        BuildStatus::Failed => {}
        BuildStatus::Succeeded => {
            let (name, tag) = (&build.name, &build.tag);
            let message = format!(
                "build {id} has succeeded: look into a sandbox of it, by `wrenn create --template {name}:{tag}`"
            );
            return Err(refused(message).into());
        }
        status => {
            let message =
                format!("build {id} is {status}: only the sandbox of a failed one can be looked into");
            return Err(refused(message).into());
        }
    }
    let gone =
        || refused(format!("build {id} has no sandbox any more: build again, and look into that one soon"));
    let sandbox = build.sandbox_id.ok_or_else(gone)?;
    if let Some(error) = &build.error {
        note(&format!("wrenn: {}", plain(&error.message)));
    }
    let mut stop = Stop::new()?;
    tokio::select! {
        status = terminal::shell(client, sandbox, Some(ROOT.to_owned())) => status,
        name = stop.received() => Ok(exit_status(name)),
    }
}

fn table(all: &[Build], now: DateTime<Utc>) -> String {
    let rows = all.iter().map(|build| {
        let error = build.error.as_ref().map(|error| plain(&error.message)).unwrap_or_default();
        [
            build.id.to_string(),
            format!("{}:{}", build.name, build.tag),
            build.status.to_string(),
            build.version.map_or("-".to_owned(), |version| version.to_string()),
            time(build.created_at),
            took(build, now),
            error,
        ]
    });
    output::table(["BUILD", "TEMPLATE", "STATUS", "VERSION", "CREATED", "TOOK", "ERROR"], rows)
}

/// How long a build took, or takes until now.
fn took(build: &Build, now: DateTime<Utc>) -> String {
    let Some(begin) = build.started_at else { return "-".to_owned() };
    let passed = (build.ended_at.unwrap_or(now) - begin).num_milliseconds();
    duration(passed.max(0).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_listed_with_what_became_of_them() {
        let id = BuildId::new();
        let value = json!([
            {"id": id, "name": "web", "tag": "next", "status": "failed", "attempt": 1, "steps": [],
             "created_at": "2026-01-31T09:30:00Z", "started_at": "2026-01-31T09:30:01Z", "ended_at": "2026-01-31T09:31:03Z",
             "error": {"code": "build_failed", "message": "step 2 \u{1b}[31mended with 1"}},
            {"id": id, "name": "web", "tag": "latest", "status": "pending", "attempt": 0, "steps": [],
             "created_at": "2026-01-31T09:30:00Z"}
        ]);
        let all: Vec<Build> = serde_json::from_value(value).expect("builds");
        let text = table(&all, Utc::now());
        let lines: Vec<_> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "BUILD TEMPLATE STATUS VERSION CREATED TOOK ERROR".to_owned(),
                format!("{id} web:next failed - 2026-01-31 09:30:00 UTC 1 min 2 s step 2 ended with 1"),
                format!("{id} web:latest pending - 2026-01-31 09:30:00 UTC -"),
            ]
        );
    }
}
