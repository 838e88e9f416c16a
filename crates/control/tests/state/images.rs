// SPDX-License-Identifier: Apache-2.0
//! Cases of images of registries: sandboxes and builds that start from them, who learns of accounts, and what is removed when
//! nobody needs it any more.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use uuid::Uuid;
use wrenn_control::Limits;
use wrenn_rpc::host::v1::CreateRequest;
use wrenn_testkit::{Api, wait_until};

use crate::{
    agent::{Does, image_id},
    build_workers::{change, dead, is_left, runs, short},
    builds::{self, ask, built, get, log, misses, statuses, wait},
    fixture::{Fixture, SOON},
    stores::Stores,
    unauthorized,
};

/// Reference of an image, and its whole name.
const APP: &str = "r.example/team/app";
const WHOLE: &str = "r.example/team/app:latest";
const PASSWORD: &str = "correct-horse-battery-staple-4711";

/// A digest.
fn digest(of: u8) -> String {
    format!("sha256:{}", format!("{of:02x}").repeat(32))
}

/// Starts a server with hosts on which each command ends with 0, and whose registry has these names with the digests 1, 2, ….
async fn start(
    stores: &Arc<Stores>,
    name: &str,
    hosts: usize,
    limits: Limits,
    names: &[&str],
) -> Result<Fixture> {
    let fixture = builds::start(stores, name, hosts, limits).await?;
    for agent in &fixture.agents {
        let all = (1..).zip(names).map(|(of, name)| ((*name).to_owned(), digest(of)));
        agent.now().registry = all.collect();
    }
    Ok(fixture)
}

/// Creates a sandbox from an image, and returns it with what its host was asked for.
async fn create(fixture: &Fixture, body: &Value) -> Result<(Value, CreateRequest)> {
    let made = fixture.api.post("/v1/sandboxes", body).await?.expect(201)?.json();
    let of = |request: &&CreateRequest| made["id"] == request.sandbox_id.as_str();
    let asked = fixture.agents.iter().find_map(|agent| agent.now().creates.iter().find(of).cloned());
    Ok((made, asked.context("no host was asked")?))
}

/// What the hosts were asked to import, each by itself.
fn imports(fixture: &Fixture) -> Vec<Vec<String>> {
    let of = |agent: &Arc<crate::agent::Agent>| {
        agent.now().imports.iter().map(|asked| asked.reference.clone()).collect()
    };
    fixture.agents.iter().map(of).collect()
}

/// Number of tables that have a text somewhere.
async fn tables_with(fixture: &Fixture, text: &str) -> Result<String> {
    fixture
        .value(&format!(
            "SELECT count(*)::text FROM information_schema.tables WHERE table_schema = 'public'
                 AND query_to_xml(format('SELECT t::text FROM %I t', table_name), true, false, '')::text LIKE '%{text}%'"
        ))
        .await
}

/// A sandbox has what its image says, and the next one from it is on the host that has the image.
pub(crate) async fn a_sandbox_starts_from_the_image_on_its_host(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let debian = "docker.io/library/debian:bookworm";
    let fixture = start(stores, name, 2, Limits::default(), &[debian, WHOLE]).await?;
    let body = json!({"image": "debian:bookworm", "envs": {"B": "mine", "C": "mine"}});
    let (made, asked) = create(&fixture, &body).await?;
    let image = image_id(&digest(1));
    ensure!(made["template"] == "debian:bookworm" && made["disk_size_mb"] == 5120, "{made}");
    let told =
        json!({"reference": "debian:bookworm", "digest": digest(1), "command": ["/init", "serve", "80"]});
    ensure!(made["image"] == told, "{made}");
    ensure!(asked.image_id == image && asked.template == "debian:bookworm", "{asked:?}");
    ensure!(
        (asked.default_user.as_str(), asked.default_workdir.as_str()) == ("app:staff", "/srv"),
        "{asked:?}"
    );
    let mut envs: Vec<_> = asked.envs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    envs.sort_unstable();
    ensure!(envs == ["A=image", "B=mine", "C=mine", "PATH=/bin"], "{envs:?}");
    // The other host has more memory left.
    create(&fixture, &json!({"image": "docker.io/library/debian:bookworm"})).await?;
    let mut asked = imports(&fixture);
    asked.sort_unstable();
    ensure!(asked == [Vec::new(), vec![debian.to_owned(); 2]], "{asked:?}");
    let row =
        "SELECT concat_ws(' ', count(*), min(reference), min(size_mb), min(config->>'user')) FROM images";
    ensure!(fixture.value(row).await? == format!("1 {debian} 600 app:staff"));
    // What is told of the image lasts.
    let id = made["id"].as_str().context("no id")?;
    fixture.pause(id).await?;
    ensure!(fixture.record(id).await?["image"] == told);

    for (body, status, code, told) in [
        (json!({"image": "a", "template": "minimal"}), 400, "invalid_request", "exclude each other"),
        (json!({"registry": {"username": "a", "password": "b"}}), 400, "invalid_request", "name an image"),
        (json!({"image": "Debian"}), 400, "invalid_request", "image: "),
        (json!({"image": ""}), 400, "invalid_request", "image: "),
        (json!({"image": APP, "registry": {"username": "a"}}), 400, "invalid_request", "password"),
        (json!({"image": APP, "vcpus": 0}), 400, "invalid_request", "vcpus"),
        (json!({"image": APP, "disk_size_mb": 599}), 400, "invalid_request", "needs 600"),
        (json!({"image": "r.example/none"}), 404, "image_not_found", "r.example/none"),
    ] {
        let reply = fixture.api.post("/v1/sandboxes", &body).await?;
        let reply = reply.expect_error(status, code).with_context(|| body.to_string())?.json();
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains(told) && reply["error"]["sandbox_id"].is_null(), "{body}: {reply}");
    }
    fixture.wait_value("SELECT count(*)::text FROM sandboxes", "2").await?;
    fixture.stop().await
}

/// An image that is gone when the sandbox is created is imported once more, and the key of the request is that of what runs.
pub(crate) async fn an_image_that_is_gone_is_imported_again(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default(), &[WHOLE]).await?;
    let agent = fixture.agent().clone();
    agent.now().import_loses = 1;
    let body = format!(r#"{{"image": "{APP}", "name": "web"}}"#);
    let first = fixture.ask("once", &body).await?.expect(201)?.json();
    ensure!(agent.now().imports.len() == 2 && first["name"] == "web", "{first}");
    fixture
        .wait_value("SELECT string_agg(status, ' ' ORDER BY id) FROM sandboxes", "stopped running")
        .await?;
    // What the name leads to, and who pulls it, is not what the request means.
    agent.now().registry.insert(WHOLE.to_owned(), digest(7));
    let same =
        format!(r#"{{"image": "{WHOLE}", "name": "web", "registry": {{"username": "a", "password": "b"}}}}"#);
    for body in [&body, &same] {
        let again = fixture.ask("once", body).await?.expect(201)?.json();
        ensure!(again["id"] == first["id"] && agent.now().imports.len() == 2, "{again}");
    }
    let other = r#"{"image": "r.example/team/app:2", "name": "web"}"#;
    fixture.ask("once", other).await?.expect_error(409, "idempotency_request_mismatch")?;
    agent.now().import_loses = 2;
    fixture.api.post("/v1/sandboxes", &json!({"image": APP})).await?.expect_error(404, "not_found")?;
    ensure!(agent.now().imports.len() == 4);
    fixture.stop().await
}

/// An account reaches the host, and no answer; the database has that of a build until the build has ended.
pub(crate) async fn accounts_reach_the_host_and_nobody_else(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default(), &[WHOLE]).await?;
    let agent = fixture.agent().clone();
    agent.now().account = Some(("robot", PASSWORD));
    let account = json!({"username": "robot", "password": PASSWORD});
    let denied = fixture.api.post("/v1/sandboxes", &json!({"image": APP})).await?;
    denied.expect_error(403, "registry_denied")?;
    let reply = fixture.api.post("/v1/sandboxes", &json!({"image": APP, "registry": account})).await?;
    let reply = reply.expect(201)?;
    let answer = String::from_utf8_lossy(&reply.bytes).into_owned();
    ensure!(!answer.contains(PASSWORD) && !answer.contains("robot"), "{answer}");
    let given = agent.now().imports.last().map(|asked| (asked.username.clone(), asked.password.clone()));
    ensure!(given == Some(("robot".to_owned(), PASSWORD.to_owned())), "{given:?}");
    ensure!(tables_with(&fixture, PASSWORD).await? == "0", "the account of a sandbox is kept");

    // Two builds: one goes on to its end, and the other one is cancelled while its base is imported.
    agent.import_gate.forget_permits(crate::agent::OPEN);
    let mut ids = Vec::new();
    for template in ["web", "other"] {
        let recipe = format!("FROM {APP}\nRUN one\n");
        ids.push(ask(&fixture, &json!({"name": template, "recipe": recipe, "registry": account})).await?);
    }
    let asked = async || (agent.now().imports.len() == 4).then_some(());
    wait_until("both imports", SOON, asked).await?;
    fixture.wait_value("SELECT count(registry)::text FROM builds", "2").await?;
    for path in ids.iter().map(|id| format!("{}/{id}", builds::PATH)) {
        let told = String::from_utf8_lossy(&fixture.api.get(&path).await?.expect(200)?.bytes).into_owned();
        ensure!(!told.contains(PASSWORD) && !told.contains("robot"), "{told}");
    }
    fixture.api.delete(&format!("{}/{}", builds::PATH, ids[1])).await?.expect(204)?;
    wait(&fixture, &ids[1], "cancelled").await?;
    agent.import_gate.add_permits(crate::agent::OPEN);
    wait(&fixture, &ids[0], "succeeded").await?;
    fixture.wait_value("SELECT count(registry)::text FROM builds", "0").await?;
    ensure!(tables_with(&fixture, PASSWORD).await? == "0", "the account of a build is kept");
    ensure!(tables_with(&fixture, &digest(1)).await? != "0", "the tables are not looked through");
    let needless = json!({"name": "web", "recipe": "FROM minimal\nRUN one\n", "registry": account});
    let refused = fixture.api.post(builds::PATH, &needless).await?.expect_error(400, "invalid_request")?;
    ensure!(!String::from_utf8_lossy(&refused.bytes).contains(PASSWORD));
    fixture.stop().await
}

/// Lets everything be as if it had been used long ago.
async fn grow_old(fixture: &Fixture, which: &str) -> Result<()> {
    let old = "UPDATE images SET last_used_at = now() - interval '15 days'";
    fixture.sql(&format!("{old} WHERE {which}")).await
}

/// Waits until the first host has none of these images.
async fn wait_gone(fixture: &Fixture, gone: &[u8]) -> Result<()> {
    let all = async || {
        let now = fixture.agent().now();
        (!gone.iter().any(|of| now.images.contains(&image_id(&digest(*of))))).then_some(())
    };
    wait_until("images to be removed", SOON, all).await
}

fn has(fixture: &Fixture, of: u8) -> bool {
    fixture.agent().now().images.contains(&image_id(&digest(of)))
}

/// An image stays on its host as long as a team has used it lately, or there is a sandbox or an open build of it.
pub(crate) async fn what_no_team_needs_is_removed(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let names = ["shared", "runs", "builds", "first", "last"].map(|name| format!("r.example/{name}:1"));
    let names = names.each_ref().map(String::as_str);
    let fixture = start(stores, name, 1, Limits::default(), &names).await?;
    unauthorized::team(&fixture, "wrn_stranger", "NULL", "NULL").await?;
    let stranger = fixture.api.with_key("wrn_stranger");
    let use_and_leave = async |api: &Api, image: &str| -> Result<()> {
        let id = api.create(&json!({"image": image, "memory_mb": 256})).await?;
        api.remove(&id).await.map(drop)
    };
    for image in [names[0], names[2], names[3]] {
        use_and_leave(&fixture.api, image).await?;
    }
    use_and_leave(&stranger, names[0]).await?;
    let runs = fixture.api.create(&json!({"image": names[1], "memory_mb": 256})).await?;
    fixture.pause(&runs).await?;
    let begun: Uuid = image_id(&digest(3)).parse()?;
    fixture
        .sql(&format!(
            "INSERT INTO builds (id, team_id, name, tag, recipe, base, vcpus, memory_mb, disk_size_mb, status, lease_until)
             SELECT gen_random_uuid(), id, 'next', 'latest', '', '{{\"image_id\": \"{begun}\"}}', 1, 512, 5120, 'running',
                 now() + interval '1 hour' FROM teams WHERE name = 'default'"
        ))
        .await?;
    let of_stranger = "team_id = (SELECT id FROM teams WHERE name = 'wrn_stranger')";
    grow_old(&fixture, &format!("NOT {of_stranger}")).await?;
    // What nobody uses goes; that of the other team, and what runs or is built, does not.
    wait_gone(&fixture, &[4]).await?;
    ensure!((1..=3).all(|of| has(&fixture, of)), "{:?}", fixture.agent().now().images);
    let left = "SELECT string_agg(reference, ' ' ORDER BY reference) FROM images";
    fixture.wait_value(left, "r.example/builds:1 r.example/runs:1 r.example/shared:1").await?;
    // The image that both had is noted to be removed, and used again before the other team has left it.
    fixture.wait_value("SELECT count(*)::text FROM doomed_images", "1").await?;
    use_and_leave(&fixture.api, names[0]).await?;
    fixture.wait_value("SELECT count(*)::text FROM doomed_images", "0").await?;
    fixture.api.remove(&runs).await?;
    fixture.sql("UPDATE builds SET status = 'cancelled', ended_at = now() WHERE name = 'next'").await?;
    grow_old(&fixture, "true").await?;
    wait_gone(&fixture, &[1, 2, 3]).await?;
    fixture.wait_value("SELECT count(*)::text FROM images", "0").await?;
    fixture.wait_value("SELECT count(*)::text FROM doomed_images", "0").await?;

    // What a name led to before goes at once, if no other name leads to it.
    use_and_leave(&fixture.api, names[4]).await?;
    fixture.agent().now().registry.insert(names[4].to_owned(), digest(9));
    use_and_leave(&fixture.api, names[4]).await?;
    wait_gone(&fixture, &[5]).await?;
    ensure!(has(&fixture, 9), "the image that the name leads to now is gone");
    fixture.stop().await
}

/// An image that a host has imported for somebody who did not wait goes after a while, unless it is asked for again.
pub(crate) async fn what_nobody_waited_for_is_removed(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = start(stores, name, 1, Limits::default(), &["r.example/again:1"]).await?;
    fixture.agent().now().images.extend([1, 2].map(|of| image_id(&digest(of))));
    // Each server looks when it has started.
    fixture.serve().await?;
    let doomed = "SELECT count(*)::text FROM doomed_images WHERE lease_until > now() + interval '50 minutes'";
    fixture.wait_value(doomed, "2").await?;
    fixture.api.create(&json!({"image": "r.example/again:1", "memory_mb": 256})).await?;
    fixture.wait_value(doomed, "1").await?;
    fixture.sql("UPDATE doomed_images SET lease_until = now()").await?;
    wait_gone(&fixture, &[2]).await?;
    ensure!(has(&fixture, 1), "the image that was asked for again is gone");
    fixture.stop().await
}

/// An image of which a removal is in work when it is asked for is asked for again afterwards.
pub(crate) async fn what_is_being_removed_is_imported_again(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default(), &[WHOLE]).await?;
    let (image, host) = (image_id(&digest(1)), fixture.agent().id.uuid());
    let removal = format!("INSERT INTO image_removals VALUES ('{image}', '{host}', now() + interval '5 s')");
    fixture.sql(&removal).await?;
    create(&fixture, &json!({"image": APP})).await?;
    ensure!(imports(&fixture) == [vec![WHOLE.to_owned(); 2]], "{:?}", imports(&fixture));
    fixture.wait_value("SELECT (max(ends_at) < now())::text FROM image_removals", "true").await?;
    fixture.stop().await
}

/// A build starts from what the image was when its first worker imported it, and its template has what the image says.
pub(crate) async fn a_build_pins_what_its_first_worker_imported(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = start(stores, name, 1, short(), &[WHOLE]).await?;
    let agent = fixture.agent().clone();
    agent.obey("two", Does::default());
    let recipe = format!("FROM {APP}\nWORKDIR $B/x\nUSER root\nRUN two $A\n");
    let id = ask(&fixture, &json!({"name": "web", "recipe": recipe})).await?;
    let asked = get(&fixture, &id).await?;
    ensure!(asked["steps"].as_array().is_some_and(|steps| steps.len() == 4), "{asked}");
    runs(&fixture, "two $A").await?;
    change(&fixture, &id, &dead(1)).await?;
    is_left(&fixture, "two $A").await?;
    // Without the results of the first worker, the second one begins with the base, too.
    fixture.sql("DELETE FROM layers").await?;
    agent.now().registry.insert(WHOLE.to_owned(), digest(2));
    agent.now().images.clear();
    agent.obey("two", Does::end(0));
    change(&fixture, &id, "lease_until = now()").await?;
    let build = wait(&fixture, &id, "succeeded").await?;
    ensure!(build["attempt"] == 2 && build["error"].is_null(), "{build}");
    let pinned = format!("{APP}@{}", digest(1));
    ensure!(imports(&fixture) == [[WHOLE.to_owned(), pinned]], "{:?}", imports(&fixture));
    let from: Vec<_> = agent.now().creates.iter().map(|asked| asked.image_id.clone()).collect();
    ensure!(from == [image_id(&digest(1)), image_id(&digest(1))], "{from:?}");
    let stored = "SELECT concat_ws(' ', base->>'kind', base->>'reference', base->>'digest') FROM builds";
    ensure!(fixture.value(stored).await? == format!("imported {APP} {}", digest(1)));
    let of_it =
        "SELECT concat_ws(' ', default_user, workdir, envs->>'PATH', envs->>'A') FROM template_versions";
    ensure!(fixture.value(of_it).await? == "root /srv/image/x /bin image");
    let told = log(&fixture, &id, "system").await?;
    let imported = format!(
        "importing {APP}|{}, 600 MiB|2 entries or attributes were left out:|dev/null: a device|dev/zero: a device|",
        digest(1)
    );
    ensure!(told.matches(&imported).count() == 2, "{told}");
    fixture.stop().await
}

/// When an image has changed in its registry, what was built on it is built anew, and it is told that this is the reason.
pub(crate) async fn a_digest_that_has_moved_is_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default(), &[WHOLE]).await?;
    let agent = fixture.agent().clone();
    agent.obey("attach start", Does::default());
    let recipe = format!("FROM {APP}\nRUN one\nCMD [\"work\", \"90\"]\n");
    let first = built(&fixture, &recipe).await?;
    ensure!(misses(&first)[1] == "nothing was built with this step before", "{first}");
    ensure!(statuses(&first) == ["succeeded"; 3] && first["steps"][1]["cache_key"].is_string(), "{first}");
    // The arguments are those of the image's program.
    ensure!(agent.now().started == ["/init work 90"], "{:?}", agent.now().started);
    let again = built(&fixture, &recipe).await?;
    ensure!(statuses(&again) == ["cached"; 3], "{again}");
    agent.now().registry.insert(WHOLE.to_owned(), digest(2));
    let moved = built(&fixture, &recipe).await?;
    ensure!(misses(&moved)[1] == "base digest moved", "{moved}");
    ensure!(statuses(&moved) == ["succeeded"; 3], "{moved}");
    let other = built(&fixture, &format!("FROM {APP}\nRUN other\n")).await?;
    ensure!(misses(&other)[1] == "the instruction changed", "{other}");

    // What cannot be imported is told with its code, and that it might have been a template.
    for (base, code, told) in [
        ("r.example/none:1", "image_not_found", "step 1 (line 1): there is no r.example/none:1"),
        ("minmal", "image_not_found", "there is no template minmal either"),
    ] {
        let id = ask(&fixture, &json!({"name": "wrong", "recipe": format!("FROM {base}\nRUN a\n")})).await?;
        let failed = wait(&fixture, &id, "failed").await?;
        let error = &failed["error"];
        ensure!(error["code"] == code && error["step"] == 1, "{failed}");
        ensure!(error["message"].as_str().is_some_and(|message| message.contains(told)), "{failed}");
        ensure!(statuses(&failed) == ["failed", "pending"] && failed["sandbox_id"].is_null(), "{failed}");
    }
    fixture.stop().await
}

/// The log of a build tells again and again how many bytes of its base are fetched and unpacked.
pub(crate) async fn an_import_tells_how_far_it_is(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, 1, Limits::default(), &[WHOLE]).await?;
    let agent = fixture.agent().clone();
    agent.import_gate.forget_permits(crate::agent::OPEN);
    let id = ask(&fixture, &json!({"name": "web", "recipe": format!("FROM {APP}\nRUN one\n")})).await?;
    for (progress, expected) in [
        ((84 << 20, 21 << 19, 0), " s: 10.5 of 84.0 MiB fetched"),
        ((84 << 20, 84 << 20, 21 << 17), " s: 84.0 MiB fetched, 2.6 of them unpacked"),
    ] {
        agent.now().import_progress = progress;
        let mut all = String::new();
        let told = async || {
            all = log(&fixture, &id, "system").await.ok()?;
            all.contains(expected).then_some(())
        };
        let waited = wait_until(&format!("a message {expected:?}"), SOON, told).await;
        waited.with_context(|| format!("the log is {all}"))?;
    }
    agent.import_gate.add_permits(crate::agent::OPEN);
    wait(&fixture, &id, "succeeded").await?;
    fixture.stop().await
}
