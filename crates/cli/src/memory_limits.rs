// SPDX-License-Identifier: Apache-2.0
//! Control groups that limit the memory of the control plane and of the host agent: one that exceeds it is
//! restarted, and the rest of the machine is not affected.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tracing::warn;
use wrenn_os::control_group;

use crate::{config::Config, host_id, layout::Layout};

/// Parts with such a group.
const BOUNDED: [&str; 2] = ["server", "agent"];

fn name(layout: &Layout, part: &str) -> Result<String> {
    Ok(format!("service-{}-{part}", host_id::load(layout)?))
}

/// Memory limit of a part in MiB; zero means no limit.
fn bound_mb(config: &Config, part: &str) -> u64 {
    match part {
        "server" => config.memory().server_mb,
        "agent" => config.memory().agent_mb(config.agent().limits.sandboxes),
        _ => 0,
    }
}

/// Creates the group of a part. Without memory control groups, the part runs without a limit, and a warning
/// is logged.
pub(crate) fn bound(config: &Config, layout: &Layout, part: &str) -> Result<Option<PathBuf>> {
    let (name, mb) = (name(layout, part)?, bound_mb(config, part));
    if mb == 0 {
        return Ok(None);
    }
    match control_group::bound_memory(&name, mb << 20) {
        Ok(group) => Ok(Some(group)),
        Err(error) => {
            warn!("{part} runs without a memory limit, because it has no control group: {error}");
            Ok(None)
        }
    }
}

/// Removes the groups; their processes must have ended.
pub(crate) async fn remove(layout: &Layout) -> Result<()> {
    for part in BOUNDED {
        let name = name(layout, part)?;
        let removed = tokio::task::spawn_blocking(move || control_group::remove(&name)).await;
        removed
            .context("the clean-up broke off")?
            .with_context(|| format!("cannot remove the control group of {part}"))?;
    }
    Ok(())
}

/// Existing groups, one per line.
pub(crate) fn leftovers(layout: &Layout) -> Result<Vec<String>> {
    if !layout.host_id_file().exists() {
        return Ok(Vec::new());
    }
    let names = BOUNDED.iter().map(|part| name(layout, part)).collect::<Result<Vec<_>>>()?;
    let groups = names.iter().flat_map(|name| control_group::present(name));
    Ok(groups.map(|group| format!("control group {}", group.display())).collect())
}
