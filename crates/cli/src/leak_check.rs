//! `wrenn leak-check`: lists the leftovers of a stopped Wrenn.

use anyhow::{Context, Result};
use serde_json::json;

use crate::{config::Config, down::PARTS, layout::Layout, output::Format, process::Record, status};

/// Exit status while Wrenn runs, when leaks cannot be told from resources in use.
const RUNNING: u8 = 3;

/// Runs `wrenn leak-check`.
pub(crate) async fn run(config: &Config, format: Format) -> Result<u8> {
    let layout = Layout::new(config.state_dir());
    if let Some(up) = status::running(&layout) {
        let value = json!({ "running": true, "leftovers": [] });
        format.print(&value, || format!("Wrenn runs (process {}): stop it first by `wrenn down`", up.pid))?;
        return Ok(RUNNING);
    }
    let mut left = processes(&layout);
    let agent = layout.agent();
    let of_agent = tokio::task::spawn_blocking(move || wrenn_host::leftovers(&agent));
    left.extend(of_agent.await.context("the check broke off")?);
    let text = if left.is_empty() { "nothing left".to_owned() } else { left.join("\n") };
    format.print(&json!({ "running": false, "leftovers": left }), || text)?;
    Ok(u8::from(!left.is_empty()))
}

/// Parts that run without their `wrenn up`.
fn processes(layout: &Layout) -> Vec<String> {
    let line = |&name: &&str| {
        let record = Record::read(&layout.pid_file(name)).filter(Record::alive)?;
        Some(format!("process {} ({name})", record.pid))
    };
    PARTS.iter().filter_map(line).collect()
}
