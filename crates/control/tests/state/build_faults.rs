// SPDX-License-Identifier: Apache-2.0
//! Cases of builds in which something goes wrong: commands that print too much or never end, hosts without space, cancels at every
//! stage, and others that build or delete at the same time.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_api::{BuildId, ErrorCode};
use wrenn_control::{BuildSettings, Limits};
use wrenn_testkit::wait_until;

use crate::{
    agent::{Agent, Does, OPEN},
    build_workers::{is_left, runs},
    builds::{PATH, ask, built, get, log, start, statuses, wait},
    fixture::{Fixture, SOON},
    stores::Stores,
};

const MIB: usize = 1 << 20;
/// Time without output after which a log says that its command runs.
const SILENCE: Duration = Duration::from_secs(1);
/// Time limit for what a recipe starts.
const START: Duration = Duration::from_secs(2);

/// What the database has of the output of a step: the result of an aggregate.
async fn of_output(fixture: &Fixture, build: &Value, step: u32, what: &str) -> Result<usize> {
    let id = build["id"].as_str().context("no id")?.parse::<BuildId>()?.uuid();
    let query = format!(
        "SELECT {what}::text FROM build_logs WHERE build_id = '{id}' AND step = {step} AND stream <> 'system'"
    );
    Ok(fixture.value(&query).await?.parse()?)
}

/// Commands that print without bound fill neither the log with bytes nor, by turns of both streams, with entries, and go on.
pub(crate) async fn output_beyond_the_bounds_is_not_kept(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let floods = Does { stdout: vec![b'x'; MIB / 4], again: 23, ends: Some(0), ..Does::default() };
    fixture.agent().obey("floods", floods);
    let turns = Does { stdout: b"o".to_vec(), stderr: b"e".to_vec(), again: 33_000, ends: Some(0) };
    fixture.agent().obey("turns", turns);
    let build = built(&fixture, "RUN floods\nRUN turns\n").await?;
    ensure!(statuses(&build) == ["succeeded"; 2], "{build}");
    let bytes = of_output(&fixture, &build, 1, "sum(length(text))").await?;
    ensure!((4 * MIB - 4..=4 * MIB).contains(&bytes), "{bytes} bytes are kept");
    let entries = of_output(&fixture, &build, 2, "count(*)").await?;
    ensure!((60_000..=65_536).contains(&entries), "{entries} entries are kept");
    let told = log(&fixture, build["id"].as_str().context("no id")?, "system").await?;
    for part in ["output beyond 4 MiB is not kept", "turns of both streams is not kept"] {
        ensure!(told.matches(part).count() == 1, "{part:?} is not told once: {told}");
    }
    fixture.stop().await
}

/// A command that the guest does not end, and a check that never answers, end their builds all the same.
pub(crate) async fn what_never_ends_is_given_up(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut settings = BuildSettings::default();
    settings.start = START;
    let fixture = Fixture::start_with(stores, name, 1, Limits::default(), settings).await?;
    let agent = fixture.agent();
    agent.obey("", Does::end(0));
    for endless in ["hangs", "attach start", "probe"] {
        agent.obey(endless, Does::default());
    }
    let recipe = "RUN one\nRUN --timeout=1s hangs\n";
    let hangs = ask(&fixture, &json!({"name": "hangs", "recipe": recipe})).await?;
    let recipe = "START serve\nHEALTHCHECK --timeout=1h CMD probe\n";
    let silent = ask(&fixture, &json!({"name": "silent", "recipe": recipe})).await?;
    let failed = wait(&fixture, &hangs, "failed").await?;
    ensure!(failed["error"]["step"] == 2 && failed["error"]["code"] == "timeout", "{failed}");
    ensure!(statuses(&failed) == ["succeeded", "failed"], "{failed}");
    is_left(&fixture, "hangs").await?;
    let failed = wait(&fixture, &silent, "failed").await?;
    let message = failed["error"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("did not succeed within 2 s (server.build_start_secs)"), "{failed}");
    is_left(&fixture, "probe").await?;
    fixture.stop().await
}

/// Of a command that writes nothing the log says, each time after a longer silence, that it runs.
pub(crate) async fn a_silent_command_is_said_to_run(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut settings = BuildSettings::default();
    settings.silence = SILENCE;
    let fixture = Fixture::start_with(stores, name, 1, Limits::default(), settings).await?;
    let agent = fixture.agent();
    agent.obey("", Does::end(0));
    agent.obey("silent", Does::default());
    let id = ask(&fixture, &json!({"name": "web", "recipe": "RUN one\nRUN silent\n"})).await?;
    let is_told_twice = async || {
        let told = log(&fixture, &id, "system").await.ok()?;
        told.contains("no output for 2 s, still running").then_some(told)
    };
    let told = wait_until("the log to say it twice", SOON, is_told_twice).await?;
    ensure!(told.matches("no output for 1 s, still running").count() == 1, "{told}");
    let uuid = id.parse::<BuildId>()?.uuid();
    let of_step = "text = 'no output for 1 s, still running' AND step = 2";
    let entries = format!("SELECT count(*)::text FROM build_logs WHERE build_id = '{uuid}' AND {of_step}");
    ensure!(fixture.value(&entries).await? == "1", "it is of another step: {told}");
    ensure!(get(&fixture, &id).await?["status"] == "running");
    fixture.api.delete(&format!("{PATH}/{id}")).await?.expect(204)?;
    wait(&fixture, &id, "cancelled").await?;
    fixture.stop().await
}

/// A stage of a build at which the host lets it wait.
struct Stage {
    recipe: &'static str,
    /// Lets the host wait there, or go on.
    hold: fn(&Agent, bool),
    /// Returns whether it waits there.
    is_there: fn(&Agent) -> bool,
}

/// Closes or opens a gate.
pub(crate) fn gate(gate: &tokio::sync::Semaphore, is_closed: bool) {
    if is_closed {
        gate.forget_permits(OPEN);
    } else {
        gate.add_permits(OPEN);
    }
}

fn was_called(agent: &Agent, what: &str) -> bool {
    agent.now().calls.iter().any(|(called, _)| *called == what)
}

/// Base of the build that is cancelled while its host imports it.
const IMAGE: &str = "r.example/team/app:1";

const STAGES: [Stage; 6] = [
    Stage {
        recipe: "RUN a\n",
        hold: |agent, holds| {
            agent.now().takes = Duration::from_millis(if holds { 8000 } else { 2 });
        },
        is_there: |agent| !agent.now().creates.is_empty(),
    },
    Stage {
        recipe: "RUN b\n",
        hold: |agent, holds| gate(&agent.snapshot_gate, holds),
        is_there: |agent| was_called(agent, "snapshot"),
    },
    Stage {
        recipe: "FROM r.example/team/app:1\nRUN b\n",
        hold: |agent, holds| gate(&agent.import_gate, holds),
        is_there: |agent| !agent.now().imports.is_empty(),
    },
    // The last thing that a worker waits for before it records the version.
    Stage {
        recipe: "RUN c\n",
        hold: |agent, holds| gate(&agent.image_gate, holds),
        is_there: |agent| was_called(agent, "make_image"),
    },
    Stage {
        recipe: "START serve\nHEALTHCHECK --timeout=1h CMD probe\n",
        hold: |_, _| {},
        is_there: |agent| agent.now().commands.iter().any(|command| command == "probe"),
    },
    // Without a step, the snapshot is made after all of them.
    Stage {
        recipe: "ENV A=1\nSTART serve\nHEALTHCHECK CMD true\n",
        hold: |agent, holds| gate(&agent.snapshot_gate, holds),
        is_there: |agent| was_called(agent, "snapshot"),
    },
];

/// A cancel that was answered counts at every stage, up to the moment at which the version is recorded, and nothing is left of the
/// build.
pub(crate) async fn a_cancel_counts_at_every_stage(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    for endless in ["attach start", "probe"] {
        agent.obey(endless, Does::default());
    }
    agent.now().registry.insert(IMAGE.to_owned(), format!("sha256:{}", "1".repeat(64)));
    for Stage { recipe, hold, is_there } in STAGES {
        hold(&agent, true);
        agent.now().calls.clear();
        agent.now().creates.clear();
        let id = ask(&fixture, &json!({"name": "web", "recipe": recipe})).await?;
        let there = async || is_there(&agent).then_some(());
        wait_until(&format!("the stage of {recipe:?}"), SOON, there).await?;
        fixture.api.delete(&format!("{PATH}/{id}")).await?.expect(204)?;
        // At once: a worker that did not look would go on to the end.
        hold(&agent, false);
        let build = wait(&fixture, &id, "cancelled").await.with_context(|| recipe.to_owned())?;
        ensure!(build["version"].is_null() && build["error"].is_null(), "{recipe}: {build}");
        fixture.wait_value("SELECT string_agg(DISTINCT status, '') FROM sandboxes", "stopped").await?;
    }
    fixture.wait_value("SELECT count(*)::text FROM template_versions", "0").await?;
    fixture.stop().await
}

/// A host without disk space for the result of a step ends the build with that as its cause, at the step, and nothing is kept of it. With
/// space, the next build goes on after what was kept before.
pub(crate) async fn a_host_without_space_is_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    built(&fixture, "RUN one\n").await?;
    let kept = agent.now().snapshots.clone();
    let full = (ErrorCode::InsufficientStorage, "the disk of the host is full: delete sandboxes");
    agent.now().snapshot_fails.push(full);
    let id = ask(&fixture, &json!({"name": "web", "recipe": "RUN one\nRUN two\n"})).await?;
    let build = wait(&fixture, &id, "failed").await?;
    ensure!(build["error"]["code"] == "insufficient_storage" && build["error"]["step"] == 2, "{build}");
    ensure!(build["error"]["message"].as_str().is_some_and(|told| told.contains(full.1)), "{build}");
    ensure!(statuses(&build) == ["cached", "failed"] && build["version"].is_null(), "{build}");
    fixture.wait_value("SELECT count(*)::text FROM snapshots", &kept.len().to_string()).await?;
    ensure!(agent.now().snapshots == kept, "{:?} instead of {kept:?}", agent.now().snapshots);
    let again = built(&fixture, "RUN one\nRUN two\n").await?;
    ensure!(statuses(&again) == ["cached", "succeeded"], "{again}");
    fixture.stop().await
}

/// Two builds of one name at once both succeed: each is a version, and the tag leads to the one that ended last.
pub(crate) async fn two_builds_of_a_name_make_two_versions(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    gate(&agent.image_gate, true);
    let mut ids = Vec::new();
    for command in ["one", "two"] {
        ids.push(ask(&fixture, &json!({"name": "web", "recipe": format!("RUN {command}\n")})).await?);
    }
    let both = async || {
        let calls = agent.now().calls.iter().filter(|(what, _)| *what == "make_image").count();
        (calls == 2).then_some(())
    };
    wait_until("both builds to be at their ends", SOON, both).await?;
    gate(&agent.image_gate, false);
    let mut versions = Vec::new();
    for id in &ids {
        versions.push(wait(&fixture, id, "succeeded").await?["version"].as_i64().context("no version")?);
    }
    versions.sort_unstable();
    ensure!(versions == [1, 2], "{versions:?}");
    let tag = "SELECT version::text FROM template_tags WHERE name = 'web' AND tag = 'latest'";
    ensure!(fixture.value(tag).await? == "2");
    let images = "SELECT count(DISTINCT image_id)::text FROM template_versions";
    ensure!(fixture.value(images).await? == "2" && agent.now().images.len() == 2);
    fixture.stop().await
}

/// What a build waits to start from can be deleted meanwhile: the build has it until its end, and then it goes.
pub(crate) async fn a_base_that_is_deleted_stays_for_its_builds(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    agent.obey("forever", Does::default());
    let base = json!({"name": "base", "recipe": "ENV A=1\nRUN one\n"});
    wait(&fixture, &ask(&fixture, &base).await?, "succeeded").await?;
    let image = agent.now().images.iter().next().cloned().context("no image")?;
    // As many as the server has workers, so that the next one waits.
    let mut busy = Vec::new();
    for number in 0..2 {
        let recipe = format!("RUN forever {number}\n");
        busy.push(ask(&fixture, &json!({"name": format!("busy{number}"), "recipe": recipe})).await?);
        runs(&fixture, &format!("forever {number}")).await?;
    }
    let id = ask(&fixture, &json!({"name": "web", "recipe": "FROM base\nRUN two\n"})).await?;
    fixture.api.delete("/v1/templates/base").await?.expect(204)?;
    let refused = fixture.api.post(PATH, &json!({"name": "late", "recipe": "FROM template:base\n"})).await?;
    refused.expect_error(404, "not_found")?;
    fixture.rounds(&agent, 2).await?;
    ensure!(get(&fixture, &id).await?["status"] == "pending" && agent.now().images.contains(&image));
    for id in &busy {
        fixture.api.delete(&format!("{PATH}/{id}")).await?.expect(204)?;
    }
    wait(&fixture, &id, "succeeded").await?;
    ensure!(agent.now().creates.iter().any(|asked| asked.image_id == image), "it began with something else");
    let has = "SELECT envs->>'A' FROM template_versions WHERE name = 'web'";
    ensure!(fixture.value(has).await? == "1");
    let is_gone = async || (!agent.now().images.contains(&image)).then_some(());
    wait_until("the image of the deleted template to go", SOON, is_gone).await?;
    fixture.stop().await
}
