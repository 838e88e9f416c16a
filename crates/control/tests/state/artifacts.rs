// SPDX-License-Identifier: Apache-2.0
//! Cases of templates on several hosts: copies that hosts get from each other, the store, and what is removed of both.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use axum::{Json, extract::State};
use futures::future::{join_all, try_join_all};
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::Method;
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use utoipa_axum::{router::OpenApiRouter, routes};
use wrenn_api::ErrorCode;
use wrenn_control::{
    BuildSettings, Caller, Extension, Fault, Limits, Permission, Services, TemplateSettings, needs,
};
use wrenn_testkit::wait_until;

use crate::{
    agent::{Agent, CHUNKS, OPEN},
    fixture::{Fixture, SOON},
    stores::Stores,
    templates::{add_image, add_snapshot},
};

/// Account of the bucket.
const KEY: &str = "wrenn-templates";
const SECRET: &str = "correct-horse-battery-staple-1147";

/// Settings of templates whose store is a directory.
fn stored_in(dir: &Path) -> TemplateSettings {
    let mut settings = TemplateSettings::default();
    settings.store = Some(format!("file://{}", dir.display()));
    settings
}

/// Starts a server with two hosts.
async fn start(stores: &Arc<Stores>, name: &str, templates: TemplateSettings) -> Result<Fixture> {
    let settings = (BuildSettings::default(), templates);
    Fixture::start_of(stores, name, 2, Limits::default(), settings).await
}

fn both(fixture: &Fixture) -> (Arc<Agent>, Arc<Agent>) {
    (fixture.agents[0].clone(), fixture.agents[1].clone())
}

/// Lets a host take no more sandboxes.
async fn fill(fixture: &Fixture, agent: &Agent) -> Result<()> {
    let host = agent.id.uuid();
    fixture
        .sql(&format!("UPDATE hosts SET ejected_until = now() + interval '1 hour' WHERE id = '{host}'"))
        .await
}

/// Cuts a host off.
async fn cut(fixture: &Fixture, agent: &Agent) -> Result<()> {
    let host = agent.id.uuid();
    fixture.sql(&format!("UPDATE hosts SET address = '127.0.0.1:1' WHERE id = '{host}'")).await?;
    // Until the answer to a ping that was sent before is recorded.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    fixture.sql(&format!("UPDATE hosts SET status = 'unreachable' WHERE id = '{host}'")).await
}

/// Brings a host back.
async fn mend(fixture: &Fixture, agent: &Agent) -> Result<()> {
    let (host, address) = (agent.id.uuid(), agent.address);
    fixture.sql(&format!("UPDATE hosts SET address = '{address}' WHERE id = '{host}'")).await?;
    fixture.wait_value(&format!("SELECT status FROM hosts WHERE id = '{host}'"), "online").await
}

fn of(template: &str) -> Value {
    json!({"template": template})
}

/// Creates a sandbox of a template, and checks that this host has it.
async fn create_on(fixture: &Fixture, agent: &Agent, template: &str) -> Result<()> {
    let id = fixture.api.create(&of(template)).await?;
    ensure!(agent.now().sandboxes.contains_key(&id), "{template}: the sandbox is on another host");
    Ok(())
}

/// Waits until a host has this snapshot or image, or does not have it any more.
async fn wait_has(agent: &Agent, id: &str, has: bool) -> Result<()> {
    let is = async || {
        let now = agent.now();
        (has == (now.images.contains(id) || now.snapshots.contains(id))).then_some(())
    };
    wait_until(&format!("a host with {id}: {has}"), SOON, is).await
}

/// Ten creates at once for which the template's host has no room make one copy. What is deleted is removed everywhere, from a host
/// that was away when it is back.
pub(crate) async fn a_full_host_gives_its_template_to_another_one_once(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = start(stores, name, TemplateSettings::default()).await?;
    let (first, second) = both(&fixture);
    let image = add_image(&fixture, ("web", 1), &["latest"]).await?;
    let snapshot = add_snapshot(&fixture, ("warm", 1), &["latest"]).await?;
    first.now().snapshots.insert(snapshot.clone());
    fill(&fixture, &first).await?;

    second.take_gate.forget_permits(usize::MAX);
    let body = of("web");
    let creating = join_all((0..10).map(|_| fixture.api.create(&body)));
    let opening = async {
        fixture.wait_value("SELECT count(*)::text FROM copies WHERE state = 'fetching'", "1").await?;
        // Those that come later wait, too.
        tokio::time::sleep(Duration::from_millis(500)).await;
        second.take_gate.add_permits(OPEN);
        anyhow::Ok(())
    };
    let (made, opened) = tokio::join!(creating, opening);
    opened?;
    for id in made {
        ensure!(second.now().sandboxes.contains_key(&id?), "a sandbox is on the full host");
    }
    ensure!(first.now().exported == [image.clone()], "{:?}", first.now().exported);
    ensure!(second.now().taken == [image.clone()], "{:?}", second.now().taken);
    ensure!(
        fixture.value("SELECT concat_ws(' ', kind, state, size_bytes) FROM copies").await?
            == "image ready 1048576"
    );
    create_on(&fixture, &second, "warm").await?;
    ensure!(second.now().taken == [image.clone(), snapshot.clone()], "{:?}", second.now().taken);

    // A copy that is gone is told once, and then fetched anew.
    second.now().images.remove(&image);
    fixture.api.post("/v1/sandboxes", &body).await?.expect_error(404, "not_found")?;
    create_on(&fixture, &second, "web").await?;
    ensure!(second.now().taken.len() == 3, "{:?}", second.now().taken);

    cut(&fixture, &second).await?;
    fixture.api.delete("/v1/templates/web").await?.expect(204)?;
    wait_has(&first, &image, false).await?;
    let doomed = "SELECT string_agg(state, ' ') FROM copies WHERE kind = 'image'";
    fixture.wait_value(doomed, "doomed").await?;
    ensure!(second.now().images.contains(&image), "it was removed although its host was away");
    mend(&fixture, &second).await?;
    wait_has(&second, &image, false).await?;
    fixture.wait_value("SELECT string_agg(kind, ' ') FROM copies", "snapshot").await?;
    ensure!(second.now().snapshots.contains(&snapshot), "a snapshot that is needed is gone");
    fixture.stop().await
}

/// Why a template is not brought to another host is told to all who ask.
pub(crate) async fn a_template_that_nobody_can_give_is_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = start(stores, name, TemplateSettings::default()).await?;
    let (first, second) = both(&fixture);
    add_image(&fixture, ("web", 1), &["latest"]).await?;
    cut(&fixture, &first).await?;
    let told = fixture.api.post("/v1/sandboxes", &of("web")).await?;
    let told = told.expect_error(503, "template_unavailable")?.json();
    let message = told["error"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("\"web\"") && message.contains("there is no store"), "{told}");
    ensure!(fixture.value("SELECT count(*)::text FROM copies").await? == "0");

    mend(&fixture, &first).await?;
    fill(&fixture, &first).await?;
    second.now().take_fails.push((ErrorCode::InsufficientStorage, "the disk is full"));
    let body = of("web");
    let asked = (0..4).map(|_| fixture.api.post("/v1/sandboxes", &body));
    for reply in try_join_all(asked).await? {
        reply.expect_error(507, "insufficient_storage")?;
    }
    ensure!(second.now().taken.is_empty() && second.now().take_fails.is_empty());
    // A moment later it is tried again.
    fixture.sql("UPDATE copies SET lease_until = now() - interval '1 second'").await?;
    create_on(&fixture, &second, "web").await?;
    fixture.stop().await
}

/// What came of a transfer does not count when another server has taken it over meanwhile.
pub(crate) async fn a_transfer_that_was_taken_over_does_not_count(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = start(stores, name, TemplateSettings::default()).await?;
    let (first, second) = both(&fixture);
    add_image(&fixture, ("web", 1), &["latest"]).await?;
    fill(&fixture, &first).await?;
    let body = of("web");
    for fails in [false, true] {
        second.take_gate.forget_permits(usize::MAX);
        let creating = fixture.api.post("/v1/sandboxes", &body);
        let taking_over = async {
            fixture.wait_value("SELECT count(*)::text FROM copies WHERE state = 'fetching'", "1").await?;
            let other =
                "UPDATE copies SET lease = gen_random_uuid(), lease_until = now() + interval '1 hour'";
            fixture.sql(other).await?;
            if fails {
                second.now().take_fails.push((ErrorCode::InsufficientStorage, "the disk is full"));
            }
            second.take_gate.add_permits(OPEN);
            anyhow::Ok(())
        };
        let (reply, taken_over) = tokio::join!(creating, taking_over);
        taken_over?;
        ensure!([409, 507].contains(&reply?.status), "it counts: {fails}");
        let state = fixture.value("SELECT concat_ws(' ', state, failure_code IS NULL) FROM copies").await?;
        ensure!(state == "fetching t", "{state:?} of the other server's");
        second.now().images.clear();
        fixture.sql("DELETE FROM copies").await?;
    }
    create_on(&fixture, &second, "web").await?;
    fixture.stop().await
}

/// Objects of the store that are files below a directory.
fn objects(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut directories) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() { directories.push(path) } else { found.push(path) }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Waits until the store has all of one template, whose host is then cut off, and creates a sandbox on another host.
async fn from_the_store(fixture: &Fixture, root: &Path) -> Result<String> {
    let (first, second) = both(fixture);
    let image = add_image(fixture, ("web", 1), &["latest"]).await?;
    let state = "SELECT string_agg(concat_ws(' ', kind, template, state), ', ') FROM stored";
    fixture.wait_value(state, "image web ready").await?;
    ensure!(objects(root)?.len() as u64 == CHUNKS + 1, "{:?}", objects(root)?);
    let manifests = objects(root)?.into_iter().filter(|path| path.ends_with("manifest")).count();
    ensure!(manifests == 1, "{:?}", objects(root)?);
    cut(fixture, &first).await?;
    create_on(fixture, &second, "web").await?;
    let (exported, taken) = (first.now().exported.clone(), second.now().taken.clone());
    ensure!(exported == [image.clone()] && taken == [image.clone()], "{exported:?} {taken:?}");
    Ok(image)
}

/// Deletes the template, and waits until nothing of it is left.
async fn nothing_is_left(fixture: &Fixture, root: &Path) -> Result<()> {
    fixture.api.delete("/v1/templates/web").await?.expect(204)?;
    let is_empty = async || objects(root).is_ok_and(|left| left.is_empty()).then_some(());
    wait_until("an empty store", SOON, is_empty).await?;
    for table in ["stored", "copies"] {
        fixture.wait_value(&format!("SELECT count(*)::text FROM {table}"), "0").await?;
    }
    Ok(())
}

/// What is damaged in the store is refused, taken from its host instead, and written anew.
pub(crate) async fn a_directory_keeps_templates(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let fixture = start(stores, name, stored_in(dir.path())).await?;
    let root = dir.path().join("images");
    let image = from_the_store(&fixture, &root).await?;
    let (first, second) = both(&fixture);

    let lose = async || {
        second.now().images.clear();
        fixture.sql("DELETE FROM copies").await
    };
    lose().await?;
    let chunk = objects(&root)?.into_iter().find(|path| !path.ends_with("manifest")).context("no chunk")?;
    let whole = std::fs::read(&chunk)?;
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&chunk, &damaged)?;
    // Its host is back, and has no room.
    fill(&fixture, &first).await?;
    mend(&fixture, &first).await?;
    create_on(&fixture, &second, "web").await?;
    ensure!(second.now().taken == [image.clone(), image.clone()], "{:?}", second.now().taken);
    fixture.wait_value("SELECT concat_ws(' ', state, is_damaged) FROM stored", "ready f").await?;
    // For the store, for the other host, and for the store again.
    ensure!(first.now().exported.len() == 3, "{:?}", first.now().exported);
    ensure!(std::fs::read(&chunk)? == whole, "the store is still damaged");

    // Once more from the store, which has it again.
    lose().await?;
    cut(&fixture, &first).await?;
    create_on(&fixture, &second, "web").await?;
    mend(&fixture, &first).await?;
    nothing_is_left(&fixture, &root).await?;
    fixture.stop().await
}

/// Serves the directories below a directory as buckets.
async fn serve_buckets(root: &Path) -> Result<(SocketAddr, AbortOnDropHandle<()>)> {
    let files = s3s_fs::FileSystem::new(root).map_err(|error| anyhow!("{error:?}"))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(KEY.to_owned(), SECRET.to_owned()));
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(connection), service).await;
            });
        }
    });
    Ok((address, AbortOnDropHandle::new(serving)))
}

pub(crate) async fn a_bucket_keeps_templates(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir(dir.path().join("bucket"))?;
    let (address, _serving) = serve_buckets(dir.path()).await?;
    let of_secret = tempfile::tempdir()?;
    let secret = of_secret.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n"))?;
    let mut settings = TemplateSettings::default();
    settings.store = Some("s3://bucket/fleet".to_owned());
    settings.store_endpoint = Some(format!("http://{address}"));
    settings.store_access_key = Some(KEY.to_owned());
    settings.store_secret_file = Some(secret);
    let fixture = start(stores, name, settings).await?;
    let root = dir.path().join("bucket/fleet/images");
    from_the_store(&fixture, &root).await?;
    mend(&fixture, &fixture.agents[0]).await?;
    nothing_is_left(&fixture, &root).await?;
    fixture.stop().await
}

/// Copies that nobody has used are removed, but not the only ones that can be had.
pub(crate) async fn copies_that_nobody_uses_go(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut settings = TemplateSettings::default();
    settings.cache_mb = 1;
    let fixture = start(stores, name, settings).await?;
    let (first, second) = both(&fixture);
    let old = add_image(&fixture, ("old", 1), &["latest"]).await?;
    let new = add_image(&fixture, ("new", 1), &["latest"]).await?;
    fill(&fixture, &first).await?;
    create_on(&fixture, &second, "old").await?;
    create_on(&fixture, &second, "new").await?;
    cut(&fixture, &first).await?;
    let id = uuid::Uuid::parse_str(&old)?;
    let age = "UPDATE copies SET last_used_at = now() - interval '1 hour'";
    fixture.sql(&format!("{age} WHERE artifact_id = '{id}'")).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(fixture.value("SELECT count(*)::text FROM copies WHERE state = 'ready'").await? == "2");
    // Together they are larger than they may be, and the other host has them again.
    mend(&fixture, &first).await?;
    wait_has(&second, &old, false).await?;
    fixture.wait_value("SELECT string_agg(state, ' ') FROM copies", "ready").await?;
    ensure!(second.now().images.contains(&new) && first.now().images.contains(&old));
    fixture.sql("UPDATE copies SET last_used_at = now() - interval '15 days'").await?;
    wait_has(&second, &new, false).await?;
    fixture.wait_value("SELECT count(*)::text FROM copies", "0").await?;
    ensure!(first.now().images.contains(&new), "what is no copy was removed");
    fixture.stop().await
}

/// A program that deletes what a team has.
struct Leaving;

impl Extension for Leaving {
    fn name(&self) -> &'static str {
        "leaving"
    }

    fn routes(&self) -> OpenApiRouter<Services> {
        OpenApiRouter::new().routes(needs(Permission::TemplateDelete, routes!(leave)))
    }
}

/// Delete all templates, images and snapshots of the team.
#[utoipa::path(delete, path = "/templates-of-team", operation_id = "leaveTeam", responses((status = 200, body = u64)))]
async fn leave(State(services): State<Services>, caller: Caller) -> Result<Json<u64>, Fault> {
    Ok(Json(services.templates().delete_all(&caller).await?))
}

pub(crate) async fn all_of_a_team_is_deleted(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut fixture = start(stores, name, stored_in(dir.path())).await?;
    let api = fixture.serve_with(|builder| builder.with_extension(Leaving)).await?;
    let (first, second) = both(&fixture);
    let image = add_image(&fixture, ("web", 1), &["latest"]).await?;
    let snapshot = add_snapshot(&fixture, ("warm", 1), &["latest"]).await?;
    first.now().snapshots.insert(snapshot.clone());
    fixture.wait_value("SELECT count(*)::text FROM stored WHERE state = 'ready'", "2").await?;
    fill(&fixture, &first).await?;
    create_on(&fixture, &second, "warm").await?;
    let request = api.request(Method::DELETE, "/templates-of-team");
    let deleted = api.send(request).await?.expect(200)?.json();
    ensure!(deleted == 3, "{deleted}: two versions, and a snapshot");
    for agent in [&first, &second] {
        wait_has(agent, &image, false).await?;
        wait_has(agent, &snapshot, false).await?;
    }
    for table in ["stored", "copies", "doomed_images", "snapshots", "template_versions"] {
        fixture.wait_value(&format!("SELECT count(*)::text FROM {table}"), "0").await?;
    }
    let root = dir.path().join("images");
    let is_empty = async || objects(&root).is_ok_and(|left| left.is_empty()).then_some(());
    wait_until("an empty store", SOON, is_empty).await?;
    fixture.stop().await
}
