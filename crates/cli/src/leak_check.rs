// SPDX-License-Identifier: Apache-2.0
//! `wrenn leak-check`: lists the leftovers of a stopped Wrenn.

use anyhow::{Context, Result};
use serde_json::json;

use crate::{
    config::Config, doctor::Scratch, down::PARTS, layout::Layout, memory_limits, output::Format,
    process::Record, status,
};

/// Exit status while Wrenn runs, when leaks cannot be told from resources in use.
const RUNNING: u8 = 3;

/// Runs `wrenn leak-check`.
pub(crate) async fn run(config: &Config, format: Format) -> Result<u8> {
    let layout = Layout::new(&config.machine().state_dir);
    if let Some(up) = status::running(&layout)? {
        let value = json!({ "running": true, "leftovers": [] });
        format.print(&value, || format!("Wrenn runs (process {}): stop it first by `wrenn down`", up.pid))?;
        return Ok(RUNNING);
    }
    let mut left = processes(&layout)?;
    left.extend(memory_limits::leftovers(&layout)?);
    left.extend(probes()?);
    let agent = layout.agent();
    let of_agent = tokio::task::spawn_blocking(move || wrenn_host::leftovers(&agent));
    left.extend(of_agent.await.context("the check broke off")?);
    let text = if left.is_empty() { "nothing left".to_owned() } else { left.join("\n") };
    format.print(&json!({ "running": false, "leftovers": left }), || text)?;
    Ok(u8::from(!left.is_empty()))
}

/// Parts that run without their `wrenn up`.
fn processes(layout: &Layout) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in PARTS {
        if let Some(record) = Record::running(&layout.pid_file(name))? {
            found.push(format!("process {} ({name})", record.pid));
        }
    }
    Ok(found)
}

/// Leftovers of KVM probes, by a killed doctor or agent: VMMs and directories.
fn probes() -> Result<Vec<String>> {
    let strays = wrenn_vmm::process::stray_probes().context("cannot look at all processes")?;
    let strays =
        strays.into_iter().map(|id| format!("process {}: a trial of KVM that was broken off", id.pid));
    let dirs = Scratch::abandoned()?.into_iter().map(|dir| format!("directory {}", dir.display()));
    Ok(strays.chain(dirs).collect())
}
