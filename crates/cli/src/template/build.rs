// SPDX-License-Identifier: Apache-2.0
//! `wrenn template build`: sends a recipe with the files that it copies, and follows the build. An interrupted one is
//! cancelled.

use std::{path::PathBuf, pin::pin};

use anyhow::{Context as _, Result, bail};
use wrenn_api::{Build, BuildStatus, BuildStepStatus, CreateBuild};
use wrenn_archive::ArchiveError;
use wrenn_client::{Body, Client, Error};

use super::{
    context::Context,
    follow::{Until, follow},
    of::{Of, flag},
    reference::Reference,
    screen::{Lines, Screen},
    secret::{self, Secret},
    source::Source,
    view::{Style, View, duration},
};
use crate::{
    creation::mebibytes,
    output::{Format, note},
    progress::Counter,
    registry::Registry,
    signals::{Stop, exit_status},
};

/// Text after the help.
pub(super) const EXAMPLES: &str = "\
The recipe is a Dockerfile of one stage; docs/templates.md says what it can have. A step whose result is in the cache is
CACHED; --explain-cache says why others are not. The new version of the template gets the tag.

Examples:
  wrenn template build web                          Wrennfile or Dockerfile of this directory, tag latest
  wrenn template build web:next -f deploy/Wrennfile --context app
  wrenn template build web --memory 1g --disk-size 10g
  wrenn template build web --no-cache-from 3        do step 3 and those after it again
  wrenn template build web --registry-user robot    FROM is an image; the token is WRENN_REGISTRY_PASSWORD
  wrenn template build web --secret id=npm,src=.npmrc    for RUN --secret=npm,target=/root/.npmrc npm ci
  wrenn template build --platform -f images/python/Wrennfile python       for all teams
  wrenn create --template web:next

The first Ctrl-C cancels the build, a second one leaves at once.

Exit status: 0 if the template has a new version, 1 if the build failed or was cancelled, 130 if it was interrupted.";

/// Arguments of `wrenn template build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the template, and after a colon the tag that its new version gets, instead of latest
    #[arg(value_name = "NAME[:TAG]")]
    template: Reference,
    /// The recipe [default: Wrennfile, else Dockerfile, in the context]
    #[arg(long, short = 'f', value_name = "FILE")]
    file: Option<PathBuf>,
    /// The directory whose files COPY takes; its .wrennignore, else its .dockerignore, says what is not sent
    #[arg(long, value_name = "DIR", default_value = ".")]
    context: PathBuf,
    /// Virtual CPUs of the build, and of sandboxes from a template with START [default: 1]
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory in MiB of the build, and of sandboxes from a template with START; or with a unit, such as 1g [default: 1024]
    #[arg(long, visible_alias = "memory-mb", value_name = "MB", value_parser = mebibytes)]
    memory: Option<u32>,
    /// Size of the disk in MiB, or with a unit, such as 10g [default: 5120]
    #[arg(long, visible_aliases = ["disk", "disk-size-mb"], value_name = "MB", value_parser = mebibytes)]
    disk_size: Option<u32>,
    /// Take no result from the cache
    #[arg(long)]
    no_cache: bool,
    /// Take no result of this step and those after it from the cache
    #[arg(long, value_name = "STEP", conflicts_with = "no_cache", value_parser = clap::value_parser!(u32).range(1..))]
    no_cache_from: Option<u32>,
    /// Say of each step why its result was not taken from the cache
    #[arg(long)]
    explain_cache: bool,
    #[command(flatten)]
    registry: Registry,
    /// A secret for the steps with RUN --secret=NAME: from a file, or from a variable, which is NAME if none is named. May be given
    /// several times
    #[arg(long, value_name = "id=NAME[,src=FILE|,env=VAR]", value_parser = Secret::parse)]
    secret: Vec<Secret>,
    #[command(flatten)]
    of: Of,
    /// Print the id of the build and do not wait for it
    #[arg(long, short = 'd')]
    detach: bool,
}

impl Args {
    /// Returns the request. Reads the password of a registry, and secrets.
    fn request(&self, source: &Source) -> Result<CreateBuild> {
        Ok(CreateBuild {
            name: self.template.to_string(),
            recipe: source.text().to_owned(),
            vcpus: self.vcpus,
            memory_mb: self.memory,
            disk_size_mb: self.disk_size,
            no_cache_from: if self.no_cache { Some(1) } else { self.no_cache_from },
            registry: self.registry.account()?,
            secrets: secret::values(&self.secret)?,
        })
    }
}

/// Runs `wrenn template build`.
pub(super) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    let (mut stop, client) = (Stop::new()?, &args.of.client(client));
    let flag = flag(client);
    // The sandbox of a build of the platform is one of nobody who has a key.
    let known = |ended: Build| Build { sandbox_id: ended.sandbox_id.filter(|_| !args.of.platform), ..ended };
    let source = Source::read(args.file.as_deref(), &args.context)?;
    let begun = tokio::select! {
        begun = submit(client, args, &source) => begun?,
        name = stop.received() => {
            let lists = format!("`wrenn template builds{flag}` lists it");
            note(&format!("wrenn: interrupted; if the build has begun all the same, {lists}"));
            return Ok(exit_status(name));
        }
    };
    if args.detach {
        format.print(&begun, || begun.id.to_string())?;
        return Ok(0);
    }
    let (id, screen) = (begun.id, Screen::new(Lines::Progress, true));
    screen.note(&format!("wrenn: build {id} of {}:{}", begun.name, begun.tag));
    let style = Style { explain: args.explain_cache, colour: screen.has_colours(), ..Style::default() };
    let mut view = View::new(style);
    let mut following = pin!(follow(client, begun, None, &mut view, &screen, Until::End));
    let name = tokio::select! {
        ended = &mut following => return tell(&known(ended?), &source, &screen, format),
        name = stop.received() => name,
    };
    screen.note("wrenn: interrupted. Cancelling the build. Press Ctrl-C again to leave at once.");
    let cancelled = async {
        match client.cancel_build(id).await {
            // It has just ended.
            Err(Error::Api { status: 409, .. }) => {}
            other => other.with_context(|| {
                format!("build {id} may go on: cancel it by `wrenn template cancel{flag} {id}`")
            })?,
        }
        following.await
    };
    let ended = tokio::select! {
        ended = cancelled => ended?,
        _ = stop.received() => {
            screen.note(&format!("wrenn: build {id} may go on: `wrenn template cancel{flag} {id}` cancels it"));
            return Ok(exit_status(name));
        }
    };
    let ended = known(ended);
    let status = tell(&ended, &source, &screen, format)?;
    Ok(if ended.status == BuildStatus::Succeeded { status } else { exit_status(name) })
}

/// Asks for the build. The context is sent if the recipe copies something of it.
async fn submit(client: &Client, args: &Args, source: &Source) -> Result<Build> {
    let new = args.request(source)?;
    if !source.copies_files() {
        return answered(client.create_build(&new, None).await, source);
    }
    let (pieces, packing) = Context::open(&args.context)?.pack(Counter::new(None));
    let created = client.create_build(&new, Some(Body::wrap_stream(pieces))).await;
    match packing.await? {
        // The server takes no more; its answer says why.
        Ok(()) | Err(ArchiveError::Stream(_)) => {}
        Err(error) => {
            let what = format!("cannot send the files of {}", args.context.display());
            return Err(error).context(what);
        }
    }
    answered(created, source)
}

/// Shows the lines of the recipe that a refusal names.
fn answered(created: wrenn_client::Result<Build>, source: &Source) -> Result<Build> {
    match created {
        Ok(build) => Ok(build),
        Err(error) => {
            if let Error::Api { message, .. } = &error {
                source.named_in(message).iter().for_each(|shown| note(shown));
            }
            let lost = error.may_have_happened();
            let error = anyhow::Error::from(error);
            let hint = "the build may have begun all the same; `wrenn template builds` lists it";
            Err(if lost { error.context(hint) } else { error })
        }
    }
}

/// Tells how a build ended; returns the exit status.
fn tell(build: &Build, source: &Source, screen: &Screen, format: Format) -> Result<u8> {
    screen.end_work();
    let status = match build.status {
        BuildStatus::Succeeded => {
            screen.note(&summary(build));
            format.print(build, || format!("{}:{}", build.name, build.tag))?;
            return Ok(0);
        }
        BuildStatus::Cancelled => {
            screen.note("wrenn: the build was cancelled");
            1
        }
        BuildStatus::Failed => {
            failure(build, source).iter().for_each(|line| screen.note(line));
            1
        }
        BuildStatus::Pending | BuildStatus::Running => bail!("build {} has not ended", build.id),
    };
    // Without JSON all is told.
    if format == Format::Json {
        format.print(build, String::new)?;
    }
    Ok(status)
}

/// Says what a build has made, how long it took, and how much of it was there before.
fn summary(build: &Build) -> String {
    let version = build.version.map(|version| format!(" version {version}")).unwrap_or_default();
    let cached = build.steps.iter().filter(|step| step.status == BuildStepStatus::Cached).count();
    let took = build.ended_at.zip(build.started_at).map(|(end, start)| (end - start).num_milliseconds());
    let took = took.map(|took| format!(" in {}", duration(took.max(0).unsigned_abs()))).unwrap_or_default();
    let (name, tag, steps) = (&build.name, &build.tag, build.steps.len());
    format!("wrenn: {name}{version} has the tag {tag}{took}; {cached} of {steps} steps were cached")
}

/// Says why a build failed, and where one can look.
fn failure(build: &Build, source: &Source) -> Vec<String> {
    let mut lines = Vec::new();
    let error = build.error.as_ref();
    let step = error.and_then(|error| error.step);
    let step = step.and_then(|number| build.steps.iter().find(|step| step.number == number));
    lines.extend(step.and_then(|step| source.line(step.line)));
    lines.push(match error {
        Some(error) => format!("wrenn: {} ({})", error.message, error.code),
        None => format!("wrenn: build {} failed", build.id),
    });
    if let Some(sandbox) = build.sandbox_id {
        let id = build.id;
        lines.push(format!(
            "wrenn: its sandbox {sandbox} stays for some minutes: `wrenn template debug {id}` opens a terminal in it"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn build(more: serde_json::Value) -> Build {
        let mut value = json!({"id": wrenn_api::BuildId::new(), "name": "web", "tag": "latest", "status": "succeeded",
            "attempt": 1, "created_at": "2026-01-31T09:30:00Z", "steps": [
                {"number": 1, "line": 1, "instruction": "FROM minimal", "status": "cached"},
                {"number": 2, "line": 2, "instruction": "RUN false", "status": "failed"}]});
        if let (Some(all), serde_json::Value::Object(more)) = (value.as_object_mut(), more) {
            all.extend(more);
        }
        serde_json::from_value(value).expect("a build")
    }

    #[test]
    fn success_is_summed_up() {
        let times = json!({"version": 3, "started_at": "2026-01-31T09:30:00Z", "ended_at": "2026-01-31T09:30:42.150Z"});
        assert_eq!(
            summary(&build(times)),
            "wrenn: web version 3 has the tag latest in 42.1 s; 1 of 2 steps were cached"
        );
    }

    #[test]
    fn a_failure_is_told_with_its_line_its_cause_and_what_can_be_done() -> Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("Wrennfile"), "FROM minimal\nRUN false\n")?;
        let source = Source::read(None, dir.path())?;
        let error = json!({"code": "build_failed", "message": "step 2 (line 2) ended with 1", "step": 2});
        let failed =
            build(json!({"status": "failed", "error": error, "sandbox_id": wrenn_api::SandboxId::new()}));
        let lines = failure(&failed, &source);
        assert!(lines[0].ends_with("Wrennfile:2\n  2 | RUN false"), "{lines:?}");
        assert_eq!(lines[1], "wrenn: step 2 (line 2) ended with 1 (build_failed)");
        assert!(lines[2].contains(&format!("wrenn template debug {}", failed.id)), "{lines:?}");
        Ok(())
    }
}
