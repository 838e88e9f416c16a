// SPDX-License-Identifier: Apache-2.0
//! Memory that each of many idle clones of one template has for itself: the private pages of its VMM's process (USS).

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use wrenn_testguest::ELF;
use wrenn_testkit::Stack;
use wrenn_vmm::{MemorySource, Snapshot, Vmm as _};

use crate::{
    create,
    restore::{Place, prints},
    row::Row,
};

/// Number of clones.
const CLONES: usize = 20;
/// Pause after the last one, in which its start ends.
const SETTLE: Duration = Duration::from_secs(5);
/// Part of the name of a shared memory of QEMU.
const SHARED_MEMORY: &str = "/memfd:wrenn-memory";

/// Private memory, in MiB, of the mappings in a file of `/proc/PID` whose first line contains `name`.
fn private(pid: i32, file: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let (mut counts, mut kib) = (false, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Private_Clean:" | "Private_Dirty:") if counts => {
                kib += words.next().and_then(|word| word.parse::<u64>().ok()).context("no number")?;
            }
            // The first line of a mapping begins with its range.
            Some(word) if word.contains('-') => counts = line.contains(name),
            _ => {}
        }
    }
    Ok(kib as f64 / 1024.0)
}

/// Private memory of a process in MiB.
fn of_process(pid: i32) -> Result<f64> {
    private(pid, "smaps_rollup", "[rollup]")
}

/// Creates a row with the largest of these amounts.
fn row(what: &'static str, amounts: &[f64], goal: f64) -> Row {
    Row::figure(what, "MiB", amounts.iter().copied().fold(0.0, f64::max), amounts.len(), goal)
}

/// Measures clones of a template by the running Wrenn.
pub(crate) async fn of_sandboxes(stack: &Stack) -> Result<Vec<Row>> {
    create::warm_up(stack).await?;
    let mut ids = Vec::new();
    for _ in 0..CLONES {
        ids.push(stack.api.create(&json!({})).await?);
    }
    tokio::time::sleep(SETTLE).await;
    let pids = ids.iter().map(|id| Ok(stack.vmm(id)?.as_raw_pid())).collect::<Result<Vec<_>>>()?;
    let whole = pids.iter().map(|&pid| of_process(pid)).collect::<Result<Vec<_>>>()?;
    let guest = pids.iter().map(|&pid| private(pid, "smaps", SHARED_MEMORY)).collect::<Result<Vec<_>>>()?;
    for id in ids {
        stack.api.remove(&id).await?;
    }
    Ok(vec![
        row("unique memory of each of 20 idle clones, QEMU (MiB)", &whole, 8.0),
        row("of it the guest's own pages (MiB)", &guest, 8.0),
    ])
}

/// Measures clones of the test guest by the Firecracker driver; none without KVM.
pub(crate) async fn of_test_guests() -> Result<Option<Row>> {
    if !Place::works_here() {
        return Ok(None);
    }
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in("/tmp")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let place = Place::new(dir.path(), ELF)?;
    let files = place.snapshot().await.context("no snapshot of the test guest")?;
    let mut clones = Vec::new();
    for number in 0..CLONES {
        let spec = place.spec(number as u32)?;
        let memory = MemorySource::Shared(files.memory.clone());
        let snapshot = Snapshot { state: files.state.clone(), memory, run: true };
        let clone = place.driver.restore(&snapshot, &spec).await?;
        prints(&spec.run_dir.join("console.log"), 1).await?;
        // The test guest is never idle.
        clone.pause().await?;
        clones.push(clone);
    }
    let amounts = clones.iter().map(|clone| of_process(clone.process().pid)).collect::<Result<Vec<_>>>();
    for clone in clones {
        clone.kill().await?;
    }
    let what = "unique memory of each of 20 clones of the test guest, Firecracker (MiB)";
    Ok(Some(row(what, &amounts?, 5.0)))
}
