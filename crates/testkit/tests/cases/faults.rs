// SPDX-License-Identifier: Apache-2.0
//! Kills agent and control plane at every step of a create, a delete, a pause and a resume.

mod deaths_amid_operations;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;
use wrenn_testkit::{Stack, in_lab, test_guests, wait_until};

pub(crate) use self::deaths_amid_operations::{
    page_servers_that_die_amid_operations, vmms_that_die_amid_operations,
};
use super::support::{
    delete_wholly, listed, nothing_remains, patiently, start_counter, still_counts, wait_exec, wait_status,
    with_test_guests,
};

/// Operating system of the sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guests {
    Linux,
    Test,
}

/// Fault points of the control plane's sources and of the agent's steps; a test of the agent compares those.
/// Deletes are between creates, because a host with several failed creates in a row gets no more sandboxes.
pub(crate) const POINTS: &str = include_str!("fault_points.txt");

/// Parts of the names of the points in operations on sandboxes that run or are paused.
const AMID_PAUSES: [&str; 3] = [".pause.", ".resume.", ".snapshot."];

/// Final statuses of a sandbox.
const SETTLED: [&str; 4] = ["running", "error", "stopped", "stopping"];

/// Arms a fault point, runs `act`, and waits until the killed process is restarted and healthy.
pub(crate) async fn kill_at(stack: &Stack, point: &str, act: impl Future) -> Result<()> {
    let part = point.split('.').next().context("no part")?;
    let old = stack.child(part)?;
    stack.arm(point)?;
    act.await;
    let fired = async || (!stack.armed(point)).then_some(());
    wait_until("the fault point", Duration::from_secs(10), fired).await?;
    stack.restarted(part, old).await?;
    stack.wait_healthy().await
}

async fn create_and_die(stack: &Stack, point: &str) -> Result<()> {
    let body = json!({"memory_mb": 256});
    kill_at(stack, point, stack.api.post("/v1/sandboxes", &body)).await?;
    let ids = listed(stack).await?;
    let [id] = ids.as_slice() else { anyhow::bail!("one sandbox is expected, these are there: {ids:?}") };
    let settled = wait_status(stack, id, &SETTLED, 40).await?;
    if settled["status"] == "running" {
        wait_exec(stack, id, 20).await?;
    }
    if settled["status"] == "error" {
        let message = settled["error"]["message"].as_str().unwrap_or_default();
        anyhow::ensure!(message.len() > 10, "the error does not help: {settled}");
    }
    delete_wholly(stack, id).await
}

/// Creates a sandbox and waits until its guest runs.
async fn guest(stack: &Stack, kind: Guests) -> Result<String> {
    let body = json!({"memory_mb": 256});
    if kind == Guests::Linux {
        return stack.api.create(&body).await;
    }
    let api = stack.api.clone();
    // The response comes only when the sandbox is deleted.
    tokio::spawn(async move { api.post("/v1/sandboxes", &body).await });
    let running = async || {
        let ids = listed(stack).await.ok()?;
        ids.into_iter().find(|id| test_guests::started(&test_guests::console(stack, id)))
    };
    wait_until("a test guest", Duration::from_secs(60), running).await
}

async fn delete_and_die(stack: &Stack, point: &str, kind: Guests) -> Result<()> {
    let id = guest(stack, kind).await?;
    kill_at(stack, point, stack.api.delete(&format!("/v1/sandboxes/{id}"))).await?;
    // The delete must finish without another request.
    wait_status(stack, &id, &["stopped"], 40).await?;
    nothing_remains(stack, &id).await?;
    stack.api.remove(&id).await?;
    Ok(())
}

/// Kills at a point of a pause or a resume of the sandbox, in which this process counts. It ends in a status that can be
/// acted on, and the process goes on.
async fn pause_and_die(stack: &Stack, point: &str, id: &str, pid: &mut String) -> Result<()> {
    let path = format!("/v1/sandboxes/{id}");
    let pause = async || stack.api.post(&format!("{path}/pause"), &json!({})).await;
    // Only a boot from the disk gives the memory up.
    let memory = !point.ends_with("memory_given_up");
    let how = json!({ "memory": memory });
    if point.contains(".snapshot.") {
        return snapshot_and_die(stack, point, id, pid).await;
    }
    let resume = async || stack.api.post(&format!("{path}/resume"), &how).await;
    if point.contains(".pause.") {
        kill_at(stack, point, pause()).await?;
    } else {
        pause().await?.expect(200)?;
        kill_at(stack, point, resume()).await?;
    }
    let settled = wait_status(stack, id, &["running", "paused", "error"], 40).await?;
    let lost = !memory || settled["status"] == "error" || !settled["error"].is_null();
    anyhow::ensure!(!lost || !memory, "its memory was lost: {settled}");
    if settled["status"] != "running" {
        let how = json!({ "memory": !lost });
        // A host that is just back may not be known to be.
        let resume = async || stack.api.post(&format!("{path}/resume"), &how).await;
        patiently(&resume).await?.expect(200)?;
    }
    wait_exec(stack, id, 20).await?;
    if lost {
        *pid = start_counter(stack, id).await?;
    }
    still_counts(stack, id, pid).await?;
    runs_once(stack, id)
}

/// Fails unless the sandbox has one VMM and one page server at most: memory that was captured as a whole needs none.
fn runs_once(stack: &Stack, id: &str) -> Result<()> {
    let vmms: Vec<_> = stack.vmms().into_iter().filter(|vmm| vmm.contains(id)).collect();
    let servers = stack.page_servers(id);
    anyhow::ensure!(
        vmms.len() == 1 && servers.len() <= 1,
        "its VMMs are {vmms:#?}, its page servers are {servers:#?}"
    );
    Ok(())
}

/// Kills at a point of a snapshot or its deletion. The sandbox goes on, and the snapshot is whole or gone.
async fn snapshot_and_die(stack: &Stack, point: &str, id: &str, pid: &str) -> Result<()> {
    let body = json!({"sandbox_id": id, "name": "mine"});
    let create = async || stack.api.post("/v1/snapshots", &body).await;
    if point.ends_with("doomed") {
        create().await?.expect(201)?;
        kill_at(stack, point, stack.api.delete("/v1/snapshots/mine")).await?;
    } else {
        kill_at(stack, point, create()).await?;
    }
    wait_exec(stack, id, 20).await?;
    still_counts(stack, id, pid).await?;
    let settled = async || {
        // Results in the cache of builds have no name.
        let rows =
            stack.sql("SELECT status FROM snapshots WHERE name IS NOT NULL OR status <> 'ready'").ok()?;
        (rows.is_empty() || rows == "ready").then_some(rows)
    };
    let rows = wait_until("the end of the snapshot", Duration::from_secs(60), settled).await?;
    if rows == "ready" {
        let body = json!({"template": "mine"});
        let create = async || stack.api.post("/v1/sandboxes", &body).await;
        let clone = patiently(&create).await?.expect(201)?.json();
        let clone = clone["id"].as_str().context("no id")?.to_owned();
        still_counts(stack, &clone, pid).await?;
        delete_wholly(stack, &clone).await?;
        stack.api.delete("/v1/snapshots/mine").await?.expect(204)?;
    }
    Ok(())
}

/// Collects the names of the control plane's fault points in the sources of its crate.
fn named_in(dir: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.path().is_dir() {
            found.extend(named_in(&entry.path())?);
            continue;
        }
        let text = fs::read_to_string(entry.path())?;
        if text.contains("fault::point(") {
            let quoted = text.split('"').skip(1).step_by(2);
            let operations = ["create.", "destroy.", "pause.", "resume.", "snapshot."];
            let points = quoted.filter(|text| operations.iter().any(|name| text.starts_with(name)));
            found.extend(points.map(|point| format!("server.{point}")));
        }
    }
    Ok(found)
}

/// Fails unless `POINTS` has all fault points of the control plane's sources.
fn all_are_listed() -> Result<()> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no directory of crates")?;
    let named = named_in(&crates.join("control/src"))?;
    let listed = POINTS.lines().filter(|point| point.starts_with("server."));
    let listed = listed.map(str::to_owned).collect();
    anyhow::ensure!(named == listed, "the sources have {named:?}, this list has {listed:?}");
    Ok(())
}

/// Every create ends in a status that the user can act on, every delete finishes, and nothing is left.
pub(crate) async fn at_every_step(stack: Arc<Stack>) -> Result<()> {
    all_are_listed()?;
    at(&stack, &POINTS.lines().collect::<Vec<_>>(), Guests::Linux).await
}

/// Same on the real Firecracker with test guests, whose creates never succeed.
pub(crate) async fn on_firecracker() -> Result<()> {
    // Deleting a test guest cancels its create, which then undoes its own steps.
    let ended = |point: &&str| {
        point.starts_with("server.")
            || AMID_PAUSES.iter().any(|operation| point.contains(operation))
            || ["create.captured", "create.init", "create.running", "destroy.recorded"]
                .iter()
                .any(|end| point.ends_with(end))
    };
    // Labs are slow, so test there only the points at which devices that only a lab has are partly created or
    // removed.
    let chosen = |point: &&str| {
        let device = ["create.volume", "create.vmm_started", "destroy.vmm", "destroy.volume"];
        !in_lab() || device.iter().any(|end| point.ends_with(end))
    };
    let points: Vec<&str> = POINTS.lines().filter(|point| !ended(point)).filter(chosen).collect();
    with_test_guests(async |stack: &Stack| at(stack, &points, Guests::Test).await).await
}

/// The agent's steps of pauses, resumes and snapshots on the real Firecracker with Linux guests, in a lab. What the control plane
/// does does not depend on the VMM.
pub(crate) async fn amid_pauses_on_firecracker(stack: Arc<Stack>) -> Result<()> {
    let amid = |point: &&str| AMID_PAUSES.iter().any(|operation| point.contains(operation));
    let points: Vec<&str> = POINTS.lines().filter(|point| point.starts_with("agent.")).filter(amid).collect();
    anyhow::ensure!(!points.is_empty(), "the agent has no such points");
    at(&stack, &points, Guests::Linux).await
}

async fn at(stack: &Stack, points: &[&str], kind: Guests) -> Result<()> {
    let (mut failures, mut paused) = (Vec::new(), None);
    for point in points {
        if kind == Guests::Test {
            // All creates of test guests have failed.
            stack.sql("UPDATE hosts SET failed_creates = 0, ejected_until = NULL")?;
        }
        let begin = Instant::now();
        let result = if point.contains(".create.") {
            create_and_die(stack, point).await
        } else if point.contains(".destroy.") {
            delete_and_die(stack, point, kind).await
        } else {
            if paused.is_none() {
                let id = guest(stack, kind).await?;
                let pid = start_counter(stack, &id).await?;
                paused = Some((id, pid));
            }
            match &mut paused {
                Some((id, pid)) => pause_and_die(stack, point, id, pid).await,
                None => Ok(()),
            }
        };
        println!(
            "  killed at {point}: {} after {:.1} s",
            if result.is_ok() { "well" } else { "FAILED" },
            begin.elapsed().as_secs_f32()
        );
        if let Err(error) = result {
            failures.push(format!("killed at {point}: {error:#}"));
            // Start the next point without sandboxes.
            stack.disarm(point);
            stack.wait_healthy().await?;
            for id in listed(stack).await? {
                delete_wholly(stack, &id).await?;
            }
            paused = None;
        }
    }
    if let Some((id, _)) = paused {
        delete_wholly(stack, &id).await?;
    }
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
