// SPDX-License-Identifier: Apache-2.0
//! Hosts with problems: full disk, guests that do not boot, few file descriptors.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::json;
use wrenn_testkit::{Setup, Stack, in_lab, short_or_long, wait_until};

use super::{
    fleet::{create_many, delete_many},
    support::{delete_wholly, end, listed, nothing_remains, wait_exec},
};

/// Environment of a Wrenn that does not probe KVM; the shared one did.
pub(crate) fn quick_driver() -> Vec<(String, String)> {
    let driver = if in_lab() { "firecracker" } else { "tcg" };
    vec![("WRENN_AGENT_DRIVER".to_owned(), driver.to_owned())]
}

async fn start(env: &[(&str, &str)], open_files: Option<u64>) -> Result<Stack> {
    let mut variables = quick_driver();
    variables.extend(env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
    Stack::start_with(Setup { env: variables, open_files, ..Setup::default() }).await
}

/// Fills the volume store: completely if it has a file system of its own, else so far that the rest of Wrenn
/// is not affected.
fn fill(stack: &Stack) -> Result<PathBuf> {
    let path = stack.state_dir.join("agent/volumes/filler");
    if in_lab() {
        let stat = rustix::fs::statvfs(&stack.state_dir)?;
        let size = (stat.f_bavail * stat.f_frsize).saturating_sub(400 << 20);
        let done = Command::new("fallocate").args(["-l", &size.to_string()]).arg(&path).status()?;
        anyhow::ensure!(done.success(), "the store cannot be filled with {size} bytes");
        return Ok(path);
    }
    for size in ["64M", "8M", "1M", "64K", "4K"] {
        loop {
            let have = fs::metadata(&path).map_or(0, |meta| meta.len());
            let status = Command::new("fallocate")
                .arg("-o")
                .arg(have.to_string())
                .args(["-l", size])
                .arg(&path)
                .output()?;
            if !status.status.success() {
                break;
            }
        }
    }
    let size = fs::metadata(&path)?.len();
    anyhow::ensure!(size > 64 << 20, "only {size} bytes were free: is the store mounted?");
    Ok(path)
}

/// Without disk space creates fail with `insufficient_storage` and leave nothing; they work once there is
/// space again.
async fn disk_full(stack: &Stack) -> Result<()> {
    let before = stack.api.create(&json!({"memory_mb": 256})).await?;
    let filler = fill(stack)?;
    let mut sandboxes = vec![before.clone()];
    for _ in 0..4 {
        let reply = stack.api.post("/v1/sandboxes", &json!({"memory_mb": 256})).await?;
        reply.expect_error(507, "insufficient_storage")?;
        let failed =
            listed(stack).await?.into_iter().find(|id| !sandboxes.contains(id)).context("no record")?;
        nothing_remains(stack, &failed).await?;
        sandboxes.push(failed);
    }
    // The sandbox that ran before is paused, because it could not store its writes. It loses no data.
    let held = async || {
        let path = format!("/v1/sandboxes/{before}/exec");
        // A request that was in progress when the guest was paused waits with it.
        let exec = stack.api.request(Method::POST, &path).timeout(Duration::from_secs(2));
        let reply = stack.api.send(exec.json(&json!({"cmd": "true"}))).await.ok()?;
        reply.expect_error(507, "insufficient_storage").ok().map(drop)
    };
    wait_until("the sandbox to be paused", Duration::from_secs(60), held).await?;
    fs::remove_file(filler)?;
    wait_exec(stack, &before, 60).await.context("the sandbox that was paused")?;
    // A full disk is not counted as a failure of the host, so the host still gets sandboxes.
    let after = stack.api.create(&json!({"memory_mb": 256})).await?;
    sandboxes.push(after);
    for id in sandboxes {
        delete_wholly(stack, &id).await?;
    }
    Ok(())
}

/// File that is corrupted: the initial RAM disk, or in a lab the kernel, where missing the RAM disk would
/// take long.
fn spoilt() -> &'static str {
    if in_lab() { "vmlinux" } else { "initrd.img" }
}

/// Returns the content of a file with everything after its headers replaced by invalid instructions.
fn spoil(good: &Path) -> Result<Vec<u8>> {
    const HEADERS: usize = 4096;
    let mut content = fs::read(good)?;
    anyhow::ensure!(content.len() > HEADERS, "{} is short", good.display());
    content[HEADERS..].chunks_exact_mut(2).for_each(|ud2| ud2.copy_from_slice(&[0x0f, 0x0b]));
    Ok(content)
}

/// Name of a template whose image is not a file system.
const NO_FILE_SYSTEM: &str = "no-file-system";

fn bad_template(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let manifest = json!({"name": NO_FILE_SYSTEM, "default_user": "root", "size_mb": 8});
    fs::write(dir.join("manifest.json"), manifest.to_string())?;
    Ok(fs::write(dir.join("rootfs.ext4"), vec![0x5a; 8 << 20])?)
}

/// Creates a share directory whose guests do not boot; returns the path of the good one.
fn broken_share(dir: &Path) -> Result<PathBuf> {
    let good: PathBuf = std::env::var_os("WRENN_SHARE_DIR").context("WRENN_SHARE_DIR is not set")?.into();
    let bad = dir.join("share");
    bad_template(&bad.join("images").join(NO_FILE_SYSTEM))?;
    for name in ["vmlinuz", "vmlinux", "initrd.img", "images/minimal"] {
        if name == spoilt() {
            fs::write(bad.join(name), spoil(&good.join(name))?)?;
        } else {
            std::os::unix::fs::symlink(good.join(name), bad.join(name))?;
        }
    }
    Ok(good)
}

/// A template image that is not a file system is named as the cause, and nothing is left of the sandbox.
async fn bad_root(stack: &Stack) -> Result<()> {
    let body = json!({"memory_mb": 256, "template": NO_FILE_SYSTEM});
    let reply = stack.api.post("/v1/sandboxes", &body).await?;
    let said = reply.expect_error(502, "agent_error")?.json().to_string();
    anyhow::ensure!(said.contains("check the template's image"), "{said}");
    let count = stack.sql("SELECT failed_creates FROM hosts")?;
    anyhow::ensure!(count == "0", "a template's fault counts against its host: {count}");
    let ids = listed(stack).await?;
    let [id] = ids.as_slice() else { anyhow::bail!("one is expected, these are there: {ids:?}") };
    nothing_remains(stack, id).await?;
    delete_wholly(stack, id).await
}

/// A host whose guests never boot gets no more sandboxes after three failures.
async fn bad_host(stack: &Stack, good: &Path) -> Result<()> {
    for number in 0..3 {
        let reply = stack.api.post("/v1/sandboxes", &json!({"memory_mb": 256})).await?;
        let reply = reply.expect_error(502, "agent_error").with_context(|| format!("create {number}"))?;
        anyhow::ensure!(!reply.json().to_string().contains("/tmp/"), "a path of the host: {}", reply.json());
    }
    let reply = stack.api.post("/v1/sandboxes", &json!({"memory_mb": 256})).await?;
    reply.expect_error(503, "no_hosts_available")?;
    let failed = listed(stack).await?;
    anyhow::ensure!(failed.len() == 3, "{failed:?}");
    for id in &failed {
        nothing_remains(stack, id).await.context("before it is deleted")?;
    }

    // The host is tried again after a minute; skip that minute and repair the cause. A create would fail if
    // the three failed ones still occupied memory.
    fs::copy(good.join(spoilt()), stack.state_dir.join("agent/boot").join(spoilt()))?;
    stack.sql("UPDATE hosts SET ejected_until = now()")?;
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let count = stack.sql("SELECT failed_creates FROM hosts WHERE ejected_until IS NULL")?;
    anyhow::ensure!(count == "0", "the host is not trusted again: {count:?}");
    for id in failed.iter().chain([&id]) {
        delete_wholly(stack, id).await?;
    }
    Ok(())
}

/// Guests that never boot, an invalid image, then a full disk. One Wrenn for all, because in a lab most of
/// the time is its start.
pub(crate) async fn bad_guests_and_a_full_disk() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let good = broken_share(dir.path())?;
    let share = dir.path().join("share").display().to_string();
    let env = [("WRENN_SHARE_DIR", share.as_str()), ("WRENN_AGENT_STORE_SIZE_MB", "1024")];
    let stack = start(&env, None).await?;
    let result = async {
        bad_host(&stack, &good).await.context("guests that never boot")?;
        bad_root(&stack).await.context("an image that is none")?;
        disk_full(&stack).await.context("a full disk")
    };
    let result = result.await;
    end(stack, result).await
}

/// Growth in open files that is not counted as a leak, such as idle connections: less than the eight
/// sandboxes.
const MORE_FILES: usize = 6;

fn open_files(stack: &Stack) -> Result<[usize; 2]> {
    Ok([stack.process("agent")?.open_files()?, stack.process("server")?.open_files()?])
}

async fn few_files(stack: &Stack) -> Result<()> {
    for part in ["agent", "server"] {
        let limits = fs::read_to_string(format!("/proc/{}/limits", stack.child(part)?.as_raw_nonzero()))?;
        let line = limits.lines().find(|line| line.starts_with("Max open files")).context("no limits")?;
        anyhow::ensure!(line.split_whitespace().nth(3) == Some("256"), "{part}: {line}");
    }
    let first = create_many(stack, 2).await?;
    delete_many(stack, &first).await?;
    let before = open_files(stack)?;
    for _ in 0..short_or_long(2, 10) {
        let ids = create_many(stack, 4).await?;
        delete_many(stack, &ids).await?;
    }
    let mut now = before;
    let back = async || {
        now = open_files(stack).ok()?;
        now.iter().zip(before).all(|(now, before)| now.saturating_sub(before) <= MORE_FILES).then_some(())
    };
    let same = wait_until("hardly more open files than before", Duration::from_secs(15), back).await;
    same.with_context(|| format!("agent and server had {before:?} and have {now:?}"))
}

/// Sandboxes are created and deleted with a low limit of open files, and none leaks a file descriptor.
pub(crate) async fn few_open_files() -> Result<()> {
    let stack = start(&[], Some(256)).await?;
    let result = few_files(&stack).await;
    end(stack, result).await
}
