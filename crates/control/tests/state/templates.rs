// SPDX-License-Identifier: Apache-2.0
//! Cases of templates that a team has built: sandboxes from their versions, tags, names and deletion. The versions are put into
//! the database as a build does it.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;
use wrenn_control::Limits;
use wrenn_rpc::host::v1::CreateRequest;
use wrenn_testkit::{Api, Reply, wait_until};

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
    unauthorized,
};

const PATH: &str = "/v1/templates";
/// The team of the fixture's key.
const TEAM: &str = "(SELECT id FROM teams WHERE name = 'default')";

/// Adds a version of a template, and lets these tags lead to it. It refers to either a snapshot or an image.
async fn add(
    fixture: &Fixture,
    (name, number): (&str, u32),
    tags: &[&str],
    snapshot: Option<Uuid>,
    image: Option<Uuid>,
) -> Result<()> {
    let host = fixture.agent().id.uuid();
    let id = |id: Option<Uuid>| id.map_or_else(|| "NULL".to_owned(), |id| format!("'{id}'"));
    let (snapshot, image) = (id(snapshot), id(image));
    let mut statements = format!(
        "INSERT INTO template_versions (team_id, name, version, build_id, key, host_id, snapshot_id, image_id, size_mb, vcpus,
            memory_mb, disk_size_mb, envs, default_user, workdir)
         VALUES ({TEAM}, '{name}', {number}, gen_random_uuid(), 'key{number}', '{host}', {snapshot}, {image}, 6000, 2,
             1024, 8192, '{{\"A\": \"1\", \"B\": \"2\"}}', 'www-data', '/srv');"
    );
    for tag in tags {
        statements += &format!(
            "INSERT INTO template_tags (team_id, name, tag, version) VALUES ({TEAM}, '{name}', '{tag}', {number})
             ON CONFLICT (team_id, name, tag) DO UPDATE SET version = {number};"
        );
    }
    fixture.sql(&statements).await
}

/// Adds a version that is an image, which the host has, and returns the image's id as the host knows it.
pub(crate) async fn add_image(fixture: &Fixture, version: (&str, u32), tags: &[&str]) -> Result<String> {
    let image = Uuid::now_v7();
    let id = image.simple().to_string();
    fixture.agent().now().images.insert(id.clone());
    add(fixture, version, tags, None, Some(image)).await?;
    Ok(id)
}

/// Adds a version that is a snapshot, and returns the snapshot's id as the host knows it.
pub(crate) async fn add_snapshot(fixture: &Fixture, version: (&str, u32), tags: &[&str]) -> Result<String> {
    let (snapshot, host) = (Uuid::now_v7(), fixture.agent().id.uuid());
    fixture
        .sql(&format!(
            "INSERT INTO snapshots (id, team_id, host_id, status, template, vcpus, memory_mb, disk_size_mb)
             VALUES ('{snapshot}', {TEAM}, '{host}', 'ready', 'minimal', 2, 1024, 8192)"
        ))
        .await?;
    add(fixture, version, tags, Some(snapshot), None).await?;
    Ok(snapshot.simple().to_string())
}

/// Creates a sandbox, and returns it with what its host was asked for.
pub(crate) async fn create(fixture: &Fixture, body: &Value) -> Result<(Value, CreateRequest)> {
    let made = fixture.api.post("/v1/sandboxes", body).await?.expect(201)?.json();
    let of = |request: &&CreateRequest| made["id"] == request.sandbox_id.as_str();
    let asked = fixture.agents.iter().find_map(|agent| agent.now().creates.iter().find(of).cloned());
    let asked = asked.context("no host was asked")?;
    Ok((made, asked))
}

/// Whether the host that has the templates has the sandbox.
fn is_there(fixture: &Fixture, sandbox: &Value) -> bool {
    sandbox["id"].as_str().is_some_and(|id| fixture.agent().now().sandboxes.contains_key(id))
}

/// Sizes of a sandbox.
fn sizes(sandbox: &Value) -> Value {
    json!([sandbox["vcpus"], sandbox["memory_mb"], sandbox["disk_size_mb"]])
}

async fn move_tag(api: &Api, name: &str, tag: &str, body: &Value) -> Result<Reply> {
    api.send(api.request(Method::PUT, &format!("{PATH}/{name}/tags/{tag}")).json(body)).await
}

/// Returns what a list has under a name.
async fn listed(api: &Api, name: &str) -> Result<Option<Value>> {
    let all = api.get(PATH).await?.expect(200)?.json();
    Ok(all.as_array().context("no list")?.iter().find(|one| one["name"] == name).cloned())
}

fn message(reply: &Reply) -> String {
    reply.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
}

/// A tag chooses the version; from it the host is asked for its image or snapshot, environment, user and directory.
pub(crate) async fn a_sandbox_starts_from_the_version_of_its_tag(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 2, Limits::default()).await?;
    let image = add_image(&fixture, ("web", 1), &["v1"]).await?;
    let snapshot = add_snapshot(&fixture, ("web", 2), &["latest", "v2"]).await?;

    let (made, asked) =
        create(&fixture, &json!({"template": "web:v1", "envs": {"B": "3", "C": "4"}})).await?;
    ensure!(made["template"] == "web:v1" && is_there(&fixture, &made), "{made}");
    // Its sizes are chosen, and its disk is as large as the image needs it.
    ensure!(sizes(&made) == json!([1, 512, 6000]), "{made}");
    ensure!((asked.template.as_str(), &asked.image_id) == ("web", &image), "{asked:?}");
    ensure!(asked.snapshot_id.is_empty() && asked.disk_size_mb == 6000, "{asked:?}");
    ensure!(
        (asked.default_user.as_str(), asked.default_workdir.as_str()) == ("www-data", "/srv"),
        "{asked:?}"
    );
    let mut envs: Vec<_> = asked.envs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    envs.sort_unstable();
    ensure!(envs == ["A=1", "B=3", "C=4"], "{envs:?}");
    let larger = json!({"template": "web:v1", "vcpus": 3, "memory_mb": 256, "disk_size_mb": 7000});
    let (made, _) = create(&fixture, &larger).await?;
    ensure!(sizes(&made) == json!([3, 256, 7000]) && is_there(&fixture, &made), "{made}");

    for body in [
        json!({"template": "web"}),
        json!({"template": "web:latest", "vcpus": 2}),
        json!({"template": "web:v2", "memory_mb": 1024, "disk_size_mb": 8192}),
    ] {
        let (made, asked) = create(&fixture, &body).await?;
        ensure!(made["template"] == body["template"] && is_there(&fixture, &made), "{made}");
        ensure!(sizes(&made) == json!([2, 1024, 8192]), "{made}");
        ensure!((asked.template.as_str(), &asked.snapshot_id) == ("web", &snapshot), "{asked:?}");
        ensure!(asked.image_id.is_empty() && asked.default_user == "www-data", "{asked:?}");
    }
    // A template of the platform has no defaults of ours.
    let (made, asked) = create(&fixture, &json!({"template": "minimal"})).await?;
    ensure!(made["template"] == "minimal" && asked.template == "minimal", "{made}, {asked:?}");
    ensure!(asked.image_id.is_empty() && asked.default_user.is_empty() && asked.default_workdir.is_empty());

    for (body, status, code, told) in [
        (json!({"template": "web:v1", "disk_size_mb": 5999}), 400, "invalid_request", "needs 6000"),
        (json!({"template": "web:v2", "vcpus": 1}), 400, "invalid_request", "leave it out"),
        (json!({"template": "web:"}), 400, "invalid_request", "a tag has"),
        (json!({"template": "a/b:c"}), 400, "invalid_request", "a name has"),
        (json!({"template": "web:v3"}), 404, "not_found", "it has latest, v1, v2"),
        (json!({"template": "minimal:latest"}), 404, "not_found", "only such templates have tags"),
        (json!({"template": "nothing"}), 404, "not_found", "nothing"),
    ] {
        let reply = fixture.api.post("/v1/sandboxes", &body).await?.expect_error(status, code)?;
        ensure!(message(&reply).contains(told), "{body}: {}", message(&reply));
    }
    // Its host is the only one that has it, and there is no store.
    let host = fixture.agent().id.uuid();
    let away = "UPDATE hosts SET status = 'unreachable', address = '127.0.0.1:1'";
    fixture.sql(&format!("{away} WHERE id = '{host}'")).await?;
    let reply = fixture.api.post("/v1/sandboxes", &json!({"template": "web:v1"})).await?;
    reply.expect_error(503, "template_unavailable")?;
    fixture.stop().await
}

/// A tag is moved back and forth; a repeated create gets its sandbox all the same.
pub(crate) async fn a_tag_goes_back_and_forth(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let api = &fixture.api;
    let old = add_image(&fixture, ("web", 1), &["latest"]).await?;
    let new = add_snapshot(&fixture, ("web", 2), &["latest"]).await?;
    let own = listed(api, "web").await?.context("it is not listed")?;
    ensure!(own["kind"] == "snapshot" && own["version"] == 2 && own["vcpus"] == 2, "{own}");
    ensure!(own["tags"] == json!({"latest": 2}), "{own}");
    let body = r#"{"template": "web"}"#;
    let first = fixture.ask("once", body).await?.expect(201)?.json();
    ensure!(fixture.agent().now().creates.last().is_some_and(|asked| asked.snapshot_id == new));

    let moved = move_tag(api, "web", "latest", &json!({"version": 1})).await?.expect(200)?.json();
    ensure!(moved["version"] == 1 && moved["tags"] == json!(["latest"]), "{moved}");
    ensure!(moved["kind"] == "base" && moved["user"] == "www-data" && moved["vcpus"].is_null(), "{moved}");
    let (_, asked) = create(&fixture, &json!({"template": "web"})).await?;
    ensure!(asked.image_id == old && asked.snapshot_id.is_empty(), "{asked:?}");
    let again = fixture.ask("once", body).await?.expect(201)?.json();
    ensure!(again["id"] == first["id"], "{again} instead of {first}");

    move_tag(api, "web", "stable", &json!({"version": 2})).await?.expect(200)?;
    let own = listed(api, "web").await?.context("it is not listed")?;
    ensure!(own["tags"] == json!({"latest": 1, "stable": 2}) && own["version"] == 1, "{own}");
    ensure!(own["kind"] == "base" && own["vcpus"].is_null(), "{own}");
    let versions = async |query: &str| {
        let all = api.get(&format!("{PATH}/web/versions{query}")).await?.expect(200)?.json();
        let all = all.as_array().context("no list")?.clone();
        anyhow::Ok(
            all.into_iter().map(|one| (one["version"].clone(), one["tags"].clone())).collect::<Vec<_>>(),
        )
    };
    let (newest, oldest) = ((json!(2), json!(["stable"])), (json!(1), json!(["latest"])));
    ensure!(versions("").await? == [newest.clone(), oldest.clone()]);
    ensure!(versions("?limit=1").await? == [newest]);
    ensure!(versions("?before=2").await? == [oldest]);
    ensure!(versions("?before=1").await?.is_empty());

    for (tag, body, status, code) in [
        ("latest", json!({"version": 3}), 404, "not_found"),
        ("latest", json!({"version": 0}), 400, "invalid_request"),
        ("latest", json!({"version": 4_294_967_295_u32}), 400, "invalid_request"),
        ("latest", json!({}), 400, "invalid_request"),
        ("latest", json!({"version": 1, "force": true}), 400, "invalid_request"),
        ("-x", json!({"version": 1}), 400, "invalid_request"),
    ] {
        let reply = move_tag(api, "web", tag, &body).await?;
        reply.expect_error(status, code).with_context(|| format!("{tag} {body}"))?;
    }
    for nobodys in ["nothing", "minimal", "%00"] {
        move_tag(api, nobodys, "latest", &json!({"version": 1})).await?.expect_error(404, "not_found")?;
        api.get(&format!("{PATH}/{nobodys}/versions")).await?.expect_error(404, "not_found")?;
    }
    for query in ["limit=0", "limit=101", "before=0", "before=x", "page=1", "limit=1&limit=1"] {
        let reply = api.get(&format!("{PATH}/web/versions?{query}")).await?;
        reply.expect_error(400, "invalid_request").with_context(|| query.to_owned())?;
    }
    let tags: String = (0..98).map(|n| format!("({TEAM}, 'web', 't{n}', 1),")).collect();
    fixture
        .sql(&format!(
            "INSERT INTO template_tags (team_id, name, tag, version) VALUES {}",
            tags.trim_end_matches(',')
        ))
        .await?;
    let more = move_tag(api, "web", "one-more", &json!({"version": 1})).await?;
    more.expect_error(429, "too_many_requests")?;
    move_tag(api, "web", "t1", &json!({"version": 2})).await?.expect(200)?;
    fixture.stop().await
}

/// Waits until the host has these images only.
async fn wait_images(fixture: &Fixture, expected: &[&String]) -> Result<()> {
    let mut expected: Vec<String> = expected.iter().map(|id| (*id).clone()).collect();
    expected.sort_unstable();
    let is = async || {
        let mut images: Vec<_> = fixture.agent().now().images.iter().cloned().collect();
        images.sort_unstable();
        (images == expected).then_some(())
    };
    wait_until("images to be removed", SOON, is).await
}

/// A deleted template is gone at once, and its images when its host is there and nothing else needs them.
pub(crate) async fn a_deleted_template_takes_its_images_along(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let api = &fixture.api;
    let sandbox = fixture.create().await?;
    api.post("/v1/snapshots", &json!({"sandbox_id": sandbox, "name": "mine"})).await?.expect(201)?;
    for (path, status, code) in [
        ("minimal", 403, "forbidden"),
        ("nothing", 404, "not_found"),
        ("mine", 404, "not_found"),
        ("%00", 404, "not_found"),
        ("builds", 405, "method_not_allowed"),
    ] {
        let reply = api.delete(&format!("{PATH}/{path}")).await?;
        reply.expect_error(status, code).with_context(|| path.to_owned())?;
    }
    ensure!(listed(api, "mine").await?.is_some_and(|one| one["kind"] == "snapshot"), "the snapshot is gone");

    let first = add_image(&fixture, ("web", 1), &["v1"]).await?;
    let shared = add_image(&fixture, ("web", 2), &["latest"]).await?;
    let twin = Uuid::parse_str(&shared)?;
    add(&fixture, ("twin", 1), &["latest"], None, Some(twin)).await?;
    // A build that begins with an image needs it until it has ended.
    let begun = add_image(&fixture, ("base", 1), &["latest"]).await?;
    let of_build = Uuid::parse_str(&begun)?;
    fixture
        .sql(&format!(
            "INSERT INTO builds (id, team_id, name, tag, recipe, base, vcpus, memory_mb, disk_size_mb, status, lease_until)
             VALUES (gen_random_uuid(), {TEAM}, 'next', 'latest', '', '{{\"image_id\": \"{of_build}\"}}', 1, 512, 5120,
                 'running', now() + interval '1 hour')"
        ))
        .await?;
    for template in ["web", "base"] {
        api.delete(&format!("{PATH}/{template}")).await?.expect(204)?;
        ensure!(listed(api, template).await?.is_none(), "{template} is still listed");
        api.get(&format!("{PATH}/{template}/versions")).await?.expect_error(404, "not_found")?;
        api.delete(&format!("{PATH}/{template}")).await?.expect_error(404, "not_found")?;
    }
    api.post("/v1/sandboxes", &json!({"template": "web:v1"})).await?.expect_error(404, "not_found")?;
    wait_images(&fixture, &[&shared, &begun]).await?;
    ensure!(!fixture.agent().now().images.contains(&first));
    create(&fixture, &json!({"template": "twin"})).await?;
    fixture.sql("UPDATE builds SET status = 'cancelled', ended_at = now() WHERE name = 'next'").await?;
    wait_images(&fixture, &[&shared]).await?;

    // While its host is away, the template is deleted all the same; its images go when the host is back.
    let host = fixture.agent().id.uuid();
    let moved = |address: String| format!("UPDATE hosts SET address = '{address}' WHERE id = '{host}'");
    fixture.sql(&moved("127.0.0.1:1".to_owned())).await?;
    api.delete(&format!("{PATH}/twin")).await?.expect(204)?;
    let tried = "SELECT (lease_until > now())::text FROM doomed_images";
    fixture.wait_value(tried, "true").await?;
    ensure!(fixture.agent().now().images.contains(&shared), "it was removed although its host was away");
    fixture.sql(&moved(fixture.agent().address.to_string())).await?;
    fixture.sql("UPDATE doomed_images SET lease_until = now()").await?;
    wait_images(&fixture, &[]).await?;
    fixture.wait_value("SELECT count(*)::text FROM doomed_images", "0").await?;
    fixture.stop().await
}

/// A sandbox goes on with the version that it was made of, whether it runs or is paused: neither a newer version of
/// the name, nor the tag that leads there now, nor the end of the template changes it.
pub(crate) async fn a_sandbox_stays_on_its_version(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent();
    let old = add_image(&fixture, ("web", 1), &["latest"]).await?;
    let mut own = Vec::new();
    for _ in 0..2 {
        let (made, asked) = create(&fixture, &json!({"template": "web"})).await?;
        ensure!(asked.image_id == old, "{asked:?}");
        own.push(made["id"].as_str().context("no id")?.to_owned());
    }
    let [runs, paused] = own.as_slice() else { anyhow::bail!("{own:?}") };
    fixture.pause(paused).await?;
    let what = |record: &Value| (record["template"].clone(), sizes(record));
    let before = (what(&fixture.record(runs).await?), what(&fixture.record(paused).await?));

    let new = add_image(&fixture, ("web", 2), &["latest"]).await?;
    let (later, asked) = create(&fixture, &json!({"template": "web"})).await?;
    ensure!(asked.image_id == new && later["template"] == "web", "{asked:?}");
    let check = async |when: &str| {
        let resume = format!("/v1/sandboxes/{paused}/resume");
        let resumed = fixture.api.post(&resume, &json!({})).await?.expect(200)?.json();
        ensure!(resumed["status"] == "running" && what(&resumed) == before.1, "{when}: {resumed}");
        let other = fixture.record(runs).await?;
        ensure!(other["status"] == "running" && what(&other) == before.0, "{when}: {other}");
        // Its own memory goes on: no host makes anything anew.
        let made = agent.now().creates.len();
        let calls = agent.calls_of(paused);
        ensure!(made == 3 && calls.last() == Some(&"resume"), "{when}: {made} creates, {calls:?}");
        anyhow::Ok(())
    };
    check("after a newer version").await?;
    fixture.pause(paused).await?;
    fixture.api.delete(&format!("{PATH}/web")).await?.expect(204)?;
    wait_images(&fixture, &[]).await?;
    check("without the template").await?;
    fixture.stop().await
}

/// A name is that of one template or snapshot of the team, also while it is being built; the platform's are reserved.
pub(crate) async fn a_name_is_of_a_template_or_a_snapshot(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let api = &fixture.api;
    let sandbox = fixture.create().await?;
    let snapshot =
        async |name: &str| api.post("/v1/snapshots", &json!({"sandbox_id": sandbox, "name": name})).await;
    let build = async |name: &str| {
        let body = json!({"name": name, "recipe": "FROM minimal\nRUN true\n"});
        api.post(&format!("{PATH}/builds"), &body).await
    };
    snapshot("mine").await?.expect(201)?;
    add_image(&fixture, ("web", 1), &["v1"]).await?;
    fixture
        .sql(&format!(
            "INSERT INTO builds (id, team_id, name, tag, recipe, base, vcpus, memory_mb, disk_size_mb, status, lease_until)
             VALUES (gen_random_uuid(), {TEAM}, 'soon', 'latest', '', '{{}}', 1, 512, 5120, 'running', now() + interval '1 hour')"
        ))
        .await?;
    for taken in ["web", "soon"] {
        let reply = snapshot(taken).await?.expect_error(409, "template_name_taken")?;
        ensure!(message(&reply).contains(taken), "{}", message(&reply));
    }
    snapshot("minimal").await?.expect_error(409, "name_reserved")?;
    build("mine").await?.expect_error(409, "template_name_taken")?;
    build("mine:v2").await?.expect_error(409, "template_name_taken")?;
    build("minimal").await?.expect_error(409, "name_reserved")?;
    build("builds").await?.expect_error(409, "name_reserved")?;
    for wrong in ["", "-x", "a/b", "web:", "web:-1"] {
        build(wrong).await?.expect_error(400, "invalid_request").with_context(|| wrong.to_owned())?;
    }
    let made = build("web:v2").await?.expect(201)?.json();
    ensure!(made["name"] == "web" && made["tag"] == "v2", "{made}");
    // What is deleted, or has failed, frees its name for the other kind.
    api.delete("/v1/snapshots/mine").await?.expect(204)?;
    build("mine").await?.expect(201)?;
    fixture.sql("UPDATE builds SET status = 'failed', ended_at = now() WHERE name = 'soon'").await?;
    snapshot("soon").await?.expect(201)?;
    fixture.stop().await
}

/// Another team sees and changes nothing of a team's templates, and has its own under the same names.
pub(crate) async fn another_team_sees_no_template(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let image = add_image(&fixture, ("web", 1), &["latest", "v1"]).await?;
    unauthorized::team(&fixture, "wrn_stranger", "NULL", "NULL").await?;
    let stranger = fixture.api.with_key("wrn_stranger");
    let all = stranger.get(PATH).await?.expect(200)?.json();
    ensure!(all == json!([{"name": "minimal", "kind": "base", "platform": true}]), "{all}");
    stranger.get(&format!("{PATH}/web/versions")).await?.expect_error(404, "not_found")?;
    stranger.delete(&format!("{PATH}/web")).await?.expect_error(404, "not_found")?;
    move_tag(&stranger, "web", "v1", &json!({"version": 1})).await?.expect_error(404, "not_found")?;
    for template in ["web", "web:v1"] {
        let reply = stranger.post("/v1/sandboxes", &json!({"template": template})).await?;
        let reply = reply.expect_error(404, "not_found")?;
        ensure!(!message(&reply).contains("latest"), "it learns of tags: {}", message(&reply));
    }
    let id = stranger.create(&json!({"memory_mb": 256})).await?;
    stranger.post("/v1/snapshots", &json!({"sandbox_id": id, "name": "web"})).await?.expect(201)?;
    let (_, asked) = create(&fixture, &json!({"template": "web"})).await?;
    ensure!(asked.image_id == image, "{asked:?}");
    fixture.stop().await
}
