// SPDX-License-Identifier: Apache-2.0
//! Control groups that limit the memory of the control plane and of the host agent: one that exceeds it is
//! restarted, and the rest of the machine is not affected.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tracing::warn;
use wrenn_os::control_group;

use crate::{config::Config, host_id, layout::Layout};

/// Parts with such a group, with the key of their limit in MiB and its default: 2 GiB for the control plane;
/// for the agent 2 GiB, and 2 MiB for each sandbox that it may have.
const BOUNDED: [(&str, &str); 2] = [("server", "server.memory_mb"), ("agent", "agent.memory_mb")];
const DEFAULT_MB: u64 = 2048;
const MB_PER_SANDBOX: u64 = 2;

fn name(layout: &Layout, part: &str) -> Result<String> {
    Ok(format!("service-{}-{part}", host_id::load(layout)?))
}

/// Memory limit of a part in MiB; zero means no limit.
fn bound_mb(config: &Config, part: &str, key: &str) -> u64 {
    let sandboxes = config.or("agent.max_sandboxes", u64::from(wrenn_host::Limits::default().sandboxes));
    let more = if part == "agent" { sandboxes * MB_PER_SANDBOX } else { 0 };
    config.or(key, DEFAULT_MB + more)
}

/// Creates the group of a part. Without memory control groups, the part runs without a limit, and a warning
/// is logged.
pub(crate) fn bound(config: &Config, layout: &Layout, part: &str) -> Result<Option<PathBuf>> {
    let Some((_, key)) = BOUNDED.iter().find(|(known, _)| *known == part) else { return Ok(None) };
    let (name, mb) = (name(layout, part)?, bound_mb(config, part, key));
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
    for (part, _) in BOUNDED {
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
    let names = BOUNDED.iter().map(|(part, _)| name(layout, part)).collect::<Result<Vec<_>>>()?;
    let groups = names.iter().flat_map(|name| control_group::present(name));
    Ok(groups.map(|group| format!("control group {}", group.display())).collect())
}
