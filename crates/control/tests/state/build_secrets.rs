// SPDX-License-Identifier: Apache-2.0
//! Cases of builds with secrets, and with users that have groups: what the sandbox gets, and what is left of it.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_control::Limits;

use crate::{
    agent::Does,
    builds::{PATH, ask, built, log, misses, start, statuses, wait},
    fixture::Fixture,
    stores::Stores,
};

/// A value that can be searched for.
const VALUE: &str = "hunter2-of-the-build";

/// Number of rows in which the value is, of whatever column.
async fn rows_with_it(fixture: &Fixture) -> Result<String> {
    fixture
        .value(&format!(
            "SELECT ((SELECT count(*) FROM builds b WHERE b::text LIKE '%{VALUE}%')
                + (SELECT count(*) FROM build_logs l WHERE l::text LIKE '%{VALUE}%')
                + (SELECT count(*) FROM layers l WHERE l::text LIKE '%{VALUE}%')
                + (SELECT count(*) FROM template_versions v WHERE v::text LIKE '%{VALUE}%'))::text"
        ))
        .await
}

fn asked_for(recipe: &str, secrets: &Value) -> Value {
    json!({"name": "web", "recipe": recipe, "secrets": secrets})
}

/// A secret is in the sandbox for its step only, which keeps the disk alone, and what follows is done in another sandbox.
pub(crate) async fn a_secret_is_there_for_its_step(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    let shown = format!("it is {VALUE}\n");
    agent.obey("use", Does { stdout: shown.clone().into(), stderr: shown.into(), ..Does::end(0) });
    let recipe = "USER app:web\nRUN --secret=token,target=/home/app/.token --secret=other,required=false use\nRUN after\n";
    let id = ask(&fixture, &asked_for(recipe, &json!({"token": VALUE}))).await?;
    let build = wait(&fixture, &id, "succeeded").await?;
    ensure!(statuses(&build) == ["succeeded"; 3] && !build.to_string().contains(VALUE), "{build}");
    for stream in ["stdout", "stderr"] {
        ensure!(log(&fixture, &id, stream).await? == "it is ***\n");
    }
    ensure!(rows_with_it(&fixture).await? == "0");
    let asked = std::mem::take(&mut agent.now().creates);
    ensure!(asked.len() == 2 && asked[0].snapshot_id.is_empty(), "{asked:?}");
    ensure!(agent.now().snapshots.contains(&asked[1].snapshot_id), "{asked:?}");
    let (first, second) = (agent.calls_of(&asked[0].sandbox_id), agent.calls_of(&asked[1].sandbox_id));
    ensure!(
        first == ["make_user", "snapshot", "put_secret", "remove_secrets", "snapshot_of_disk"],
        "{first:?}"
    );
    ensure!(second == ["snapshot"], "{second:?}");
    let put = std::mem::take(&mut agent.now().secrets);
    ensure!(put.len() == 1 && put[0].value == VALUE.as_bytes(), "{}", put.len());
    let of_file = (put[0].id.as_str(), put[0].target.as_str(), put[0].user.as_str());
    ensure!(of_file == ("token", "/home/app/.token", "app:web"), "{of_file:?}");
    fixture.wait_value("SELECT string_agg(DISTINCT status, '') FROM sandboxes", "stopped").await?;
    let user = "SELECT default_user FROM template_versions";
    ensure!(fixture.value(user).await? == "app:web");
    // Another value is no reason to do it again.
    let again = ask(&fixture, &asked_for(recipe, &json!({"token": "another value"}))).await?;
    let again = wait(&fixture, &again, "succeeded").await?;
    ensure!(statuses(&again) == ["cached"; 3], "{again}");
    let other = recipe.replace("target=/home/app/.token", "target=/home/app/token");
    let id = ask(&fixture, &asked_for(&other, &json!({"token": VALUE}))).await?;
    let other = wait(&fixture, &id, "succeeded").await?;
    ensure!(misses(&other)[1] == "the instruction changed", "{other}");
    fixture.stop().await
}

/// The last step needs no other sandbox; one that fails leaves no secret in the sandbox that stays.
pub(crate) async fn a_failed_step_leaves_no_secret(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent().clone();
    agent.obey("boom", Does { stdout: VALUE.into(), ..Does::end(7) });
    let failing = asked_for("RUN --secret=token boom\n", &json!({"token": VALUE}));
    let build = wait(&fixture, &ask(&fixture, &failing).await?, "failed").await?;
    ensure!(build["error"]["message"] == "step 1 (line 1) ended with 7", "{build}");
    let asked = std::mem::take(&mut agent.now().creates);
    ensure!(agent.calls_of(&asked[0].sandbox_id) == ["put_secret", "remove_secrets"], "{asked:?}");
    let sandbox = fixture.record(build["sandbox_id"].as_str().context("no sandbox")?).await?;
    ensure!(sandbox["status"] == "running" && rows_with_it(&fixture).await? == "0", "{sandbox}");

    let last = asked_for("RUN --secret=token fine\n", &json!({"token": VALUE}));
    let build = wait(&fixture, &ask(&fixture, &last).await?, "succeeded").await?;
    ensure!(build["version"] == 1 && agent.now().creates.len() == 1, "{build}");
    // What another template starts from it is what there is without secrets.
    let next = built(&fixture, "FROM web\nRUN more\n").await?;
    ensure!(statuses(&next) == ["succeeded"; 2], "{next}");
    fixture.stop().await
}

/// What does not fit to the recipe is refused, with the line, and without the value.
pub(crate) async fn secrets_fit_to_the_recipe(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    for (recipe, secrets, told) in [
        ("RUN a\nRUN --secret=token b", json!({}), "line 2, RUN: it needs the secret token"),
        ("RUN a", json!({"token": VALUE}), "no step uses token"),
        ("RUN --secret=token b", json!({"token": "abc"}), "less than 4 bytes"),
        ("RUN --secret=token,env=T b", json!({"token": VALUE}), "cannot be a variable"),
        ("START a\nRUN --secret=token b", json!({"token": VALUE}), "write the START behind it"),
    ] {
        let refused = fixture.api.post(PATH, &asked_for(recipe, &secrets)).await?.expect(400)?.json();
        let message = refused["error"]["message"].as_str().context("no message")?;
        ensure!(message.contains(told) && !message.contains(VALUE), "{message}");
    }
    // Without the file, as in a Dockerfile.
    let build = built(&fixture, "RUN --mount=type=secret,id=token b").await?;
    ensure!(statuses(&build) == ["succeeded"], "{build}");
    ensure!(fixture.agent().now().secrets.is_empty());
    fixture.stop().await
}
