// SPDX-License-Identifier: Apache-2.0
//! Pause and resume: what ran goes on, nothing is used meanwhile, and the disk survives a lost memory.

mod amid_use;
mod amid_writes;
mod commands;
mod damage;
mod full_disk;
mod identity;
mod page_server;
mod restarts;
mod rounds;
mod streams;
mod stuck;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_testkit::{Stack, in_lab, short_or_long, wait_until};

pub(crate) use self::{
    amid_use::{many_pauses_leave_an_idle_vmm, nobody_notices_a_snapshot},
    amid_writes::snapshots_amid_writes_are_whole,
    commands::{
        a_resume_during_a_pause_is_done, a_wrong_clock_is_right_after_a_pause, commands_in_work_go_on,
    },
    damage::{
        another_vmm_costs_the_memory_only, damaged_memory_is_refused,
        missing_memory_is_told_and_leaves_nothing,
    },
    full_disk::a_disk_that_becomes_full_is_told_and_all_goes_on,
    restarts::nothing_that_restarts_loses_a_sandbox,
    rounds::files_and_a_database_stay_whole,
    streams::open_streams_are_told_and_lose_nothing,
    stuck::a_vmm_that_hangs_ends_no_sandbox,
};
use super::support::{
    delete_wholly, nothing_remains, pause, post, record, resume, sh, wait_exec, wait_status,
};

/// Counts in memory; writes each number.
pub(crate) const COUNTER: &str = "setsid sh -c 'n=0; while :; do n=$((n+1)); echo $n > /tmp/n; sleep 0.1; done' \
    > /dev/null 2>&1 & echo $! > /tmp/pid; cat /tmp/pid";
/// Counts in memory when it is told, so that all that go on from one memory begin at the same number.
const STEPS: &str = "setsid sh -c 'n=0; while :; do
        if [ -e /tmp/go ]; then n=$((n+1)); echo $n > /tmp/n; rm /tmp/go; fi; sleep 0.1
    done' > /dev/null 2>&1 & echo $! > /tmp/pid; cat /tmp/pid";
/// A tree with what archives and copies lose first, and its checksum.
const TREE: &str =
    "mkdir -p /root/t/a && cd /root/t && head -c 300000 /dev/urandom > a/one && ln -s a/one link
    truncate -s 10M sparse && echo end >> sparse && echo x > 'a b'";
const SUM: &str =
    "cd /root/t && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum; readlink link";

/// Number of the counter.
pub(crate) async fn count(stack: &Stack, id: &str) -> Result<u64> {
    // The file is empty for a moment before each number.
    let number = async || sh(stack, id, "cat /tmp/n").await.ok()?.parse().ok();
    wait_until("a number", Duration::from_secs(10), number).await
}

/// Checks that a guest's clock is right.
pub(crate) async fn clock_is_right(stack: &Stack, id: &str) -> Result<()> {
    let now = || Ok::<_, anyhow::Error>(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64);
    let before = now()?;
    let time: i64 = sh(stack, id, "date +%s").await?.parse()?;
    let (after, inexact) = (now()?, if in_lab() { 20 } else { 2 });
    ensure!(
        (before - inexact..=after + inexact).contains(&time),
        "the guest's clock is at {time}, and this one was from {before} to {after}"
    );
    Ok(())
}

/// Creates a small sandbox.
async fn small(stack: &Stack) -> Result<String> {
    stack.api.create(&json!({"memory_mb": 256})).await
}

/// A process keeps its id and its memory, also at the twentieth pause; tree, environment, clock and record are right.
pub(crate) async fn what_ran_goes_on(stack: Arc<Stack>) -> Result<()> {
    let envs = json!({"GREETING": "hello"});
    let body = json!({"memory_mb": 256, "envs": envs, "name": "goes-on", "labels": {"suite": "pause"}});
    let id = stack.api.create(&body).await?;
    let made = record(&stack, &id).await.context("no record")?;
    ensure!(made["name"] == "goes-on" && made["labels"]["suite"] == "pause", "{made}");
    let pid = sh(&stack, &id, COUNTER).await?;
    sh(&stack, &id, TREE).await?;
    let (sum, uuid) = (sh(&stack, &id, SUM).await?, sh(&stack, &id, "cat /etc/machine-id").await?);
    let mut last = count(&stack, &id).await?;
    let mut random = sh(&stack, &id, "cat /proc/sys/kernel/random/uuid").await?;
    for round in 0..short_or_long(if in_lab() { 1 } else { 3 }, 20) {
        pause(&stack, &id).await?;
        ensure!(stack.vmms().iter().all(|vmm| !vmm.contains(&id)), "its VMM runs in round {round}");
        let refused = stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &json!({"cmd": "true"})).await?;
        refused.expect_error(409, "invalid_state")?;
        stack
            .api
            .post(&format!("/v1/sandboxes/{id}/ping"), &json!({}))
            .await?
            .expect_error(409, "invalid_state")?;
        // Nothing is to be done.
        pause(&stack, &id).await?;
        resume(&stack, &id).await?;
        resume(&stack, &id).await?;
        let now = sh(&stack, &id, "kill -0 $(cat /tmp/pid) && cat /tmp/pid").await?;
        ensure!(now == pid, "the process is {now} in round {round}, and was {pid}");
        let number = count(&stack, &id).await?;
        ensure!(number >= last, "the counter is at {number}, and was at {last}");
        last = number;
        let further = async || count(&stack, &id).await.ok().filter(|number| *number > last);
        wait_until("a further number", Duration::from_secs(20), further).await?;
        clock_is_right(&stack, &id).await?;
        let other = sh(&stack, &id, "cat /proc/sys/kernel/random/uuid").await?;
        ensure!(other != random, "the same randomness in round {round}");
        random = other;
        ensure!(sh(&stack, &id, SUM).await? == sum, "the tree is another one in round {round}");
        if in_lab() {
            // Packed memory is chosen there (`crates/xtask/src/lab/runs.rs`). Nothing else runs beside this case.
            ensure!(!stack.page_servers(&id).is_empty(), "no page server in round {round}");
            stack.kill_and_wait("agent").await?;
            wait_exec(&stack, &id, 60).await?;
        }
        sh(&stack, &id, &format!("cd /root/t && mv a b && mv b a && echo {round} > /root/round && sync"))
            .await?;
    }
    ensure!(
        sh(&stack, &id, "cat /etc/machine-id; hostname").await? == format!("{uuid}\n{id}"),
        "another machine"
    );
    ensure!(sh(&stack, &id, "echo $GREETING").await? == "hello", "the environment is gone");
    identity::is_the_same(&stack, &id, &made).await?;
    pause(&stack, &id).await?;
    ensure!(stack.page_servers(&id).is_empty(), "its page server runs");
    if in_lab() {
        page_server::is_missed(&stack, &id, &sum).await.context("without its page server")?;
    }
    delete_wholly(&stack, &id).await?;
    nothing_remains(&stack, &id).await
}

/// A connection from before the pause is reset, and does not hang.
pub(crate) async fn connections_from_before_are_reset(stack: Arc<Stack>) -> Result<()> {
    let id = small(&stack).await?;
    // To the gateway's packet filter nothing is connected, so both ends are in the guest, on two of its addresses.
    let script = "cat > /tmp/c.py <<'END'
import fcntl, socket, struct
address = socket.inet_aton('192.0.2.7')
request = struct.pack('16sH2s4s8s', b'eth0:1', socket.AF_INET, b'', address, b'')
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8916, request)
one = socket.socket(); one.bind(('192.0.2.7', 0)); one.listen()
out = socket.socket(); out.bind(('169.254.0.21', 0)); out.connect(one.getsockname())
inner = socket.socketpair()
local = socket.socket(); local.bind(('127.0.0.1', 0)); local.listen()
near = socket.create_connection(local.getsockname())
open('/tmp/ready', 'w').write('x')
try:
    out.recv(1); text = 'end'
except OSError as error:
    text = type(error).__name__
near.send(b'x')
open('/tmp/told', 'w').write(text)
END
setsid python3 /tmp/c.py > /tmp/c.log 2>&1 &
for i in $(seq 100); do [ -e /tmp/ready ] && exit 0; sleep 0.1; done; cat /tmp/c.log; exit 1";
    sh(&stack, &id, script).await?;
    pause(&stack, &id).await?;
    resume(&stack, &id).await?;
    let told = async || sh(&stack, &id, "cat /tmp/told").await.ok();
    let told = wait_until("the end of the connection", Duration::from_secs(20), told).await?;
    ensure!(["ConnectionResetError", "BrokenPipeError"].contains(&&*told), "{told}");
    delete_wholly(&stack, &id).await
}

/// A boot from the disk has the files and the environment, and new processes.
pub(crate) async fn the_disk_survives_without_the_memory(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256, "envs": {"GREETING": "hello"}})).await?;
    sh(&stack, &id, COUNTER).await?;
    sh(&stack, &id, TREE).await?;
    let sum = sh(&stack, &id, SUM).await?;
    pause(&stack, &id).await?;
    let resumed = post(&stack, &id, "resume", &json!({"memory": false, "timeout_sec": 600})).await?;
    ensure!(resumed["status"] == "running" && resumed["timeout_sec"] == 600, "{resumed}");
    ensure!(resumed["expires_at"].is_string(), "{resumed}");
    ensure!(sh(&stack, &id, SUM).await? == sum, "the tree is another one");
    ensure!(
        sh(&stack, &id, "echo $GREETING; [ -e /tmp/pid ] && kill -0 $(cat /tmp/pid) 2>/dev/null; hostname")
            .await?
            == format!("hello\n{id}"),
        "it has not booted from its disk"
    );
    // A VMM that is killed costs the memory, and not the disk.
    rustix::process::kill_process(stack.vmm(&id)?, rustix::process::Signal::KILL)?;
    wait_status(&stack, &id, &["error"], 15).await?;
    stack
        .api
        .post(&format!("/v1/sandboxes/{id}/resume"), &json!({}))
        .await?
        .expect_error(409, "invalid_state")?;
    post(&stack, &id, "resume", &json!({"memory": false})).await?;
    ensure!(sh(&stack, &id, SUM).await? == sum, "the tree is another one");
    delete_wholly(&stack, &id).await?;
    nothing_remains(&stack, &id).await
}

/// The agent's records of named snapshots of sandboxes whose environment has this text.
fn snapshot_records(stack: &Stack, text: &str) -> Result<Vec<String>> {
    let records = std::fs::read_dir(stack.state_dir.join("agent/named_snapshots"))?.flatten();
    let records = records.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    Ok(records.filter(|record| record.contains(text)).collect())
}

/// Directory of the sandbox's memory.
fn generation(stack: &Stack, id: &str) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(stack.state_dir.join("agent/volumes/snapshots")).ok()?;
    let dirs = entries.flatten().map(|entry| entry.path());
    dirs.into_iter()
        .find(|dir| std::fs::read_to_string(dir.join("manifest")).is_ok_and(|manifest| manifest.contains(id)))
}

/// A sandbox that nobody uses for its timeout is paused, one in use is not, and a request resumes it if it may.
pub(crate) async fn idle_sandboxes_are_paused(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256, "timeout_sec": 2, "auto_resume": true})).await?;
    let path = format!("/v1/sandboxes/{id}");
    let pid = sh(&stack, &id, COUNTER).await?;
    // A command is activity as long as it runs.
    sh(&stack, &id, "sleep 7").await?;
    let got = stack.api.get(&path).await?.expect(200)?.json();
    ensure!(got["status"] == "running" && got["expires_at"].is_string(), "{got}");
    // Looking at it is none.
    let paused = wait_status(&stack, &id, &["paused"], 30).await?;
    ensure!(paused["expires_at"].is_null() && paused["timeout_sec"] == 2, "{paused}");
    // Many at once resume it once.
    let all = futures::future::try_join_all((0..4).map(|_| sh(&stack, &id, "cat /tmp/pid"))).await?;
    ensure!(all.iter().all(|found| *found == pid), "{all:?} and not {pid}");
    wait_status(&stack, &id, &["paused"], 30).await?;
    ensure!(
        stack.api.read(&id, "/tmp/pid").await?.expect(200)?.bytes.trim_ascii() == pid.as_bytes(),
        "a file"
    );
    let request = stack.api.request(reqwest::Method::PATCH, &path).json(&json!({"timeout_sec": 0}));
    let changed = stack.api.send(request).await?.expect(200)?.json();
    ensure!(changed["timeout_sec"] == 0 && changed["expires_at"].is_null(), "{changed}");
    // It may have been paused before.
    resume(&stack, &id).await?;
    stack.api.send(stack.api.request(reqwest::Method::POST, &format!("{path}/ping"))).await?.expect(204)?;
    let request = stack.api.request(reqwest::Method::PATCH, &path).json(&json!({"timeout_sec": -1}));
    stack.api.send(request).await?.expect_error(400, "invalid_request")?;
    let request = stack.api.request(reqwest::Method::PATCH, &path).json(&json!({"auto_resume": false}));
    stack.api.send(request).await?.expect(200)?;
    pause(&stack, &id).await?;
    stack.api.read(&id, "/tmp/pid").await?.expect_error(409, "invalid_state")?;
    delete_wholly(&stack, &id).await
}

/// A paused sandbox survives the agent and the control plane, and is never taken for one that vanished.
pub(crate) async fn a_paused_sandbox_survives_its_agent(stack: Arc<Stack>) -> Result<()> {
    let id = small(&stack).await?;
    let pid = sh(&stack, &id, COUNTER).await?;
    pause(&stack, &id).await?;
    for part in ["agent", "server"] {
        stack.kill_and_wait(part).await?;
    }
    stack.wait_healthy().await?;
    // More than a round of the reconciler.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let got = stack.api.get(&format!("/v1/sandboxes/{id}")).await?.expect(200)?.json();
    ensure!(got["status"] == "paused", "{got}");
    // The server is back before its host, which takes its time in a lab.
    let back = async || resume(&stack, &id).await.ok();
    wait_until("a resume by the host that is back", Duration::from_secs(60), back).await?;
    ensure!(sh(&stack, &id, "kill -0 $(cat /tmp/pid) && cat /tmp/pid").await? == pid, "another process");
    delete_wholly(&stack, &id).await
}

/// A sandbox that ran when its host was restarted is paused without its memory, and boots from its disk.
pub(crate) async fn a_restarted_host_has_its_sandboxes_paused(stack: Arc<Stack>) -> Result<()> {
    let id = small(&stack).await?;
    sh(&stack, &id, "echo kept > /root/note; sync").await?;
    let (agent, vmm) = (stack.child("agent")?, stack.vmm(&id)?);
    // As after a restart of the machine: another boot, and no microVM.
    std::fs::write(stack.state_dir.join("agent/boot_id"), "another")?;
    for process in [agent, vmm] {
        rustix::process::kill_process(process, rustix::process::Signal::KILL)?;
    }
    stack.restarted("agent", agent).await?;
    stack.wait_healthy().await?;
    let got = wait_status(&stack, &id, &["paused"], 30).await?;
    ensure!(got["error"]["code"] == "snapshot_missing", "{got}");
    let refused = stack.api.post(&format!("/v1/sandboxes/{id}/resume"), &json!({})).await?;
    refused.expect_error(409, "snapshot_missing")?;
    let resumed = post(&stack, &id, "resume", &json!({"memory": false})).await?;
    ensure!(resumed["status"] == "running" && resumed["error"].is_null(), "{resumed}");
    ensure!(sh(&stack, &id, "cat /root/note").await? == "kept", "the file is gone");
    delete_wholly(&stack, &id).await
}

/// Sandboxes from a snapshot go on from the same number, each with an identity of its own; the snapshot's sandbox goes on.
pub(crate) async fn many_go_on_from_a_snapshot(stack: Arc<Stack>) -> Result<()> {
    let id = stack
        .api
        .create(&json!({"memory_mb": 256, "envs": {"A": "1", "B": "2", "CASE": "for-many"}}))
        .await?;
    let pid = sh(&stack, &id, STEPS).await?;
    let next = async |id: &str| {
        let script = "touch /tmp/go; while [ -e /tmp/go ]; do sleep 0.1; done; cat /tmp/n";
        sh(&stack, id, script).await
    };
    ensure!(next(&id).await? == "1", "the counter does not count");
    let body = json!({"sandbox_id": id, "name": "counting"});
    let made = stack.api.post("/v1/snapshots", &body).await?.expect(201)?.json();
    ensure!(
        made["name"] == "counting" && made["memory_mb"] == 256 && made["template"] == "minimal",
        "{made}"
    );
    ensure!(next(&id).await? == "2", "the sandbox does not go on");
    let templates = stack.api.get("/v1/templates").await?.expect(200)?.json();
    let has = |kind: &str, name: &str| {
        templates
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["kind"] == kind && one["name"] == name))
    };
    ensure!(has("base", "minimal") && has("snapshot", "counting"), "{templates}");
    let listed = stack.wrenn(&["template", "ls"])?;
    let shown = String::from_utf8_lossy(&listed.stdout);
    ensure!(["minimal", "counting", "256 MiB"].iter().all(|text| shown.contains(text)), "{listed:?}");
    stack.api.post("/v1/snapshots", &body).await?.expect_error(409, "template_name_taken")?;
    let reserved = json!({"sandbox_id": id, "name": "minimal"});
    stack.api.post("/v1/snapshots", &reserved).await?.expect_error(409, "name_reserved")?;
    stack.api.delete("/v1/snapshots/minimal").await?.expect_error(403, "forbidden")?;
    let other = json!({"template": "counting", "memory_mb": 512});
    let refused = stack.api.post("/v1/sandboxes", &other).await?.expect_error(400, "invalid_request")?;
    ensure!(refused.json().to_string().contains("memory_mb"), "{}", refused.json());

    let new = json!({"template": "counting", "memory_mb": 256, "envs": {"B": "3"}});
    let count = if in_lab() { 2 } else { short_or_long(3, 10) };
    let clones = futures::future::try_join_all((0..count).map(|_| stack.api.create(&new))).await?;
    let mut seen = std::collections::BTreeSet::new();
    for clone in &clones {
        ensure!(
            sh(&stack, clone, "cat /tmp/pid; kill -0 $(cat /tmp/pid) && echo $A$B").await?
                == format!("{pid}\n13")
        );
        ensure!(next(clone).await? == "2", "it does not go on from the snapshot's number");
        clock_is_right(&stack, clone).await?;
        seen.extend(
            sh(&stack, clone, "cat /etc/machine-id /proc/sys/kernel/random/uuid; hostname")
                .await?
                .lines()
                .map(str::to_owned),
        );
    }
    ensure!(seen.len() == clones.len() * 3, "identities: {seen:?}");
    // The clones have the memory of an envd that knew the token of the snapshot's sandbox.
    let all: Vec<_> = clones.iter().chain([&id]).collect();
    identity::each_has_its_own_token(&stack, &all).await?;
    pause(&stack, &clones[0]).await?;
    let of_paused = json!({"sandbox_id": clones[0]});
    let named = stack.api.post("/v1/snapshots", &of_paused).await?.expect(201)?.json()["name"].clone();
    let named = named.as_str().context("no name")?.to_owned();
    stack.api.delete("/v1/snapshots/counting").await?.expect(204)?;
    stack.api.delete("/v1/snapshots/counting").await?.expect_error(404, "not_found")?;
    stack.api.post("/v1/sandboxes", &new).await?.expect_error(404, "not_found")?;
    // Their memory began with that of the snapshot, which is gone.
    resume(&stack, &clones[0]).await?;
    pause(&stack, &clones[1]).await?;
    resume(&stack, &clones[1]).await?;
    ensure!(next(&clones[1]).await? == "3", "it does not go on");
    let again = stack.api.create(&json!({"template": named})).await?;
    ensure!(next(&again).await? == "3", "it does not go on from the paused sandbox's number");
    let listed = stack.api.get("/v1/snapshots").await?.expect(200)?.json();
    ensure!(
        listed.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == named.as_str())),
        "{listed}"
    );
    stack.api.delete(&format!("/v1/snapshots/{named}")).await?.expect(204)?;
    for id in clones.iter().chain([&id, &again]) {
        delete_wholly(&stack, id).await?;
    }
    let left = snapshot_records(&stack, "for-many")?;
    ensure!(left.is_empty(), "records of snapshots are left: {left:?}");
    Ok(())
}
