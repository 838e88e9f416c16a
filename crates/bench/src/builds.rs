// SPDX-License-Identifier: Apache-2.0
//! Time of builds of which all or nearly all is in the cache, and of creates from a template that was built, compared with creates
//! from `minimal`.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use tokio::time::sleep;
use wrenn_testkit::Stack;

use crate::{create, row::Row};

const PATH: &str = "/v1/templates/builds";
const ROUNDS: usize = 10;
/// Creates of each side.
const CREATES: usize = 20;
/// Interval between looks at a build, which is what a measurement of it may be off by.
const LOOK: Duration = Duration::from_millis(10);
/// Longer than any build here takes.
const LIMIT: Duration = Duration::from_secs(600);

/// A recipe with a step of each kind that is cached; the last one runs a command.
fn recipe(last: &str) -> String {
    let first =
        "FROM minimal\nENV A=1\nRUN mkdir /bench\nUSER app\nWORKDIR /srv\nCOPY <<text /srv/a\na\ntext\n";
    format!("{first}RUN {last}\n")
}

/// Builds a recipe in these sizes; returns the build and the time from the request to its end.
async fn build(stack: &Stack, name: &str, recipe: &str, sizes: &Value) -> Result<(Value, Duration)> {
    let mut body = sizes.clone();
    body["name"] = json!(name);
    body["recipe"] = json!(recipe);
    let begin = Instant::now();
    let asked = stack.api.post(PATH, &body).await?.expect(201)?.json();
    let path = format!("{PATH}/{}", asked["id"].as_str().unwrap_or_default());
    while begin.elapsed() < LIMIT {
        let build = stack.api.get(&path).await?.expect(200)?.json();
        match build["status"].as_str() {
            Some("pending" | "running") => sleep(LOOK).await,
            Some("succeeded") => return Ok((build, begin.elapsed())),
            _ => bail!("the build did not succeed: {build}"),
        }
    }
    bail!("the build of {name} did not end within {LIMIT:?}")
}

/// Statuses of the steps of a build.
fn statuses(build: &Value) -> Vec<&str> {
    let steps = build["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    steps.iter().filter_map(|step| step["status"].as_str()).collect()
}

/// Measures builds that are wholly cached, and builds whose last step is another one each time.
async fn cached(stack: &Stack) -> Result<Vec<Row>> {
    let (usual, first) = (json!({}), recipe("echo 0"));
    build(stack, "bench", &first, &usual).await?;
    let beside = stack.api.create(&json!({})).await?;
    let (mut whole, mut changed, mut commands) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let (again, took) = build(stack, "bench", &first, &usual).await?;
        ensure!(statuses(&again).iter().all(|status| *status == "cached"), "{again}");
        whole.push(took);

        let command = format!("echo {round}");
        let (other, took) = build(stack, "bench", &recipe(&command), &usual).await?;
        let told = statuses(&other);
        let [before @ .., last] = told.as_slice() else { bail!("no steps: {other}") };
        ensure!(*last == "succeeded" && before.iter().all(|status| *status == "cached"), "{other}");
        changed.push(took);

        let begin = Instant::now();
        let ran = stack.api.exec(&beside, &["/bin/sh", "-c", &command]).await?;
        ensure!(ran["exit_code"] == 0, "{ran}");
        commands.push(begin.elapsed());
    }
    stack.api.remove(&beside).await?;
    stack.api.delete("/v1/templates/bench").await?.expect(204)?;
    let what = "a build with one changed last step − the command of that step (ms)";
    Ok(vec![
        Row::time("a build whose steps are all cached (ms)", &whole, 2000.0),
        Row::difference(what, &changed, &commands, 2000.0),
    ])
}

/// Measures creates from a template with a process that runs. Both sides go on from memory, and alternate.
async fn creates(stack: &Stack) -> Result<Row> {
    create::warm_up(stack).await?;
    let minimal = json!({});
    let id = stack.api.create(&minimal).await?;
    let record = stack.api.get(&format!("/v1/sandboxes/{id}")).await?.expect(200)?.json();
    stack.api.remove(&id).await?;
    // The same sizes, so that the memory of both is as large.
    let sizes = json!({
        "vcpus": record["vcpus"], "memory_mb": record["memory_mb"], "disk_size_mb": record["disk_size_mb"],
    });
    let recipe = "FROM minimal\nSTART sleep infinity\nHEALTHCHECK --interval=1s CMD /bin/true\n";
    build(stack, "bench-started", recipe, &sizes).await?;
    let built = json!({"template": "bench-started"});
    // The first use makes copies.
    create::over_the_api(stack, &built).await?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..CREATES {
        floor.push(create::over_the_api(stack, &minimal).await?);
        ours.push(create::over_the_api(stack, &built).await?);
    }
    stack.api.delete("/v1/templates/bench-started").await?.expect(204)?;
    Ok(Row::ratio("create from a built template to first exec ÷ from minimal", &ours, &floor, 1.1))
}

/// Measures builds, and what they make.
pub(crate) async fn of_templates(stack: &Stack) -> Result<Vec<Row>> {
    let mut rows = cached(stack).await?;
    rows.push(creates(stack).await?);
    Ok(rows)
}
