// SPDX-License-Identifier: Apache-2.0
//! Cases of builds that are cancelled while they wait for others, and of templates that are deleted while they are built.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;
use wrenn_control::{BuildSettings, Limits};
use wrenn_testkit::wait_until;

use crate::{
    agent::{Agent, Does},
    build_faults::gate,
    build_workers::runs,
    builds::{PATH, ask, built, log, result, start, wait},
    fixture::{Fixture, SOON},
    stores::Stores,
    templates::add_image,
};

/// Time for which a sandbox of a build is kept that nobody uses.
const KEEP: Duration = Duration::from_secs(12);

/// Lets a host take no more sandboxes.
async fn fill(fixture: &Fixture, agent: &Agent) -> Result<()> {
    let host = agent.id.uuid();
    fixture
        .sql(&format!("UPDATE hosts SET ejected_until = now() + interval '1 hour' WHERE id = '{host}'"))
        .await
}

async fn cancel(fixture: &Fixture, id: &str) -> Result<()> {
    fixture.api.delete(&format!("{PATH}/{id}")).await?.expect(204)?;
    let build = wait(fixture, id, "cancelled").await?;
    ensure!(build["version"].is_null() && build["error"].is_null(), "{build}");
    Ok(())
}

/// A build for which no host has room is cancelled while it waits for one, and its worker takes the next build.
pub(crate) async fn a_build_that_waits_for_a_host_is_cancelled(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut settings = BuildSettings::default();
    settings.workers = 1;
    let fixture = Fixture::start_with(stores, name, 1, Limits::default(), settings).await?;
    fixture.agent().obey("", Does::end(0));
    fill(&fixture, fixture.agent()).await?;
    let id = ask(&fixture, &json!({"name": "web", "recipe": "RUN one\n"})).await?;
    let waits = async || {
        let told = log(&fixture, &id, "system").await.ok()?;
        told.contains("waiting for a host: every host is full").then_some(())
    };
    wait_until("the build to wait for a host", SOON, waits).await?;
    cancel(&fixture, &id).await?;
    ensure!(fixture.agent().now().creates.is_empty(), "a sandbox was made");
    fixture.sql("UPDATE hosts SET ejected_until = NULL").await?;
    built(&fixture, "RUN two\n").await?;
    fixture.stop().await
}

/// A build is cancelled while a host gets its base from another one, which does not break off; a sandbox that is made afterwards all
/// the same goes when nobody has used it for a while.
pub(crate) async fn a_build_whose_base_is_fetched_is_cancelled(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut settings = BuildSettings::default();
    settings.keep = KEEP;
    let fixture = Fixture::start_with(stores, name, 2, Limits::default(), settings).await?;
    let (first, second) = (fixture.agents[0].clone(), fixture.agents[1].clone());
    second.obey("", Does::end(0));
    add_image(&fixture, ("base", 1), &["latest"]).await?;
    fill(&fixture, &first).await?;
    gate(&second.take_gate, true);
    let body = json!({"name": "web", "recipe": "FROM base\nRUN one\n", "disk_size_mb": 8192});
    let id = ask(&fixture, &body).await?;
    fixture.wait_value("SELECT count(*)::text FROM copies WHERE state = 'fetching'", "1").await?;
    cancel(&fixture, &id).await?;
    gate(&second.take_gate, false);
    fixture.wait_value("SELECT string_agg(state, ' ') FROM copies", "ready").await?;
    ensure!(second.now().commands.is_empty(), "a cancelled build goes on");
    let again = ask(&fixture, &body).await?;
    wait(&fixture, &again, "succeeded").await?;
    ensure!(second.now().taken.len() == 1, "the base was fetched once more");
    fixture.wait_value("SELECT count(*)::text FROM sandboxes WHERE status <> 'stopped'", "0").await?;
    let is_empty = async || second.now().sandboxes.is_empty().then_some(());
    wait_until("no sandbox on the host", SOON, is_empty).await?;
    fixture.stop().await
}

/// A template that is deleted while a version of it is built is gone at once; what the build makes is then all that there is of it.
/// Without a version there is nothing to delete, and the build goes on.
pub(crate) async fn a_template_is_deleted_while_it_is_built(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    let former = result(&fixture, &built(&fixture, "RUN one\n").await?["version"]).await?;
    ensure!(agent.now().images.contains(&former), "{former}");
    gate(&agent.image_gate, true);
    agent.now().calls.clear();
    let id = ask(&fixture, &json!({"name": "web:next", "recipe": "RUN two\n"})).await?;
    let is_there = async || agent.now().calls.iter().any(|(what, _)| *what == "make_image").then_some(());
    wait_until("the build to be at its end", SOON, is_there).await?;
    fixture.api.delete("/v1/templates/web").await?.expect(204)?;
    let gone = fixture.api.post("/v1/sandboxes", &json!({"template": "web"})).await?;
    gone.expect_error(404, "not_found")?;
    gate(&agent.image_gate, false);
    let build = wait(&fixture, &id, "succeeded").await?;
    ensure!(build["version"] == 1, "{build}");
    let tags = "SELECT string_agg(concat(tag, '=', version), ' ') FROM template_tags WHERE name = 'web'";
    ensure!(fixture.value(tags).await? == "next=1");
    let image = result(&fixture, &build["version"]).await?;
    let is_alone = async || {
        let images = agent.now().images.iter().cloned().collect::<Vec<_>>();
        (images == [image.clone()]).then_some(())
    };
    wait_until("the image of the deleted version to go", SOON, is_alone).await?;

    agent.obey("forever", Does::default());
    let id = ask(&fixture, &json!({"name": "soon", "recipe": "RUN forever\n"})).await?;
    runs(&fixture, "forever").await?;
    fixture.api.delete("/v1/templates/soon").await?.expect_error(404, "not_found")?;
    ensure!(wait(&fixture, &id, "running").await?["error"].is_null());
    cancel(&fixture, &id).await?;
    fixture.stop().await
}
