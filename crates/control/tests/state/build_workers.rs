// SPDX-License-Identifier: Apache-2.0
//! Cases of those who work on builds: workers that die, builds that are cancelled, and what is left of both.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_api::BuildId;
use wrenn_control::Limits;
use wrenn_testkit::wait_until;

use crate::{
    agent::Does,
    builds::{PATH, ask, get, log, start, statuses, wait},
    fixture::{Fixture, SOON},
    second,
    stores::Stores,
};

/// A short lease, so that workers learn soon that they have lost theirs, and not so short that a slow machine lets one end that is
/// renewed.
pub(crate) fn short() -> Limits {
    let mut limits = Limits::default();
    limits.lease = Duration::from_secs(4);
    limits
}

/// Waits until the first host runs this command.
pub(crate) async fn runs(fixture: &Fixture, command: &str) -> Result<()> {
    let is = async || fixture.agent().now().commands.iter().any(|one| one == command).then_some(());
    wait_until(&format!("{command} to run"), SOON, is).await
}

/// Waits until the caller of this command has left it.
pub(crate) async fn is_left(fixture: &Fixture, command: &str) -> Result<()> {
    let is = async || fixture.agent().now().left.iter().any(|one| one == command).then_some(());
    wait_until(&format!("{command} to be left"), SOON, is).await
}

/// Changes what the database has of a build.
pub(crate) async fn change(fixture: &Fixture, id: &str, what: &str) -> Result<()> {
    let id = id.parse::<BuildId>()?.uuid();
    fixture.sql(&format!("UPDATE builds SET {what} WHERE id = '{id}'")).await
}

/// What is as if its worker had died, with so many attempts, and so that nobody may go on with it yet.
pub(crate) fn dead(attempt: u32) -> String {
    format!("token = token + 1, attempt = {attempt}, lease_until = now() + interval '1 hour'")
}

/// A worker that has lost its lease stops at once, and another one goes on after the last result.
pub(crate) async fn another_worker_goes_on_after_the_last_result(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = start(stores, name, 1, short()).await?;
    let agent = fixture.agent().clone();
    agent.obey("two", Does::default());
    let id = ask(&fixture, &json!({"name": "web", "recipe": "RUN one\nRUN two\n"})).await?;
    runs(&fixture, "two").await?;
    let first = wait(&fixture, &id, "running").await?;
    change(&fixture, &id, &dead(1)).await?;
    is_left(&fixture, "two").await?;
    let logged = log(&fixture, &id, "system").await?;
    agent.obey("two", Does::end(0));
    ensure!(get(&fixture, &id).await?["status"] == "running", "the worker wrote without a lease");
    change(&fixture, &id, "lease_until = now()").await?;
    let build = wait(&fixture, &id, "succeeded").await?;
    ensure!(build["attempt"] == 2 && build["version"] == 1, "{build}");
    // The first worker's step is told as it was, and not done again.
    ensure!(statuses(&build) == ["succeeded"; 2] && build["steps"][0] == first["steps"][0], "{build}");
    ensure!(agent.now().commands == ["one", "two", "two"], "{:?}", agent.now().commands);
    let asked = agent.now().creates.clone();
    ensure!(asked.len() == 2 && agent.now().snapshots.contains(&asked[1].snapshot_id), "{asked:?}");
    ensure!(agent.was_told_to_destroy(&asked[0].sandbox_id), "the sandbox of the first worker is left");
    let all = log(&fixture, &id, "system").await?;
    ensure!(all.starts_with(&logged) && all.contains("attempt 2"), "{all}");
    fixture.stop().await
}

/// A build that has killed three workers is given up.
pub(crate) async fn a_build_whose_workers_die_is_given_up(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, short()).await?;
    second::wait_until_over().await;
    fixture.agent().obey("kill", Does::default());
    let id = ask(&fixture, &json!({"name": "web", "recipe": "RUN kill\n"})).await?;
    for attempt in 1..=3_u32 {
        let begun = async || {
            let build = get(&fixture, &id).await.ok()?;
            (build["attempt"] == attempt && build["steps"][0]["status"] == "running").then_some(())
        };
        wait_until(&format!("attempt {attempt}"), SOON, begun).await?;
        let gone =
            format!("token = token + 1, lease_until = now() - interval '1 second', attempt = {attempt}");
        change(&fixture, &id, &gone).await?;
    }
    let build = wait(&fixture, &id, "failed").await?;
    ensure!(build["error"]["code"] == "build_parked" && build["attempt"] == 3, "{build}");
    ensure!(build["error"]["message"].as_str().is_some_and(|told| told.contains("died 3 times")), "{build}");
    // The last worker may have died before it began the step again.
    ensure!(["failed", "pending"].contains(&statuses(&build)[0]), "no step goes on: {build}");
    fixture.stop().await
}

/// A build that waits is cancelled at once, and one that runs soon; one that has ended is not.
pub(crate) async fn builds_are_cancelled(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    agent.obey("forever", Does::default());
    let mut ids = Vec::new();
    // As many as the server has workers, and one more.
    for number in 0..3 {
        let recipe = format!("RUN forever {number}\n");
        ids.push(ask(&fixture, &json!({"name": format!("t{number}"), "recipe": recipe})).await?);
        if number < 2 {
            runs(&fixture, &format!("forever {number}")).await?;
        }
    }
    let cancel = async |id: &str| fixture.api.delete(&format!("{PATH}/{id}")).await;
    cancel(&ids[2]).await?.expect(204)?;
    let waiting = get(&fixture, &ids[2]).await?;
    ensure!(waiting["status"] == "cancelled" && waiting["started_at"].is_null(), "{waiting}");
    cancel(&ids[0]).await?.expect(204)?;
    let running = wait(&fixture, &ids[0], "cancelled").await?;
    ensure!(running["error"].is_null() && running["ended_at"].is_string(), "{running}");
    is_left(&fixture, "forever 0").await?;
    let sandbox = running["sandbox_id"].as_str().context("no sandbox")?;
    fixture.wait_status(sandbox, "stopped").await?;
    ensure!(log(&fixture, &ids[0], "system").await?.ends_with("the build was cancelled"));
    for ended in [&ids[0], &ids[2]] {
        cancel(ended).await?.expect_error(409, "conflict")?;
    }
    cancel(&BuildId::new().to_string()).await?.expect_error(404, "not_found")?;
    ensure!(get(&fixture, &ids[1]).await?["status"] == "running", "another build was cancelled");
    let all = fixture.api.get(&format!("{PATH}?limit=2")).await?.expect(200)?.json();
    ensure!(all[0]["id"] == ids[2] && all[1]["id"] == ids[1] && all[2].is_null(), "{all}");
    fixture.stop().await
}

/// A build starts from what its base was when it was asked for, whatever becomes of the tag.
pub(crate) async fn a_base_is_what_it_was_when_it_was_asked_for(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = start(stores, name, 1, short()).await?;
    let agent = fixture.agent().clone();
    let base = "ENV A=1\nWORKDIR /srv\nRUN one\n";
    wait(&fixture, &ask(&fixture, &json!({"name": "base", "recipe": base})).await?, "succeeded").await?;
    agent.obey("two", Does::default());
    let id = ask(&fixture, &json!({"name": "web", "recipe": "FROM base\nRUN two\n"})).await?;
    runs(&fixture, "two").await?;
    change(&fixture, &id, &dead(1)).await?;
    is_left(&fixture, "two").await?;
    agent.obey("two", Does::end(0));
    let other = json!({"name": "base", "recipe": "RUN other\n"});
    let other = wait(&fixture, &ask(&fixture, &other).await?, "succeeded").await?;
    ensure!(other["version"] == 2, "{other}");
    change(&fixture, &id, "lease_until = now()").await?;
    wait(&fixture, &id, "succeeded").await?;
    let stored =
        "SELECT concat_ws(' ', base->>'kind', base->>'name', base->>'version', base->'context'->>'workdir')
        FROM builds WHERE name = 'web'";
    ensure!(fixture.value(stored).await? == "version base 1 /srv");
    let image = fixture
        .value("SELECT replace(image_id::text, '-', '') FROM template_versions WHERE name = 'base' AND version = 1")
        .await?;
    let asked: Vec<_> = agent.now().creates.iter().map(|asked| asked.image_id.clone()).collect();
    ensure!(asked == [String::new(), image.clone(), String::new(), image], "{asked:?}");
    // What the base has of its own is what the new template has.
    let has = "SELECT concat_ws(' ', envs->>'A', workdir) FROM template_versions WHERE name = 'web'";
    ensure!(fixture.value(has).await? == "1 /srv");
    let sizes = json!({"name": "small", "recipe": "FROM base\nRUN a\n", "disk_size_mb": 512});
    fixture.api.post(PATH, &sizes).await?.expect_error(400, "invalid_request")?;
    fixture.stop().await
}

/// What builds leave on a host goes when nothing refers to it, and only then.
pub(crate) async fn what_nothing_refers_to_is_removed(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    agent.obey("attach start", Does::default());
    let recipe = "RUN one\nSTART serve\n";
    wait(&fixture, &ask(&fixture, &json!({"name": "web", "recipe": recipe})).await?, "succeeded").await?;
    ensure!(agent.now().snapshots.len() == 2, "{:?}", agent.now().snapshots);
    let listed: Value = fixture.api.get("/v1/snapshots").await?.expect(200)?.json();
    ensure!(listed == json!([]), "a result of a build is a snapshot of the team: {listed}");
    let old = "UPDATE snapshots SET lease_until = now() - interval '2 hours'";
    fixture.sql(&format!("{old}; UPDATE layers SET last_used_at = now() - interval '15 days'")).await?;
    fixture.wait_value("SELECT count(*)::text FROM layers", "0").await?;
    fixture.wait_value("SELECT count(*)::text FROM snapshots", "1").await?;
    let kept = fixture.value("SELECT replace(snapshot_id::text, '-', '') FROM template_versions").await?;
    let is_alone = async || {
        let snapshots = agent.now().snapshots.iter().cloned().collect::<Vec<_>>();
        (snapshots == [kept.clone()]).then_some(())
    };
    wait_until("the other snapshot to be removed", SOON, is_alone).await?;
    fixture.api.delete("/v1/templates/web").await?.expect(204)?;
    fixture.wait_value("SELECT count(*)::text FROM snapshots", "0").await?;
    let old = "UPDATE builds SET ended_at = now() - interval '15 days'";
    fixture.sql(old).await?;
    fixture
        .wait_value("SELECT concat((SELECT count(*) FROM builds), (SELECT count(*) FROM build_logs))", "00")
        .await?;
    fixture.stop().await
}
