// SPDX-License-Identifier: Apache-2.0
//! The connection to PostgreSQL of the server that works on a build breaks at every statement, before the statement and after it: the
//! build succeeds all the same, as one version, and nothing is left that nobody knows of. Among the statements of the build there are
//! those of the server's other workers, whose connections break as well. The short form has a sample of the statements.

use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wrenn_control::{BuildSettings, Limits};
use wrenn_testkit::{short_or_long, wait_until};

use crate::{
    agent::Does,
    build_workers::change,
    builds::{ask, get, statuses},
    cutter::{Cutter, When},
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// More statements than a build has, and fewer.
const MOST: usize = 500;
const LEAST: usize = 20;
/// Number of statements from one of the sample to the next.
const APART: usize = 100;
/// Time for which the sandbox of a build is kept whose worker could not delete it.
const KEEP: Duration = Duration::from_secs(10);

/// A server that takes builds and works on none, and another one that works on them, with the proxy between this one and the database.
struct Cut {
    fixture: Fixture,
    cutter: Cutter,
}

impl Cut {
    async fn start(stores: &Arc<Stores>, name: &str) -> Result<Self> {
        let mut settings = BuildSettings::default();
        (settings.workers, settings.keep) = (0, KEEP);
        let mut fixture = Fixture::start_with(stores, name, 1, Limits::default(), settings).await?;
        fixture.agent().obey("", Does::end(0));
        fixture.agent().obey("attach start", Does::default());
        let cutter = Cutter::start(stores.postgres_socket()).await?;
        fixture.builds.workers = 1;
        fixture.serve_at(cutter.url(name)).await?;
        Ok(Self { fixture, cutter })
    }

    /// Builds what `recipe` makes of a name, cut at one statement after the other, until a build has ended before it was cut.
    async fn everywhere(&self, recipe: impl Fn(&str) -> String) -> Result<()> {
        let mut again = 0;
        for when in [When::Before, When::After] {
            let mut numbers = (0..MOST).step_by(short_or_long(APART, 1));
            loop {
                let statements = numbers.next().context("it never ends")?;
                let name = format!("{when:?}{statements}").to_lowercase();
                let (build, was_cut) = self
                    .build(&name, &recipe(&name), when, statements)
                    .await
                    .with_context(|| name.clone())?;
                self.is_one_version(&name, &build).await.with_context(|| name.clone())?;
                again += usize::from(build["attempt"] == 2);
                if !was_cut {
                    ensure!(statements >= LEAST, "only {statements} statements were seen");
                    break;
                }
            }
        }
        // A sample may hit what other workers of the server do.
        ensure!(again > 0 || short_or_long(true, false), "no worker lost its build");
        self.nothing_is_left().await
    }

    /// Builds a template while a connection breaks after this number of statements; returns the build when it has ended, and whether
    /// a connection broke before.
    async fn build(&self, name: &str, recipe: &str, when: When, statements: usize) -> Result<(Value, bool)> {
        let fixture = &self.fixture;
        self.cutter.arm(statements, when);
        let id = ask(fixture, &json!({"name": name, "recipe": recipe})).await?;
        let is_over = async || {
            let now = get(fixture, &id).await.ok()?;
            (has_ended(&now) || self.cutter.has_cut()).then_some(())
        };
        let over = wait_until("the cut, or the end of the build", SOON, is_over).await;
        let was_cut = self.cutter.disarm().was_cut;
        over?;
        let mut last = Value::Null;
        let ended = async || {
            // As at the end of its lease. The only worker takes it again when it has lost it, and not while it works on it.
            change(fixture, &id, "lease_until = now()").await.ok()?;
            last = get(fixture, &id).await.ok()?;
            has_ended(&last).then(|| last.clone())
        };
        let ended = wait_until("the end of the build", SOON, ended).await;
        Ok((ended.with_context(|| format!("it is {last}"))?, was_cut))
    }

    /// Fails unless a build has made the only version of its template, and lost no more than one worker.
    async fn is_one_version(&self, name: &str, build: &Value) -> Result<()> {
        ensure!(build["status"] == "succeeded" && build["version"] == 1, "{build}");
        ensure!(
            build["error"].is_null() && build["attempt"].as_u64().is_some_and(|made| made <= 2),
            "{build}"
        );
        let is_done = |status: &&str| ["succeeded", "cached"].contains(status);
        ensure!(statuses(build).iter().all(is_done), "{build}");
        let rows = format!(
            "SELECT concat_ws(' ', (SELECT count(*) FROM template_versions WHERE name = '{name}'),
                (SELECT count(*) FROM template_tags WHERE name = '{name}' AND tag = 'latest' AND version = 1))"
        );
        let rows = self.fixture.value(&rows).await?;
        ensure!(rows == "1 1", "versions and tags: {rows}");
        Ok(())
    }

    /// Waits until no sandbox is left. Fails if the host has an image or a snapshot of which the database does not know.
    async fn nothing_is_left(&self) -> Result<()> {
        let open = "SELECT count(*)::text FROM sandboxes WHERE status <> 'stopped'";
        self.fixture.wait_value(open, "0").await?;
        let agent = self.fixture.agent();
        let is_empty = async || agent.now().sandboxes.is_empty().then_some(());
        wait_until("no sandbox on the host", SOON, is_empty).await?;
        let known =
            "SELECT replace(image_id::text, '-', '') FROM template_versions WHERE image_id IS NOT NULL
             UNION SELECT replace(image_id::text, '-', '') FROM doomed_images
             UNION SELECT replace(id::text, '-', '') FROM snapshots";
        let known = self.fixture.stores.column(&self.fixture.database, known).await?;
        let known: HashSet<String> = known.into_iter().collect();
        let now = agent.now();
        let unknown: Vec<_> =
            now.images.iter().chain(&now.snapshots).filter(|id| !known.contains(*id)).collect();
        ensure!(unknown.is_empty(), "the host has {unknown:?}");
        Ok(())
    }
}

fn has_ended(build: &Value) -> bool {
    !["pending", "running"].iter().any(|open| build["status"] == *open)
}

/// A build whose template is an image of its disk.
pub(crate) async fn of_a_build_of_an_image(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let cut = Cut::start(stores, name).await?;
    cut.everywhere(|name| format!("COPY <<a /srv/\n{name}\na\nRUN one\nRUN two\n")).await?;
    cut.fixture.stop().await
}

/// A build whose template has the memory of what it has started.
pub(crate) async fn of_a_build_of_a_snapshot(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let cut = Cut::start(stores, name).await?;
    let recipe = |name: &str| format!("RUN one {name}\nSTART serve\nHEALTHCHECK --interval=200ms CMD true\n");
    cut.everywhere(recipe).await?;
    cut.fixture.stop().await
}
