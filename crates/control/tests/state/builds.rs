// SPDX-License-Identifier: Apache-2.0
//! Cases of builds of templates: their steps, their cache, and what is made of them.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_api::{BuildId, ErrorCode};
use wrenn_control::Limits;
use wrenn_rpc::{fault::Of, host::v1::CreateRequest};
use wrenn_testkit::wait_until;

use crate::{
    agent::Does,
    fixture::{Fixture, SOON},
    stores::Stores,
};

pub(crate) const PATH: &str = "/v1/templates/builds";

/// Starts a server with hosts on which each command ends with 0.
pub(crate) async fn start(stores: &Arc<Stores>, name: &str, hosts: usize, limits: Limits) -> Result<Fixture> {
    let fixture = Fixture::start(stores, name, hosts, limits).await?;
    for agent in &fixture.agents {
        agent.obey("", Does::end(0));
    }
    Ok(fixture)
}

/// Asks for a build, and returns its id.
pub(crate) async fn ask(fixture: &Fixture, body: &Value) -> Result<String> {
    let build = fixture.api.post(PATH, body).await?.expect(201)?.json();
    ensure!(build["status"] == "pending" && build["attempt"] == 0, "{build}");
    Ok(build["id"].as_str().context("no id")?.to_owned())
}

pub(crate) async fn get(fixture: &Fixture, id: &str) -> Result<Value> {
    Ok(fixture.api.get(&format!("{PATH}/{id}")).await?.expect(200)?.json())
}

/// Waits until a build has this status, and returns it.
pub(crate) async fn wait(fixture: &Fixture, id: &str, status: &str) -> Result<Value> {
    let mut last = Value::Null;
    let is = async || {
        last = get(fixture, id).await.ok()?;
        (last["status"] == status).then(|| last.clone())
    };
    let found = wait_until(&format!("{id} {status}"), SOON, is).await;
    found.with_context(|| format!("the build is {last}"))
}

/// Builds a recipe as the template `web`, and returns the build when it has succeeded.
pub(crate) async fn built(fixture: &Fixture, recipe: &str) -> Result<Value> {
    let id = ask(fixture, &json!({"name": "web", "recipe": recipe})).await?;
    wait(fixture, &id, "succeeded").await
}

/// The log of a build, of the entries of one kind.
pub(crate) async fn log(fixture: &Fixture, id: &str, stream: &str) -> Result<String> {
    let id = id.parse::<BuildId>()?.uuid();
    fixture
        .value(&format!(
            "SELECT coalesce(string_agg(text, '|' ORDER BY entry), '') FROM build_logs
             WHERE build_id = '{id}' AND stream = '{stream}'"
        ))
        .await
}

/// Status of each step.
pub(crate) fn statuses(build: &Value) -> Vec<&str> {
    let steps = build["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    steps.iter().map(|step| step["status"].as_str().unwrap_or_default()).collect()
}

/// Why each step was not taken from the cache; empty for others.
pub(crate) fn misses(build: &Value) -> Vec<&str> {
    let steps = build["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    steps.iter().map(|step| step["miss"].as_str().unwrap_or_default()).collect()
}

/// Commands that were run on the first host, and forgotten by this.
fn commands(fixture: &Fixture) -> Vec<String> {
    std::mem::take(&mut fixture.agent().now().commands)
}

/// What sandboxes of builds were asked for on the first host, and forgotten by this.
fn creates(fixture: &Fixture) -> Vec<CreateRequest> {
    std::mem::take(&mut fixture.agent().now().creates)
}

/// The only one of them.
fn create(fixture: &Fixture) -> Result<CreateRequest> {
    let mut all = creates(fixture);
    ensure!(all.len() == 1, "{all:?}");
    all.pop().context("none")
}

/// Image or snapshot of a version.
pub(crate) async fn result(fixture: &Fixture, version: &Value) -> Result<String> {
    fixture
        .value(&format!(
            "SELECT replace(coalesce(image_id, snapshot_id)::text, '-', '') FROM template_versions
             WHERE name = 'web' AND version = {version}"
        ))
        .await
}

/// Each step is done once: a second build boots nothing, and a longer one begins with what is there.
pub(crate) async fn what_is_cached_is_not_built_again(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    agent.now().absent.insert("/srv".to_owned());
    agent.obey("two", Does { stdout: b"done\n".to_vec(), ends: Some(0), ..Does::default() });
    let recipe = "FROM minimal\nENV A=1\nRUN one\nWORKDIR /srv\nUSER app\nRUN two\n";
    let first = built(&fixture, recipe).await?;
    ensure!(
        statuses(&first) == ["succeeded"; 6] && first["version"] == 1 && first["attempt"] == 1,
        "{first}"
    );
    ensure!(first["steps"][2]["exit_code"] == 0 && first["steps"][2]["cache_key"].is_string(), "{first}");
    ensure!(misses(&first)[2] == "nothing was built with this step before", "{first}");
    ensure!(misses(&first)[3] == "an earlier step is not cached", "{first}");
    ensure!(commands(&fixture) == ["one", "two"]);
    let id = first["id"].as_str().context("no id")?;
    ensure!(log(&fixture, id, "stdout").await? == "done\n");
    ensure!(log(&fixture, id, "system").await?.ends_with("|web:latest is version 1"));
    let asked = create(&fixture)?;
    ensure!(
        asked.template == "minimal" && asked.memory_mb == 1024 && asked.snapshot_id.is_empty(),
        "{asked:?}"
    );
    let mut calls = agent.calls_of(&asked.sandbox_id);
    calls.retain(|call| *call != "metrics");
    ensure!(
        calls == ["snapshot", "stat_file", "make_directory", "snapshot", "make_user", "snapshot", "snapshot"],
        "{calls:?}"
    );
    // What the disk occupied before the first step is not known here.
    let mebibyte = json!(1 << 20);
    let added = [&Value::Null, &Value::Null, &Value::Null, &mebibyte, &mebibyte, &mebibyte];
    ensure!((0..6).all(|step| first["steps"][step]["bytes_added"] == *added[step]), "{first}");
    let image = result(&fixture, &json!(1)).await?;
    ensure!(agent.now().images.contains(&image), "{image}");
    fixture.wait_value("SELECT string_agg(status, '') FROM sandboxes", "stopped").await?;
    let row = "SELECT concat_ws(' ', default_user, workdir, envs->>'A', size_mb, key) FROM template_versions";
    ensure!(fixture.value(row).await?.starts_with("app /srv 1 912 "));

    let second = built(&fixture, recipe).await?;
    ensure!(statuses(&second) == ["cached"; 6] && second["version"] == 2, "{second}");
    ensure!((0..6).all(|step| second["steps"][step]["bytes_added"] == *added[step]), "{second}");
    ensure!(second["sandbox_id"].is_null() && creates(&fixture).is_empty() && commands(&fixture).is_empty());
    ensure!(result(&fixture, &json!(2)).await? == image && agent.now().images.len() == 1);

    let longer = built(&fixture, &format!("{recipe}RUN three\n")).await?;
    ensure!(statuses(&longer)[..6] == ["cached"; 6] && statuses(&longer)[6] == "succeeded", "{longer}");
    ensure!(commands(&fixture) == ["three"]);
    let asked = create(&fixture)?;
    ensure!(agent.now().snapshots.contains(&asked.snapshot_id), "{asked:?}");

    // The template is gone, and what it was made of is not: its image is made without a sandbox.
    fixture.sql("DELETE FROM template_versions").await?;
    let again = built(&fixture, recipe).await?;
    ensure!(statuses(&again) == ["cached"; 6] && creates(&fixture).is_empty(), "{again}");
    ensure!(result(&fixture, &again["version"]).await? != image);
    fixture.stop().await
}

/// A command that fails is named, with its step and line; the sandbox stays for those who look into it.
pub(crate) async fn a_failed_step_is_named_and_its_sandbox_stays(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let (stdout, stderr) = (b"so far\n".to_vec(), b"E: no\xff".to_vec());
    let output = Does { stdout, stderr, ends: Some(100), ..Does::default() };
    fixture.agent().obey("boom", output);
    let recipe = "FROM minimal\n# A comment.\nRUN fine\nRUN boom\nRUN never\n";
    let id = ask(&fixture, &json!({"name": "web:v1", "recipe": recipe})).await?;
    let build = wait(&fixture, &id, "failed").await?;
    let error = &build["error"];
    ensure!(error["code"] == "build_failed" && error["step"] == 3, "{build}");
    ensure!(error["message"] == "step 3 (line 4) ended with 100", "{build}");
    ensure!(statuses(&build) == ["succeeded", "succeeded", "failed", "pending"], "{build}");
    ensure!(build["steps"][2]["exit_code"] == 100 && build["ended_at"].is_string(), "{build}");
    ensure!(log(&fixture, &id, "stdout").await? == "so far\n");
    ensure!(log(&fixture, &id, "stderr").await? == "E: no\u{fffd}");
    ensure!(log(&fixture, &id, "system").await?.contains("step 3 (line 4) ended with 100|its sandbox sb"));
    let sandbox = fixture.record(build["sandbox_id"].as_str().context("no sandbox")?).await?;
    ensure!(sandbox["status"] == "running" && sandbox["labels"]["wrenn.build"] == id.as_str(), "{sandbox}");
    ensure!(sandbox["timeout_sec"] == 300 && sandbox["on_timeout"] == "delete", "{sandbox}");
    let simple = id.parse::<BuildId>()?.uuid().simple().to_string();
    ensure!(sandbox["name"] == format!("build-{}", &simple[24..]), "{sandbox}");
    fixture.wait_value("SELECT count(*)::text FROM template_versions", "0").await?;
    // Another one goes on after what was done.
    fixture.agent().obey("boom", Does::end(0));
    commands(&fixture);
    let again = built(&fixture, recipe).await?;
    ensure!(statuses(&again) == ["cached", "cached", "succeeded", "succeeded"], "{again}");
    ensure!(commands(&fixture) == ["boom", "never"]);
    fixture.stop().await
}

/// Of each step that is done again it is told why.
pub(crate) async fn why_a_step_is_done_again_is_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 2, Limits::default()).await?;
    let recipe = |variable: &str, file: &str, last: &str| {
        format!("ENV A={variable}\nRUN one\nCOPY <<a /srv/\n{file}\na\nRUN {last}\n")
    };
    let first = built(&fixture, &recipe("1", "x", "two")).await?;
    ensure!(misses(&first)[1] == "nothing was built with this step before", "{first}");
    for (variable, file, last, told) in [
        (
            "2",
            "x",
            "two",
            ["variable A changed", "an earlier step is not cached", "an earlier step is not cached"],
        ),
        ("1", "y", "two", ["", "file srv/a changed", "an earlier step is not cached"]),
        ("1", "x", "three", ["", "", "the instruction changed"]),
    ] {
        let build = built(&fixture, &recipe(variable, file, last)).await?;
        ensure!(misses(&build)[1..] == told, "{build}");
    }
    let forced = json!({"name": "web", "recipe": recipe("1", "x", "two"), "no_cache_from": 3});
    let build = wait(&fixture, &ask(&fixture, &forced).await?, "succeeded").await?;
    let by = "forced by no_cache_from";
    ensure!(misses(&build) == ["", "", by, by] && statuses(&build)[1] == "cached", "{build}");
    // The host that has the results is away, and another one does all again.
    let first =
        "SELECT s.host_id::text FROM snapshots s JOIN layers l ON l.snapshot_id = s.id ORDER BY s.id LIMIT 1";
    let host = fixture.value(first).await?;
    fixture.sql(&format!("UPDATE hosts SET address = '127.0.0.1:1' WHERE id = '{host}'")).await?;
    // After so long a silence no answer to a ping that was sent before is left to be recorded.
    fixture.wait_value(&format!("SELECT status FROM hosts WHERE id = '{host}'"), "unreachable").await?;
    fixture
        .sql(&format!("UPDATE hosts SET last_seen_at = now() - interval '1 hour' WHERE id = '{host}'"))
        .await?;
    let build = built(&fixture, &recipe("1", "x", "two")).await?;
    ensure!(misses(&build)[1] == "its result is on a host that does not respond", "{build}");
    ensure!(statuses(&build)[1..] == ["succeeded"; 3], "{build}");
    fixture.stop().await
}

/// A result from which no sandbox can be made, as after an upgrade of the VMM, is built again.
pub(crate) async fn a_result_that_cannot_be_used_is_built_again(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    built(&fixture, "RUN one\nRUN two\n").await?;
    commands(&fixture);
    let refused = (ErrorCode::SnapshotIncompatible, Of::OF_CALLER);
    fixture.agent().now().create_fails.extend([refused, refused]);
    let build = built(&fixture, "RUN one\nRUN two\nRUN three\n").await?;
    ensure!(statuses(&build) == ["succeeded"; 3], "{build}");
    ensure!(misses(&build)[0] == "its result cannot be used any more", "{build}");
    ensure!(commands(&fixture) == ["one", "two", "three"]);
    // A sandbox that could not be created is not left.
    fixture.wait_value("SELECT string_agg(DISTINCT status, '') FROM sandboxes", "stopped").await?;
    fixture.stop().await
}

/// What a recipe starts is checked, and its memory is the template.
pub(crate) async fn what_a_recipe_starts_is_checked(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    let serves = Does { stdout: b"listening\n".to_vec(), ..Does::default() };
    agent.obey("attach start", serves.clone());
    let recipe = "RUN one\nCMD serve\nHEALTHCHECK --interval=200ms --retries=2 CMD probe\n";
    agent.obey("probe", Does { stderr: b"refused\n".to_vec(), ends: Some(7), ..Does::default() });
    let id = ask(&fixture, &json!({"name": "web", "recipe": recipe})).await?;
    let build = wait(&fixture, &id, "failed").await?;
    let told = "step 3 (line 3) failed 2 times: it ended with 7: refused";
    ensure!(build["error"]["message"] == told && build["error"]["code"] == "build_failed", "{build}");
    ensure!(log(&fixture, &id, "stdout").await? == "listening\n");

    agent.obey("probe", Does::end(0));
    let build = built(&fixture, recipe).await?;
    ensure!(statuses(&build) == ["cached", "succeeded", "succeeded"], "{build}");
    let snapshot = result(&fixture, &build["version"]).await?;
    ensure!(agent.now().snapshots.contains(&snapshot) && agent.now().images.is_empty(), "{snapshot}");
    creates(&fixture);
    let again = built(&fixture, recipe).await?;
    ensure!(statuses(&again) == ["cached"; 3] && creates(&fixture).is_empty(), "{again}");
    ensure!(result(&fixture, &again["version"]).await? == snapshot);

    // Without a check, it must run on.
    agent.obey("attach start", Does { ends: Some(0), ..serves });
    let id = ask(&fixture, &json!({"name": "web", "recipe": "RUN one\nSTART serve\n"})).await?;
    let build = wait(&fixture, &id, "failed").await?;
    ensure!(
        build["error"]["message"].as_str().is_some_and(|told| told.contains("add a HEALTHCHECK")),
        "{build}"
    );
    fixture.stop().await
}

/// A check may fail during its start period, however few retries it has; without one the first failure counts.
pub(crate) async fn a_check_may_fail_in_its_start_period(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    agent.obey("attach start", Does::default());
    agent.obey("probe", Does::end(7));
    let recipe =
        |flags: &str| format!("START serve\nHEALTHCHECK --interval=200ms {flags}--retries=1 CMD probe\n");
    let id = ask(&fixture, &json!({"name": "web", "recipe": recipe("")})).await?;
    let build = wait(&fixture, &id, "failed").await?;
    let told = build["error"]["message"].as_str().unwrap_or_default();
    ensure!(told.contains("failed 1 times: it ended with 7"), "{build}");
    commands(&fixture);

    let id = ask(&fixture, &json!({"name": "web", "recipe": recipe("--start-period=1h ")})).await?;
    let is_tried = async || {
        let tries = agent.now().commands.iter().filter(|command| *command == "probe").count();
        (tries >= 3).then_some(())
    };
    wait_until("three tries of the check", SOON, is_tried).await?;
    agent.obey("probe", Does::end(0));
    let build = wait(&fixture, &id, "succeeded").await?;
    ensure!(statuses(&build).iter().all(|status| *status == "succeeded"), "{build}");
    let snapshot = result(&fixture, &build["version"]).await?;
    ensure!(agent.now().snapshots.contains(&snapshot), "{snapshot}");
    fixture.stop().await
}

/// Files become those of the step's user or of who is named, and nothing of a refused recipe is done.
pub(crate) async fn files_are_copied_and_refusals_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let recipe =
        "USER app\nCOPY <<a /srv/x\n1\na\nCOPY --chown=7:8 <<b /etc/\n2\nb\nRUN <<s\n#!/bin/sh\ntrue\ns\n";
    built(&fixture, recipe).await?;
    let written = std::mem::take(&mut fixture.agent().now().written);
    let to: Vec<_> = written
        .iter()
        .map(|one| {
            (one.open.path.as_str(), one.open.owner.as_str(), one.open.group.as_str(), one.size > 1000)
        })
        .collect();
    ensure!(
        to == [("/srv", "app", "", true), ("/etc", "7", "8", true), ("/run/wrenn-script", "", "", false)],
        "{to:?}"
    );
    ensure!(commands(&fixture) == ["/run/wrenn-script"]);
    creates(&fixture);
    for (recipe, status, code, told) in [
        ("RUN\nADD a b", 400, "invalid_request", "line 2"),
        ("RUN a\nCOPY missing /x", 400, "invalid_request", "line 2, column 1, COPY: \"missing\""),
        ("RUN --secret=s a", 400, "invalid_request", "the secret s"),
        ("FROM template:none\nRUN a", 404, "not_found", "template:none"),
        ("FROM web:v9\nRUN a", 404, "not_found", "it has latest"),
    ] {
        let reply = fixture.api.post(PATH, &json!({"name": "other", "recipe": recipe})).await?;
        let reply = reply.expect_error(status, code).with_context(|| recipe.to_owned())?.json();
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains(told), "{recipe}: {message}");
    }
    ensure!(creates(&fixture).is_empty());
    fixture.stop().await
}
