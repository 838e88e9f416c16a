// SPDX-License-Identifier: Apache-2.0
//! Cases of the platform's templates: built by administrators and used by all teams, and replaced on hosts; and of the cache of
//! builds, which is pruned.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_api::TeamId;
use wrenn_control::Limits;
use wrenn_testkit::{Api, Events, wait_until};

use crate::{
    builds::{PATH, ask, built, misses, start, statuses, wait},
    fixture::{Fixture, SOON},
    stores::Stores,
    unauthorized,
};

const ADMIN: &str = "/v1/admin/builds";
const RECIPE: &str = "FROM minimal\nENV A=1\nRUN one\n";

/// Builds a template of the platform, and returns the build when it has succeeded.
async fn build_for_all(fixture: &Fixture, name: &str) -> Result<Value> {
    let body = json!({"name": name, "recipe": RECIPE});
    let asked = fixture.api.post(ADMIN, &body).await?.expect(201)?.json();
    let path = format!("{ADMIN}/{}", asked["id"].as_str().context("no id")?);
    let mut last = Value::Null;
    let is_built = async || {
        last = fixture.api.get(&path).await.ok()?.json();
        (last["status"] == "succeeded").then(|| last.clone())
    };
    let found = wait_until("a build of the platform", SOON, is_built).await;
    found.with_context(|| format!("it is {last}"))
}

/// Returns what a list of templates has under a name.
async fn listed(api: &Api, name: &str) -> Result<Vec<Value>> {
    let all = api.get("/v1/templates").await?.expect(200)?.json();
    Ok(all.as_array().context("no list")?.iter().filter(|one| one["name"] == name).cloned().collect())
}

/// Creates a sandbox, and returns the image that its host was asked for.
async fn image_of_new(fixture: &Fixture, api: &Api, template: &str) -> Result<String> {
    let made = api.post("/v1/sandboxes", &json!({"template": template})).await?.expect(201)?.json();
    let now = fixture.agent().now();
    let asked = now.creates.iter().find(|asked| made["id"] == asked.sandbox_id.as_str());
    Ok(asked.context("the host was not asked")?.image_id.clone())
}

/// What administrators build is there for all teams, under a name that no team can take; a team's own template goes before it.
pub(crate) async fn all_teams_use_what_the_platform_has_built(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let api = &fixture.api;
    unauthorized::team(&fixture, "wrn_stranger", "NULL", "NULL").await?;
    let stranger = api.with_key("wrn_stranger");
    let body = |name: &str| json!({"name": name, "recipe": RECIPE});
    // One that a team has before keeps its meaning there.
    let own = stranger.post(PATH, &body("own")).await?.expect(201)?.json();
    let path = format!("{PATH}/{}", own["id"].as_str().context("no id")?);
    let done = async || (stranger.get(&path).await.ok()?.json()["status"] == "succeeded").then_some(());
    wait_until("the team's own template", SOON, done).await?;
    let mine = image_of_new(&fixture, &stranger, "own").await?;

    let build = build_for_all(&fixture, "tools").await?;
    ensure!(build["version"] == 1 && statuses(&build) == ["succeeded"; 3], "{build}");
    build_for_all(&fixture, "own").await?;
    let id = build["id"].as_str().context("no id")?;
    ensure!(api.get(&format!("{ADMIN}?template=tools")).await?.expect(200)?.json()[0]["id"] == id);
    let mut log = Events::open_at(api, &format!("{ADMIN}/{id}/logs"), None).await?;
    ensure!(log.next(SOON).await?.kind == "log");
    // It is none of a team, not even of the administrator's.
    api.get(&format!("{PATH}/{id}")).await?.expect_error(404, "not_found")?;
    ensure!(api.get(PATH).await?.expect(200)?.json() == json!([]));
    api.delete(&format!("{ADMIN}/{id}")).await?.expect_error(409, "conflict")?;

    for key in [&stranger, api] {
        let all = listed(key, "tools").await?;
        ensure!(all.len() == 1 && all[0]["platform"] == true, "{all:?}");
        ensure!(all[0]["tags"] == json!({"latest": 1}), "{all:?}");
        let versions = key.get("/v1/templates/tools/versions").await?.expect(200)?.json();
        ensure!(versions[0]["version"] == 1 && versions[0]["envs"] == json!({"A": "1"}), "{versions}");
        let image = image_of_new(&fixture, key, "tools").await?;
        ensure!(!image.is_empty() && image == image_of_new(&fixture, key, "tools:latest").await?, "{image}");
        key.post("/v1/sandboxes", &json!({"template": "tools:v9"})).await?.expect_error(404, "not_found")?;
        key.post(PATH, &body("tools")).await?.expect_error(409, "name_reserved")?;
        let sandbox = key.create(&json!({"memory_mb": 256})).await?;
        let snapshot = key.post("/v1/snapshots", &json!({"sandbox_id": sandbox, "name": "tools"})).await?;
        snapshot.expect_error(409, "name_reserved")?;
        key.delete("/v1/templates/tools").await?.expect_error(403, "forbidden")?;
        let moved = key.request(Method::PUT, "/v1/templates/tools/tags/x").json(&json!({"version": 1}));
        key.send(moved).await?.expect_error(404, "not_found")?;
    }
    let all = listed(&stranger, "own").await?;
    ensure!(all.len() == 1 && all[0]["platform"].is_null(), "{all:?}");
    ensure!(image_of_new(&fixture, &stranger, "own").await? == mine);
    ensure!(image_of_new(&fixture, api, "own").await? != mine, "another team has the stranger's");
    stranger.post(PATH, &body("own:next")).await?.expect(201)?;

    // Templates are built on it, also by teams.
    let on_it = json!({"name": "on-it", "recipe": "FROM tools\nRUN two\n"});
    let id = ask(&fixture, &on_it).await?;
    let on_it = wait(&fixture, &id, "succeeded").await?;
    ensure!(statuses(&on_it) == ["succeeded"; 2], "{on_it}");
    // What is in the files of hosts is not built over.
    fixture.api.post(ADMIN, &body("minimal")).await?.expect_error(409, "name_reserved")?;
    let moved = api.request(Method::PUT, "/v1/admin/templates/tools/tags/v1").json(&json!({"version": 1}));
    api.send(moved).await?.expect(200)?;
    ensure!(!image_of_new(&fixture, &stranger, "tools:v1").await?.is_empty());
    api.delete("/v1/admin/templates/tools").await?.expect(204)?;
    api.delete("/v1/admin/templates/tools").await?.expect_error(404, "not_found")?;
    api.delete("/v1/admin/templates/minimal").await?.expect_error(403, "forbidden")?;
    ensure!(listed(&stranger, "tools").await?.is_empty());
    stranger.post(PATH, &body("tools")).await?.expect(201)?;

    let platform = TeamId::PLATFORM.uuid();
    let key = format!(
        "INSERT INTO api_keys (id, team_id, name, prefix, secret_sha256)
         VALUES (gen_random_uuid(), '{platform}', 'x', 'x', 'x')"
    );
    ensure!(fixture.sql(&key).await.is_err(), "somebody can have a key of the platform");
    fixture.stop().await
}

/// The content of a template in the hosts' files is a part of what builds on it depend on; hosts with another one are passed over.
pub(crate) async fn a_replaced_template_is_another_base(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 2, Limits::default()).await?;
    let has = |agent: usize, digit: &str| {
        let digest = digit.repeat(64);
        fixture.agents[agent].now().template_digests.insert("minimal".to_owned(), digest.clone());
        let host = fixture.agents[agent].id.uuid();
        let query = format!("SELECT coalesce(template_digests[1], '') FROM hosts WHERE id = '{host}'");
        (query, format!("minimal@{digest}"))
    };
    for (agent, digit) in [(0, "b"), (1, "a")] {
        let (query, expected) = has(agent, digit);
        fixture.wait_value(&query, &expected).await?;
    }
    built(&fixture, RECIPE).await?;
    let second = built(&fixture, RECIPE).await?;
    ensure!(statuses(&second) == ["cached"; 3], "{second}");
    let creates = |agent: usize| fixture.agents[agent].now().creates.len();
    ensure!((creates(0), creates(1)) == (0, 1), "hosts with another content were chosen");
    for agent in [0, 1] {
        let (query, expected) = has(agent, "c");
        fixture.wait_value(&query, &expected).await?;
    }
    let third = built(&fixture, RECIPE).await?;
    ensure!(misses(&third)[2] == "base digest moved" && statuses(&third)[2] == "succeeded", "{third}");
    let digest = fixture.value("SELECT base ->> 'digest' FROM builds ORDER BY id DESC LIMIT 1").await?;
    ensure!(digest == "c".repeat(64), "{digest}");
    fixture.stop().await
}

/// Results of steps are removed on request, and done again by the next build; those that a build in work may use stay.
pub(crate) async fn what_the_cache_has_is_pruned(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default()).await?;
    let recipe = "FROM minimal\nRUN one\nRUN two\n";
    built(&fixture, recipe).await?;
    let prune = async |query: &str| {
        let reply = fixture.api.delete(&format!("/v1/templates/cache{query}")).await?;
        anyhow::Ok(reply.expect(200)?.json())
    };
    ensure!(prune("?older_than_days=1").await?["results"] == 0);
    for wrong in
        ["?older_than_days=", "?older_than_days=-1", "?older_than_days=3651", "?older_than_days=x", "?age=1"]
    {
        let reply = fixture.api.delete(&format!("/v1/templates/cache{wrong}")).await?;
        reply.expect_error(400, "invalid_request").with_context(|| wrong.to_owned())?;
    }
    ensure!(fixture.api.delete("/v1/admin/templates/cache").await?.expect(200)?.json()["results"] == 0);
    let begun = "INSERT INTO builds (id, team_id, name, tag, recipe, base, vcpus, memory_mb, disk_size_mb, status, lease_until,
            started_at)
        SELECT gen_random_uuid(), id, 'other', 'latest', '', '{}', 1, 512, 5120, 'running', now() + interval '1 hour',
            now() - interval '1 hour' FROM teams WHERE name = 'default'";
    fixture.sql(begun).await?;
    ensure!(prune("").await?["results"] == 0, "what a build uses is gone");
    fixture.sql("UPDATE builds SET status = 'failed', ended_at = now() WHERE name = 'other'").await?;
    // The first step's bytes are not known here.
    let pruned = prune("").await?;
    ensure!(pruned == json!({"results": 2, "bytes": 1 << 20}), "{pruned}");
    ensure!(prune("").await?["results"] == 0);
    let sandbox = fixture.api.post("/v1/sandboxes", &json!({"template": "web"})).await?;
    sandbox.expect(201).context("the template needs what is gone")?;
    let longer = built(&fixture, &format!("{recipe}RUN three\n")).await?;
    ensure!(statuses(&longer) == ["succeeded"; 4], "{longer}");
    ensure!(misses(&longer)[1] == "nothing was built with this step before", "{longer}");
    fixture.stop().await
}
