// SPDX-License-Identifier: Apache-2.0
//! Images of a registry: Debian's, on this machine, with images that are made as others make them.

mod made;
mod uncommon;

use std::{
    fs, io,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use wrenn_testkit::{Stack, oci_images::tool, short_or_long, wait_until};

use self::made::{GREETED, LOOK, SEEN, debian, make};
use super::{
    builds::{build, context, stdout},
    cli::{stderr, wrenn},
    support::{delete_wholly, nothing_remains},
    template_snapshots::resumed,
};

/// Time limit for a registry to serve, and for the memory of a sandbox to be kept for the next one.
const SERVES: Duration = Duration::from_secs(120);
const KEPT: Duration = Duration::from_secs(120);
/// Account of the registry that asks for one, with the hash of its password.
const PASSWORD: &str = "secret-of-the-registry";
const HTPASSWD: &str = "robot:$2y$05$abcdefghijklmnopqrstuuIwTm9henchirBqUfvuoNrWExGiIP5SK\n";

/// A registry that serves two names: one for all, and one that asks for an account.
struct Registry {
    dir: TempDir,
    servers: Vec<Child>,
}

impl Registry {
    /// Starts it under the names that the stack's agent imports from.
    async fn start(stack: &Stack) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut registry = Self { dir, servers: Vec::new() };
        let htpasswd = registry.path("htpasswd");
        fs::write(&htpasswd, HTPASSWD)?;
        let auth = format!("auth: {{htpasswd: {{realm: wrenn, path: {}}}}}\n", htpasswd.display());
        for (name, more) in stack.registries.iter().zip(["", auth.as_str()]) {
            let config = registry.path(&format!("{name}.yml"));
            let store = registry.path("store");
            let text = format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{name}\"}}\n{more}",
                store.display()
            );
            fs::write(&config, text)?;
            let mut server = Command::new("docker-registry");
            server.arg("serve").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            registry.servers.push(server.spawn().context("docker-registry: run scripts/setup")?);
            let url = format!("http://{name}/v2/");
            let serves = async || reqwest::get(&url).await.ok();
            wait_until(&format!("the registry {name}"), SERVES, serves).await?;
        }
        Ok(registry)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the images, and puts them into the registry.
    async fn fill(&self, name: &str) -> Result<()> {
        let (dir, name) = (self.dir.path().to_owned(), name.to_owned());
        tokio::task::spawn_blocking(move || {
            make(&dir)?;
            let mut tags = vec!["1", "s390x", "kinds"];
            if short_or_long(false, true) {
                debian(&dir)?;
                tags.push("debian");
            }
            for tag in tags {
                let (from, to) = (format!("oci:oci:{tag}"), format!("docker://{name}/bb:{tag}"));
                let arguments = ["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", &from, &to];
                tool(&dir, "skopeo", &arguments)?;
            }
            Ok(())
        })
        .await?
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Arguments of a `wrenn run` in a sandbox that its case finds again.
fn run<'a>(image: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let label = if image.starts_with("uploaded:") { "e2e=uploads" } else { "e2e=images" };
    let sizes = ["run", "--memory", "256", "--disk", "1g", "--label", label, "--image", image];
    [&sizes[..], more].concat()
}

/// An image is imported and runs as it says, the next sandbox of it goes on from memory, and templates are built on it although it
/// has no shell but busybox's, no `useradd` and no `sudo`. What cannot be imported is told with the reason.
pub(crate) async fn they_run_as_they_say_and_are_built_on(stack: Arc<Stack>) -> Result<()> {
    let [open, closed] = &stack.registries;
    let registry = Registry::start(&stack).await?;
    registry.fill(open).await?;
    let image = format!("{open}/bb:1");
    let ran = wrenn(&stack, &run(&image, &[]), None).await?;
    ensure!(ran.status.code() == Some(7), "{ran:?}");
    let told = String::from_utf8_lossy(&ran.stdout).into_owned();
    ensure!(told == GREETED, "{told}\n{}", stderr(&ran));
    let ran = wrenn(&stack, &run(&image, &["--", "echo", "another"]), None).await?;
    ensure!(ran.status.success() && ran.stdout == b"another\n", "{ran:?}");
    let kinds = format!("{open}/bb:kinds");
    let ran = wrenn(&stack, &run(&kinds, &["--", "sh", "-c", LOOK]), None).await?;
    let told = String::from_utf8_lossy(&ran.stdout).into_owned();
    ensure!(ran.status.success() && told == SEEN, "{told}\n{}", stderr(&ran));
    if short_or_long(false, true) {
        let script = "grep ^ID= /etc/os-release; python3 -c 'print(6 * 7)'; dpkg --audit && id -un";
        let debian = format!("{open}/bb:debian");
        let ran = wrenn(&stack, &run(&debian, &["--", "sh", "-c", script]), None).await?;
        ensure!(ran.status.success() && ran.stdout == b"ID=debian\n42\nroot\n", "{ran:?}");
    }

    the_next_one_goes_on(&stack, &image).await?;
    refusals_are_told(&stack, open, closed).await?;
    accounts_are_used_and_not_told(&stack, closed).await?;
    a_template_is_built_on_it(&stack, &image).await?;

    let left = stack.api.get("/v1/sandboxes?label=e2e=images").await?.expect(200)?.json();
    ensure!(left == json!([]), "{left}");
    nothing_is_in_work(&stack).await
}

/// Sandboxes of one image and size go on from the memory of the first one, each with what the image says.
async fn the_next_one_goes_on(stack: &Stack, image: &str) -> Result<()> {
    let body = json!({"image": image, "memory_mb": 256, "disk_size_mb": 1024, "envs": {"MORE": "1"}});
    let mut last = None;
    let goes_on = async || {
        let id = stack.api.create(&body).await.ok()?;
        if resumed(stack, &id).ok()? {
            return Some(id);
        }
        stack.api.remove(&id).await.ok()?;
        last = Some(id);
        None
    };
    let id = wait_until("a sandbox that goes on from memory", KEPT, goes_on).await?;
    let ran = stack.api.exec(&id, &["sh", "-c", "id -u; pwd; echo $MODE $MORE $PATH"]).await?;
    ensure!(ran["stdout"] == "1000\n/srv\ntest 1 /bin\n", "{ran}");
    let sandbox = stack.api.get(&format!("/v1/sandboxes/{id}")).await?.expect(200)?.json();
    ensure!(sandbox["template"] == image && sandbox["image"]["reference"] == image, "{sandbox}");
    ensure!(sandbox["image"]["command"] == json!(["/bin/greet", "x", "y"]), "{sandbox}");
    let digest = sandbox["image"]["digest"].as_str().context("no digest")?;
    // By its digest it is the same image.
    let (name, _) = image.rsplit_once(':').context("no tag")?;
    let pinned = stack.api.create(&json!({"image": format!("{name}@{digest}"), "memory_mb": 256})).await?;
    for id in [&id, &pinned] {
        delete_wholly(stack, id).await?;
    }
    match last {
        Some(booted) => nothing_remains(stack, &booted).await,
        None => Ok(()),
    }
}

/// What is not there, is for another processor or may not be asked for has a code, and leaves no sandbox.
async fn refusals_are_told(stack: &Arc<Stack>, open: &str, closed: &str) -> Result<()> {
    for (image, code, told) in [
        (format!("{open}/none:1"), "image_not_found", "none:1"),
        (format!("{open}/bb:2"), "image_not_found", "bb:2"),
        (format!("{open}/bb:s390x"), "image_platform_mismatch", "s390x"),
        (format!("{closed}/bb:1"), "registry_denied", "account"),
        ("127.0.0.1:1/bb:1".to_owned(), "registry_denied", "agent.registries"),
        ("Not An Image".to_owned(), "invalid_request", "image"),
    ] {
        let refused = wrenn(stack, &run(&image, &[]), None).await?;
        let text = stderr(&refused);
        ensure!(refused.status.code() == Some(125), "{image}: {refused:?}");
        ensure!(text.contains(code) && text.contains(told), "{image}: {text}");
    }
    Ok(())
}

/// The account of a registry comes from standard input or a variable, for a sandbox and for a build, and is in no log.
async fn accounts_are_used_and_not_told(stack: &Arc<Stack>, closed: &str) -> Result<()> {
    let (image, user) = (format!("{closed}/bb:1"), ["--registry-user", "robot"]);
    let from_input = [&user[..], &["--registry-password-stdin", "--", "echo", "in"]].concat();
    let ran = wrenn(stack, &run(&image, &from_input), Some(&format!("{PASSWORD}\n"))).await?;
    ensure!(ran.status.success() && ran.stdout == b"in\n", "{ran:?}");
    let wrong = wrenn(stack, &run(&image, &from_input), Some("wrong\n")).await?;
    ensure!(stderr(&wrong).contains("registry_denied"), "{wrong:?}");
    let without = wrenn(stack, &run(&image, &user), None).await?;
    ensure!(stderr(&without).contains("WRENN_REGISTRY_PASSWORD"), "{without:?}");

    let context = context(&format!("FROM {image}\nENV KEPT=1\n"), &[])?;
    let directory = context.path().display().to_string();
    let of_stack = stack.clone();
    let built = tokio::task::spawn_blocking(move || {
        let build = ["template", "build", "e2e-account", "--context", &directory, "--memory", "256"];
        let mut command = of_stack.command(&[&build[..], &["--disk-size", "1g"], &user].concat())?;
        anyhow::Ok(command.env("WRENN_REGISTRY_PASSWORD", PASSWORD).output()?)
    });
    let built = built.await??;
    ensure!(built.status.success() && built.stdout == b"e2e-account:latest\n", "{}", stderr(&built));
    stdout(stack, &["template", "rm", "e2e-account"]).await?;
    ensure!(stack.sql("SELECT count(*) FROM builds WHERE registry IS NOT NULL")? == "0");
    for entry in fs::read_dir(stack.state_dir.join("logs"))? {
        let path = entry?.path();
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        ensure!(!text.contains(PASSWORD), "{} has the password", path.display());
    }
    Ok(())
}

/// A recipe begins with what the image says, runs commands in it, copies files and makes a user.
async fn a_template_is_built_on_it(stack: &Arc<Stack>, image: &str) -> Result<()> {
    let recipe = format!(
        "FROM {image}\nRUN echo \"$MODE in $PWD as $(id -u)\" > /tmp/ran\nUSER root\n\
         COPY --chmod=755 hello /bin/hello\nUSER app\nRUN hello \"$(id -un)\" > /tmp/hello\n"
    );
    let context = context(&recipe, &[("hello", "#!/bin/sh\necho hello $1 of $MODE\n")])?;
    let (code, built, told) = build(stack, "e2e-image", context.path()).await?;
    ensure!(code == Some(0) && built["status"] == "succeeded", "{built} {told}");
    let importing = format!("importing {image}");
    for part in [importing.as_str(), "sha256:", " MiB"] {
        ensure!(told.contains(part), "{part:?} is not told:\n{told}");
    }
    let (code, again, told) = build(stack, "e2e-image", context.path()).await?;
    let steps = again["steps"].as_array().context("no steps")?;
    ensure!(code == Some(0) && steps.iter().all(|step| step["status"] == "cached"), "{again} {told}");
    let body = json!({"template": "e2e-image", "memory_mb": 256, "disk_size_mb": 1024});
    let id = stack.api.create(&body).await?;
    let ran: Value = stack.api.exec(&id, &["sh", "-c", "cat /tmp/ran /tmp/hello; id -un; pwd"]).await?;
    ensure!(ran["stdout"] == "test in /srv as 1000\nhello app of test\napp\n/srv\n", "{ran}");
    delete_wholly(stack, &id).await?;
    stdout(stack, &["template", "rm", "e2e-image"]).await.map(drop)
}

/// Makes archives of the images of [`make`]: as of `docker save`, an OCI layout that is compressed, one for another processor, and
/// those of uncommon images.
async fn archives() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_owned();
    tokio::task::spawn_blocking(move || {
        make(&path)?;
        for (from, to) in [
            ("oci:oci:1", "docker-archive:saved.tar:e2e-upload:1"),
            ("oci:oci:1", "oci:single:e2e-layout:1"),
            ("oci:oci:s390x", "docker-archive:foreign.tar:e2e-foreign:1"),
            ("oci:oci:bare", "docker-archive:bare.tar:e2e-bare:1"),
            ("oci:oci:ghost", "docker-archive:ghost.tar:e2e-ghost:1"),
            ("oci:oci:server", "docker-archive:server.tar:e2e-server:1"),
        ] {
            tool(&path, "skopeo", &["--insecure-policy", "copy", "-q", from, to])?;
        }
        tool(&path, "tar", &["-C", "single", "-czf", "layout.tar.gz", "."])?;
        let saved = fs::read(path.join("saved.tar"))?;
        Ok::<_, anyhow::Error>(fs::write(path.join("cut.tar"), &saved[..saved.len() / 2])?)
    })
    .await??;
    Ok(dir)
}

/// An archive that is uploaded runs as the image of a registry does, without one; what it cannot be is told with the reason.
pub(crate) async fn an_uploaded_archive_runs(stack: Arc<Stack>) -> Result<()> {
    let dir = archives().await?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let loaded = stdout(&stack, &["image", "load", "-i", &path("saved.tar")]).await?;
    ensure!(loaded == "uploaded:e2e-upload:1\n", "{loaded}");
    let ran = wrenn(&stack, &run("uploaded:e2e-upload:1", &[]), None).await?;
    ensure!(ran.status.code() == Some(7), "{ran:?}");
    let told = String::from_utf8_lossy(&ran.stdout).into_owned();
    ensure!(told == GREETED, "{told}\n{}", stderr(&ran));
    let loaded = stdout(&stack, &["image", "load", "-i", &path("layout.tar.gz")]).await?;
    ensure!(loaded == "uploaded:e2e-layout:1\n", "{loaded}");
    for (file, code, told) in [
        ("foreign.tar", "image_platform_mismatch", "s390x"),
        ("cut.tar", "image_damaged", "the archive"),
        ("oci/oci-layout", "image_damaged", "the archive"),
        ("ghost.tar", "image_damaged", "runs as `ghost`, but has no user of that name"),
    ] {
        let refused = wrenn(&stack, &["image", "load", "-i", &path(file), "e2e-refused"], None).await?;
        let text = stderr(&refused);
        ensure!(
            refused.status.code() == Some(1) && text.contains(code) && text.contains(told),
            "{file}: {text}"
        );
    }
    let all = stack.api.get("/v1/images").await?.expect(200)?.json();
    let names = all.as_array().context("no list")?.iter().filter(|image| image["uploaded"] == true);
    let names: Vec<_> = names.filter_map(|image| image["reference"].as_str()).collect();
    ensure!(names == ["uploaded:e2e-layout:1", "uploaded:e2e-upload:1"], "{all}");
    for name in ["bare", "server"] {
        stdout(&stack, &["image", "load", "-i", &path(&format!("{name}.tar"))]).await?;
    }
    uncommon::one_program_is_enough(&stack).await?;
    uncommon::a_server_steps_down_from_root(&stack).await?;
    for name in ["e2e-layout:1", "e2e-upload:1", "e2e-bare:1", "e2e-server:1"] {
        // The sandbox that ran may be stopping still.
        let removed = async || stdout(&stack, &["image", "rm", name]).await.ok();
        wait_until("the removal of an image", KEPT, removed).await?;
    }
    nothing_is_in_work(&stack).await
}

/// Waits until the agent has nothing of imports and uploads any more; other cases may have some in work.
async fn nothing_is_in_work(stack: &Stack) -> Result<()> {
    let imports = stack.state_dir.join("agent/imports");
    let left =
        || -> io::Result<Vec<_>> { fs::read_dir(&imports)?.map(|entry| Ok(entry?.file_name())).collect() };
    let is_empty = async || left().ok()?.is_empty().then_some(());
    let waited = wait_until("the end of all imports", KEPT, is_empty).await;
    waited.with_context(|| format!("there is {:?}", left()))
}
