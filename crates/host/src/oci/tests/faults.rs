// SPDX-License-Identifier: Apache-2.0
//! Imports beside others that get nowhere, and imports whose end cannot be recorded.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use rustix::fs::{FallocateFlags, fallocate};
use wrenn_disk::loopfs;

use super::*;

/// Time limit that is only reached on failures.
const SOON: Duration = Duration::from_secs(60);

/// A registry that never answers some requests.
struct Silent {
    host: String,
    /// Number of those requests.
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Silent {
    async fn start(contents: Contents, unanswered: HashSet<String>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (host, asked) = (listener.local_addr()?.to_string(), Arc::new(AtomicUsize::new(0)));
        let (all, counted) = (Arc::new((contents, unanswered)), asked.clone());
        let router = Router::new().fallback(move |uri: Uri| {
            let (all, counted) = (all.clone(), counted.clone());
            async move {
                let (contents, unanswered) = &*all;
                if unanswered.contains(uri.path()) {
                    counted.fetch_add(1, Ordering::Relaxed);
                    std::future::pending::<()>().await;
                }
                let found = contents.get(uri.path()).cloned();
                let status = if found.is_some() { 200 } else { 404 };
                let response = Response::builder().status(status);
                response.body(Body::from(found.unwrap_or_default())).expect("a response")
            }
        });
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("it serves");
        });
        Ok(Self { host, asked, task })
    }

    /// Waits until so many requests wait for what is never answered.
    async fn until_asked(&self, requests: usize) -> anyhow::Result<()> {
        let asked = async {
            while self.asked.load(Ordering::Relaxed) < requests {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        Ok(timeout(SOON, asked).await?)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn registries_that_deliver_nothing_hold_no_other_import_up() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    // More than are unpacked at once for a team.
    let tags = ["one", "two", "three"];
    let (mut contents, mut unanswered) = (Contents::new(), HashSet::new());
    for tag in tags {
        let layer = layer(&[file(tag, b"never arrives")])?;
        publish(&mut contents, tag, &json!({}), std::slice::from_ref(&layer));
        unanswered.insert(format!("/v2/team/app/blobs/{}", Digest::of(&layer)));
    }
    publish(&mut contents, "quick", &json!({}), &small()?);
    let registry = Silent::start(contents, unanswered).await?;
    let mut agent = Agent::new(&Server::start(Contents::new()).await?, ImageSettings::default()).await?;
    agent.settings.registries_plain_http = Some(registry.host.clone());
    let imports = agent.start().await?;
    let slow = tags.map(|tag| {
        let (imports, reference) = (imports.clone(), format!("{}/team/app:{tag}", registry.host));
        tokio::spawn(async move { imports.import(TEAM, &reference, None).await.map(drop) })
    });
    registry.until_asked(tags.len()).await.context("not all are pulled at once")?;
    let quick = format!("{}/team/app:quick", registry.host);
    timeout(SOON, imports.import(TEAM, &quick, None)).await.context("it waits for the others")??;
    ensure!(slow.iter().all(|import| !import.is_finished()), "an import without a layer has ended");
    slow.iter().for_each(JoinHandle::abort);
    Ok(())
}

#[tokio::test]
async fn a_registry_that_delivers_nothing_holds_nobody_up_who_asks_another_one() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (layer, mut contents) = (layer(&[file("a", b"content")])?, Contents::new());
    publish(&mut contents, "latest", &json!({}), std::slice::from_ref(&layer));
    let honest = Server::start(contents.clone()).await?;
    let unanswered = HashSet::from([format!("/v2/team/app/blobs/{}", Digest::of(&layer))]);
    let silent = Silent::start(contents, unanswered).await?;
    let mut agent = Agent::new(&honest, ImageSettings::default()).await?;
    agent.settings.registries_plain_http = Some(format!("{},{}", honest.host, silent.host));
    let imports = agent.start().await?;
    // Of the same team, and of another one that asks the same registry.
    let slow = [TEAM, "other"].map(|team| {
        let (imports, reference) = (imports.clone(), format!("{}/team/app:latest", silent.host));
        tokio::spawn(async move { imports.import(team, &reference, None).await.map(drop) })
    });
    silent.until_asked(slow.len()).await.context("one team waits for the import of another one")?;
    let reference = honest.reference("latest");
    let quick = imports.import(TEAM, &reference, None);
    timeout(SOON, quick).await.context("it waits for the other registry")??;
    ensure!(slow.iter().all(|import| !import.is_finished()), "an import without a layer has ended");
    slow.iter().for_each(JoinHandle::abort);
    Ok(())
}

#[tokio::test]
async fn imports_of_one_image_from_several_sources_make_one() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut contents = Contents::new();
    publish(&mut contents, "latest", &json!({}), &small()?);
    let server = Server::start(contents).await?;
    let agent = Agent::new(&server, ImageSettings::default()).await?;
    let (imports, reference) = (agent.start().await?, server.reference("latest"));
    let all = ["one", "two", "three"].map(|team| imports.import(team, &reference, None));
    let all = futures::future::try_join_all(all).await?;
    ensure!(all.iter().all(|image| *image == all[0]), "{all:?}");
    ensure!(fs::read_dir(agent.path("imports"))?.count() == 0, "something is left");
    Ok(())
}

#[tokio::test]
async fn a_team_leaves_places_for_the_next_one() -> anyhow::Result<()> {
    let server = Server::start(Contents::new()).await?;
    let agent = Agent::new(&server, ImageSettings::default()).await?;
    let imports = agent.start().await?;
    let calls: Vec<_> = std::iter::from_fn(|| imports.call(TEAM).ok()).collect();
    assert_eq!(calls.len(), CALLS / 2);
    let refused = imports.import(TEAM, &server.reference("absent"), None).await.expect_err("too many");
    assert_eq!(refused.code, ErrorCode::TooManyRequests);
    assert!(refused.message.starts_with("the team "), "{refused}");
    let other = imports.import("other", &server.reference("absent"), None).await;
    assert_eq!(other.map_err(|error| error.code), Err(ErrorCode::ImageNotFound));
    Ok(())
}

#[tokio::test]
async fn only_registries_that_are_named_may_be_in_private_networks() -> anyhow::Result<()> {
    let server = Server::start(Contents::new()).await?;
    let registries = Some("registry.lan:5000,docker.io".to_owned());
    let agent = Agent::new(&server, ImageSettings { registries, ..ImageSettings::default() }).await?;
    let imports = agent.start().await?;
    for (registry, public_only) in [
        ("docker.io", false),
        ("registry.lan:5000", false),
        ("registry.lan", true),
        ("ghcr.io", true),
        (server.host.as_str(), false),
    ] {
        assert_eq!(imports.options(registry, None).public_only, public_only, "{registry}");
    }
    Ok(())
}

#[tokio::test]
async fn a_registry_that_stalls_is_given_up() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (layer, mut contents) = (layer(&[file("a", b"never arrives")])?, Contents::new());
    publish(&mut contents, "latest", &json!({}), std::slice::from_ref(&layer));
    publish(&mut contents, "other", &json!({ "User": "1" }), &[]);
    let manifest = "/v2/team/app/manifests/other".to_owned();
    let unanswered = HashSet::from([format!("/v2/team/app/blobs/{}", Digest::of(&layer)), manifest]);
    let registry = Silent::start(contents, unanswered).await?;
    let settings = ImageSettings { pull_limit: Duration::from_secs(1), ..ImageSettings::default() };
    let mut agent = Agent::new(&Server::start(Contents::new()).await?, settings).await?;
    agent.settings.registries_plain_http = Some(registry.host.clone());
    let imports = agent.start().await?;
    let before = agent.listed()?;
    // Amid a layer, and before it is known what the image is.
    for tag in ["latest", "other"] {
        let reference = format!("{}/team/app:{tag}", registry.host);
        let refused = timeout(SOON, imports.import(TEAM, &reference, None)).await.context(tag)?;
        assert_eq!(refused.map_err(|error| error.code), Err(ErrorCode::RegistryUnavailable), "{tag}");
        assert_eq!(agent.listed()?, before, "{tag}");
    }
    Ok(())
}

/// A file system that only one test uses.
struct Mounted {
    dir: TempDir,
}

impl Mounted {
    fn new(bytes: u64) -> anyhow::Result<Self> {
        let mounted = Self { dir: tempfile::tempdir()? };
        loopfs::mount_store(&mounted.dir.path().join("store.xfs"), &mounted.path(), bytes)?;
        Ok(mounted)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = loopfs::unmount_store(&self.path()) {
            eprintln!("{} stays mounted: {error}", self.path().display());
        }
    }
}

#[tokio::test]
async fn a_pull_ends_when_others_fill_the_disk() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (layer, mut contents) = (layer(&[file("a", b"never arrives")])?, Contents::new());
    publish(&mut contents, "latest", &json!({}), std::slice::from_ref(&layer));
    let unanswered = HashSet::from([format!("/v2/team/app/blobs/{}", Digest::of(&layer))]);
    let registry = Silent::start(contents, unanswered).await?;
    let mounted = Mounted::new(2 << 30)?;
    let home = tempfile::tempdir_in(mounted.path())?;
    let volumes = wrenn_disk::open(StoreConfig::new(home.path().join("disks"), Backend::Copy, "t")).await?;
    let registries_plain_http = Some(registry.host.clone());
    let settings = ImageSettings { registries_plain_http, ..ImageSettings::default() };
    let agent = Agent { home, volumes, settings };
    let imports = agent.start().await?;
    let (pulling, reference) = (imports.clone(), format!("{}/team/app:latest", registry.host));
    let pulling = tokio::spawn(async move { pulling.import(TEAM, &reference, None).await.map(drop) });
    registry.until_asked(1).await.context("nothing is pulled")?;
    let before = agent.volumes.pressure().await?;
    let filler = fs::File::create(mounted.path().join("filler"))?;
    fallocate(&filler, FallocateFlags::empty(), 0, before.free - before.reserve / 2)?;
    let ended = timeout(SOON, pulling).await.context("it goes on on a full disk")??;
    assert_eq!(ended.map_err(|error| error.code), Err(ErrorCode::InsufficientStorage));
    assert_eq!(fs::read_dir(agent.path("imports"))?.count(), 0, "something is left");
    Ok(())
}

#[tokio::test]
async fn an_image_whose_record_cannot_be_written_is_not_kept() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut contents = Contents::new();
    publish(&mut contents, "latest", &json!({}), &small()?);
    let server = Server::start(contents).await?;
    let agent = Agent::new(&server, ImageSettings::default()).await?;
    let imports = agent.start().await?;
    let records = agent.path("images");
    // Where there is no directory, no record is written.
    if records.exists() {
        fs::remove_dir_all(&records)?;
    }
    fs::write(&records, "")?;
    let refused = imports.import(TEAM, &server.reference("latest"), None).await;
    ensure!(refused.is_err(), "it is kept without a record: {refused:?}");
    let contents: Vec<_> =
        agent.listed()?.into_iter().filter(|path| path.extension().is_some_and(|of| of == "img")).collect();
    ensure!(contents.is_empty(), "nobody would remove {contents:?}");
    fs::remove_file(&records)?;
    fs::create_dir(&records)?;
    imports.import(TEAM, &server.reference("latest"), None).await?;
    Ok(())
}
