// SPDX-License-Identifier: Apache-2.0
//! Life of a sandbox.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use wrenn_testkit::{Events, Stack, in_lab, wait_until};

use super::support::{delete_wholly, killed, power_off, wait_status};

/// Room in MiB that is left to a VMM before it has reached its limit.
const ROOM: u64 = 64;
/// Takes more memory than that, and less than its guest has.
const TAKE: &str = "head -c 320M /dev/zero | tail -c 320M | wc -c";
/// Seconds for it, and for what it leads to: more than it takes on a busy machine.
const TAKE_SEC: u64 = 120;

/// Creates, uses and deletes a sandbox.
pub(crate) async fn create_use_delete(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"vcpus": 2, "memory_mb": 300})).await?;
    anyhow::ensure!(id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{id}");
    let path = format!("/v1/sandboxes/{id}");
    let got = stack.api.get(&path).await?.expect(200)?.json();
    anyhow::ensure!(got["vcpus"] == 2 && got["memory_mb"] == 300 && got["template"] == "minimal", "{got}");
    let alias = stack.api.get(&format!("/v1/capsules/{id}")).await?.expect(200)?.json();
    anyhow::ensure!(alias["id"] == id.as_str(), "{alias}");
    let listed = stack.api.get("/v1/sandboxes?limit=100").await?.expect(200)?.json();
    let found = listed.as_array().into_iter().flatten().any(|sandbox| sandbox["id"] == id.as_str());
    anyhow::ensure!(found, "not listed: {listed}");

    let answer = stack.api.exec(&id, &["python3", "-c", "print(6*7)"]).await?;
    anyhow::ensure!(answer["stdout"] == "42\n", "{answer}");
    let cpus = stack.api.exec(&id, &["nproc"]).await?;
    anyhow::ensure!(cpus["stdout"] == "2\n", "{cpus}");

    stack.api.remove(&id).await?;
    stack.api.remove(&id).await?;
    stack.api.get(&path).await?.expect_error(404, "not_found")?;
    let record = stack.api.get(&format!("/v1/capsules/{id}")).await?.expect(200)?.json();
    anyhow::ensure!(record["status"] == "stopped", "{record}");
    let gone = stack.api.get("/v1/sandboxes?status=stopped&limit=100").await?.expect(200)?.json();
    anyhow::ensure!(
        gone.as_array().into_iter().flatten().any(|sandbox| sandbox["id"] == id.as_str()),
        "{gone}"
    );
    let exec = stack.api.post(&format!("{path}/exec"), &json!({"cmd": "true"})).await?;
    exec.expect_error(409, "invalid_state")?;
    Ok(())
}

/// A repeated create with the same key returns the same sandbox.
pub(crate) async fn a_repeated_create_makes_one_sandbox(stack: Arc<Stack>) -> Result<()> {
    let create = async |body: serde_json::Value| {
        let request =
            stack.api.request(Method::POST, "/v1/sandboxes").header("Idempotency-Key", "once-only-7");
        stack.api.send(request.json(&body)).await
    };
    let first = create(json!({})).await?.expect(201)?.json();
    for _ in 0..20 {
        let again = create(json!({})).await?.expect(201)?.json();
        anyhow::ensure!(again["id"] == first["id"], "{again} is not {first}");
    }
    create(json!({"vcpus": 2})).await?.expect_error(409, "idempotency_request_mismatch")?;
    let id = first["id"].as_str().context("no id")?;
    stack.api.remove(id).await?;
    let deleted = create(json!({})).await?.expect_error(409, "idempotency_sandbox_deleted")?;
    anyhow::ensure!(deleted.json().to_string().contains(id), "{}", deleted.json());
    Ok(())
}

/// The guest sees a disk of `disk_size_mb`.
pub(crate) async fn the_disk_has_the_size_asked_for(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"disk_size_mb": 3000})).await?;
    let ran = stack.api.exec(&id, &["df", "--output=size", "-BM", "/"]).await?;
    let text = ran["stdout"].as_str().unwrap_or_default();
    let size: u32 = text.split_whitespace().last().unwrap_or_default().trim_end_matches('M').parse()?;
    anyhow::ensure!((2700..=3000).contains(&size), "the file system has {size} MiB");
    stack.api.remove(&id).await?;
    Ok(())
}

/// A guest that exits by itself puts the sandbox in status `error` with an explanation; it can be deleted.
pub(crate) async fn a_guest_that_powers_off_is_an_error_that_can_be_deleted(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({})).await?;
    let got = power_off(&stack, &id).await?;
    let message = got["error"]["message"].as_str().unwrap_or_default();
    anyhow::ensure!(message.len() > 10 && !message.contains("/tmp/"), "{got}");
    stack.api.remove(&id).await?;
    Ok(())
}

/// Finds a file of a sandbox's control group, of version 2 or 1.
fn group_file(id: &str, files: [&str; 2]) -> Result<PathBuf> {
    let files = files.map(|file| Path::new("/sys/fs/cgroup").join(file.replace("ID", id)));
    let found = files.iter().find(|file| file.exists()).cloned();
    found.with_context(|| format!("none of {files:?}"))
}

/// Reads a number of a sandbox's control group, of version 2 or 1.
fn number(id: &str, files: [&str; 2]) -> Result<u64> {
    Ok(fs::read_to_string(group_file(id, files)?)?.trim().parse()?)
}

/// Files with the memory limit of a sandbox's control group, of version 2 or 1.
const MEMORY_LIMIT: [&str; 2] = ["wrenn/ID/memory.max", "memory/wrenn/ID/memory.limit_in_bytes"];

/// Fails unless the VMM is in the sandbox's control group, which limits its memory and its tasks.
fn check_bounds(vmm: Pid, id: &str) -> Result<()> {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", vmm.as_raw_nonzero()))?;
    anyhow::ensure!(groups.lines().any(|line| line.ends_with(&format!("/wrenn/{id}"))), "it is in {groups}");
    let memory = number(id, MEMORY_LIMIT)?;
    // An emulator uses more memory than its guest.
    anyhow::ensure!((128 << 20..2 << 30).contains(&memory), "it may use {memory} bytes");
    let tasks = number(id, ["wrenn/ID/pids.max", "pids/wrenn/ID/pids.max"])?;
    anyhow::ensure!((16..1024).contains(&tasks), "it may have {tasks} tasks");
    Ok(())
}

/// A killed VMM puts the sandbox in status `error` with the last lines of the VMM's log; it can be deleted.
pub(crate) async fn a_vmm_that_is_killed_is_told(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 128})).await?;
    let vmm = stack.vmm(&id)?;
    check_bounds(vmm, &id)?;
    kill_process(vmm, Signal::KILL)?;
    let got = wait_status(&stack, &id, &["error"], 30).await?;
    let message = got["error"]["message"].as_str().unwrap_or_default();
    anyhow::ensure!(message.contains("status 137") && message.contains("memory false"), "{got}");
    // Each line of Firecracker's log names its jail, which is named after the sandbox.
    anyhow::ensure!(!in_lab() || message.contains(&id), "no log: {got}");
    anyhow::ensure!(!message.contains(&stack.state_dir.display().to_string()), "a path of the host: {got}");
    delete_wholly(&stack, &id).await
}

/// Lowers the memory limit of a VMM to what it uses and [`ROOM`]; returns the limit in MiB.
fn leave_room(id: &str) -> Result<u64> {
    // Where there is a swap it would be used instead.
    let without_swap = [
        ("/sys/fs/cgroup/wrenn/ID/memory.swap.max", "0"),
        ("/sys/fs/cgroup/memory/wrenn/ID/memory.swappiness", "0"),
    ];
    for (file, value) in without_swap.map(|(file, value)| (file.replace("ID", id), value)) {
        if Path::new(&file).exists() {
            fs::write(&file, value).with_context(|| file.clone())?;
        }
    }
    let used = number(id, ["wrenn/ID/memory.current", "memory/wrenn/ID/memory.usage_in_bytes"])?;
    let limit = (used >> 20) + ROOM;
    let file = group_file(id, MEMORY_LIMIT)?;
    fs::write(&file, (limit << 20).to_string())
        .with_context(|| format!("{}: {limit} MiB", file.display()))?;
    Ok(limit)
}

/// A VMM that the host's kernel kills because its control group has reached its memory limit: the command in work, the sandbox's record,
/// its event and the metrics say so.
pub(crate) async fn a_vmm_at_its_memory_limit_is_told(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 512})).await?;
    let mut events = Events::open(&stack.api, None).await?;
    let before = killed(&stack, "machine").await?;
    let limit = leave_room(&id)?;
    let body = json!({"cmd": "sh", "args": ["-c", TAKE], "timeout_sec": TAKE_SEC});
    let exec = stack.api.request(Method::POST, &format!("/v1/sandboxes/{id}/exec")).json(&body);
    let reply = stack.api.send(exec.timeout(Duration::from_secs(TAKE_SEC + 30))).await?;
    let answer = reply.expect_error(409, "invalid_state").with_context(|| format!("limit of {limit} MiB"))?;
    let message = answer.json()["error"]["message"].to_string();
    anyhow::ensure!(message.contains("for want of memory"), "{message}");

    let got = wait_status(&stack, &id, &["error"], 90).await?;
    let message = got["error"]["message"].as_str().unwrap_or_default();
    let expected = format!("its memory limit of {limit} MiB on the host was reached");
    anyhow::ensure!(got["error"]["code"] == "out_of_memory" && message.contains(&expected), "{got}");
    anyhow::ensure!(message.contains("memory false"), "no remedy: {got}");
    let (own, _) = events.until(&id, "sandbox.error").await?;
    let told = &own.last().context("no event")?.data;
    anyhow::ensure!(told["cause"] == "out_of_memory" && told["actor"]["kind"] == "host", "{told}");
    let counted = async || killed(&stack, "machine").await.ok().filter(|count| *count > before);
    let counted = wait_until("it to be counted", Duration::from_secs(90), counted).await;
    counted.with_context(|| format!("{before} before"))?;
    delete_wholly(&stack, &id).await
}

/// A sandbox whose disk file is removed from the host is stopped, so that it does not write data that is
/// lost.
pub(crate) async fn a_disk_deleted_underneath_is_told(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 128})).await?;
    let volumes = stack.state_dir.join("agent/volumes/volumes");
    let file = ["cow", "img"].map(|kind| volumes.join(format!("{id}.{kind}")));
    let file = file.iter().find(|file| file.exists()).context("the sandbox has no disk")?;
    fs::remove_file(file)?;
    let got = wait_status(&stack, &id, &["error"], 15).await?;
    let message = got["error"]["message"].as_str().unwrap_or_default();
    anyhow::ensure!(message.contains("disk is lost") && message.contains("Delete"), "{got}");
    delete_wholly(&stack, &id).await
}
