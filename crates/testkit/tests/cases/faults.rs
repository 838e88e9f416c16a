//! Agent and control plane are killed at every step of a create and of a delete.

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

use super::support::{delete_wholly, listed, nothing_remains, wait_exec, wait_status, with_test_guests};

/// What runs in the sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guests {
    Linux,
    Test,
}

/// Deletes are between creates: a host whose creates fail one after the other gets no more.
const POINTS: [&str; 18] = [
    "agent.create.journal",
    "agent.destroy.recorded",
    "server.create.inserted",
    "agent.create.slot",
    "server.destroy.marked",
    "agent.create.volume",
    "agent.destroy.vmm",
    "server.create.made",
    "agent.create.control_groups",
    "server.destroy.gone",
    "agent.create.vmm_started",
    "agent.destroy.volume",
    "server.create.running",
    "agent.create.vmm",
    "server.destroy.stopped",
    "agent.create.init",
    "agent.destroy.slot",
    "agent.create.running",
];

/// The statuses that a sandbox may have in the end.
const SETTLED: [&str; 4] = ["running", "error", "stopped", "stopping"];

/// Has a fault point fire while `act` runs; then everything is up again.
async fn kill_at(stack: &Stack, point: &str, act: impl Future) -> Result<()> {
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

/// A sandbox with a guest that runs.
async fn guest(stack: &Stack, kind: Guests) -> Result<String> {
    let body = json!({"memory_mb": 256});
    if kind == Guests::Linux {
        return stack.api.create(&body).await;
    }
    let api = stack.api.clone();
    // It is answered when the sandbox has been deleted.
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
    // Nobody asks again: what was begun is finished.
    wait_status(stack, &id, &["stopped"], 40).await?;
    nothing_remains(stack, &id).await?;
    stack.api.remove(&id).await?;
    Ok(())
}

/// What the sources of a part name as its points.
fn named_in(part: &str, dir: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.path().is_dir() {
            found.extend(named_in(part, &entry.path())?);
            continue;
        }
        let text = fs::read_to_string(entry.path())?;
        if text.contains("fault::point(") {
            let quoted = text.split('"').skip(1).step_by(2);
            let points = quoted.filter(|text| text.starts_with("create.") || text.starts_with("destroy."));
            found.extend(points.map(|point| format!("{part}.{point}")));
        }
    }
    Ok(found)
}

/// No point of the sources is left out.
fn all_are_listed() -> Result<()> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no directory of crates")?;
    let mut named = named_in("agent", &crates.join("host/src"))?;
    named.extend(named_in("server", &crates.join("control/src"))?);
    let listed = BTreeSet::from(POINTS.map(str::to_owned));
    anyhow::ensure!(named == listed, "the sources have {named:?}, this list has {listed:?}");
    Ok(())
}

/// Every create ends in a status that the user can act on, every delete is finished, and nothing is left.
pub(crate) async fn at_every_step(stack: Arc<Stack>) -> Result<()> {
    all_are_listed()?;
    at(&stack, &POINTS, Guests::Linux).await
}

/// The same on the real Firecracker, with test guests, whose creates never end by themselves.
pub(crate) async fn on_firecracker() -> Result<()> {
    // Deleting one interrupts its create, which then takes back what it has made.
    let ended = |point: &&str| {
        point.starts_with("server.")
            || ["create.init", "create.running", "destroy.recorded"].iter().any(|end| point.ends_with(end))
    };
    // In a lab, where everything is emulated, those at which what it alone has is half made or half gone.
    let chosen = |point: &&str| {
        let device = ["create.volume", "create.vmm_started", "destroy.vmm", "destroy.volume"];
        !in_lab() || device.iter().any(|end| point.ends_with(end))
    };
    let points: Vec<&str> = POINTS.into_iter().filter(|point| !ended(point)).filter(chosen).collect();
    with_test_guests(async |stack: &Stack| at(stack, &points, Guests::Test).await).await
}

async fn at(stack: &Stack, points: &[&str], kind: Guests) -> Result<()> {
    let mut failures = Vec::new();
    for point in points {
        if kind == Guests::Test {
            // None of its creates ever went well.
            stack.sql("UPDATE hosts SET failed_creates = 0, ejected_until = NULL")?;
        }
        let begin = Instant::now();
        let result = if point.contains(".create.") {
            create_and_die(stack, point).await
        } else {
            delete_and_die(stack, point, kind).await
        };
        println!(
            "  killed at {point}: {} after {:.1} s",
            if result.is_ok() { "well" } else { "FAILED" },
            begin.elapsed().as_secs_f32()
        );
        if let Err(error) = result {
            failures.push(format!("killed at {point}: {error:#}"));
            // The next point begins with nothing.
            stack.disarm(point);
            stack.wait_healthy().await?;
            for id in listed(stack).await? {
                delete_wholly(stack, &id).await?;
            }
        }
    }
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
