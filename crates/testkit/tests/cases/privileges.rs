// SPDX-License-Identifier: Apache-2.0
//! Privileges, open files and users of the processes that Wrenn runs.

use std::{fs, sync::Arc};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_testkit::{INHERITED, Process, Stack};

use super::support::delete_wholly;

/// Returns the first word of a field of `/proc/PID/status`.
fn status(process: &Process, field: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{}/status", process.pid.as_raw_nonzero()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let word = line.and_then(|line| line.split_whitespace().next());
    Ok(word.with_context(|| format!("no {field} in {text}"))?.to_owned())
}

/// Returns the memory group of a process, in either version.
fn memory_group(process: &Process) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid.as_raw_nonzero()))?;
    let group = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        (controllers.is_empty() || controllers.split(',').any(|name| name == "memory"))
            .then(|| path.to_owned())
    };
    Ok(text.lines().filter_map(group).collect::<Vec<_>>().join(" "))
}

/// Checks every process of a Wrenn that inherited an open file of root.
pub(super) async fn each_process_has_its_own_and_no_more(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 128})).await?;
    let vmm = stack.vmm(&id)?;
    let vmm = wrenn_testkit::processes().into_iter().find(|process| process.pid == vmm).context("no VMM")?;
    let names = ["agent", "server", "postgres", "redis-server"];
    let parts = names.map(|name| stack.process(name).map(|process| (name, process)));
    let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
    let mut users = Vec::new();
    for (name, process) in parts.iter().cloned().chain([("vmm", vmm)]) {
        let file = format!("/proc/{}/fd/{INHERITED}", process.pid.as_raw_nonzero());
        ensure!(fs::symlink_metadata(&file).is_err(), "{name} has {:?}", fs::read_link(&file));
        ensure!(status(&process, "NoNewPrivs")? == "1", "{name} may gain privileges");
        let bounding = u64::from_str_radix(&status(&process, "CapBnd")?, 16)?;
        let user = status(&process, "Uid")?;
        if name == "agent" {
            // It may not load modules, set the clock or reboot: SYS_MODULE, SYS_BOOT, SYS_TIME.
            ensure!(
                user == "0" && bounding & (1 << 16 | 1 << 22 | 1 << 25) == 0,
                "{name}: {user} {bounding:x}"
            );
        } else if process.is_jailed_sandbox() {
            // Capabilities that Firecracker's jailer needed; this user cannot use them.
            ensure!(
                user != "0" && bounding & (1 << 16 | 1 << 19 | 1 << 12) == 0,
                "{name}: {user} {bounding:x}"
            );
        } else {
            ensure!(user != "0" && bounding == 0, "{name}: {user} {bounding:x}");
        }
        users.push(user);
    }
    users.sort_unstable();
    users.dedup();
    ensure!(users.len() == 5, "two of them share a user: {users:?}");
    for (name, process) in parts.iter().take(2) {
        let group = memory_group(process)?;
        ensure!(group.contains("wrenn/service-") && group.contains(name), "{name} is in {group:?}");
    }
    let score = |process: &Process| -> Result<i32> {
        let path = format!("/proc/{}/oom_score_adj", process.pid.as_raw_nonzero());
        Ok(fs::read_to_string(path)?.trim().parse()?)
    };
    let (agent, vmm) = (score(&parts[0].1)?, stack.vmm(&id)?);
    let vmm = wrenn_testkit::processes().into_iter().find(|process| process.pid == vmm).context("no VMM")?;
    ensure!(score(&vmm)? == 500 && agent <= 0, "the kernel ends others before the VMM");
    delete_wholly(&stack, &id).await
}
