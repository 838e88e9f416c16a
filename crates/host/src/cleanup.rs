// SPDX-License-Identifier: Apache-2.0
//! Kernel resources of an agent: listing them, and removing them when no agent runs.

use std::{ffi::OsStr, fs, io, path::Path};

use anyhow::Context;
use wrenn_disk::loopfs;
use wrenn_vmm::{ProcessId, process};

use crate::{cgroup, directory, layout, recover, sandbox::release};

/// Sandboxes that a clean-up keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None: their disks are removed, too.
    Nothing,
    /// Those that have run, with their disks and the memory of paused ones.
    Sandboxes,
}

/// Kills all microVMs of the agent with this state directory and removes everything that it created in the
/// kernel. What `keep` names stays on the disk.
pub(crate) async fn run(state_dir: &Path, keep: Keep) -> anyhow::Result<()> {
    let sandboxes = layout::sandboxes(state_dir);
    if !layout::exists(state_dir)? {
        return Ok(());
    }
    let records = recover::read(&sandboxes).context("the sandboxes' journals cannot be read")?;
    recover::end_all(&sandboxes).await?;
    release::end_vmm(&layout::probe(state_dir), None).await?;
    crate::oci::remove_leftovers(&layout::imports(state_dir))
        .context("what is left of imports cannot be removed")?;
    let gone = records.iter().filter(|record| keep == Keep::Nothing || !record.keeps_disk());
    let ids: Vec<String> = gone.map(|record| record.id.clone()).collect();
    let volumes = layout::volumes(state_dir);
    if let Some(instance) = layout::instance(state_dir).context("the file \"instance\" cannot be read")? {
        let network = wrenn_network::cleanup(&layout::network(state_dir), &instance).await;
        network.context("the sandboxes' networks cannot be removed")?;
        // Disks are on the store, which is mounted if there is anything to remove.
        let disks = wrenn_disk::cleanup(&volumes, &instance, &ids).await;
        disks.context("the sandboxes' disks cannot be removed")?;
    }
    for id in &ids {
        release::directory(&sandboxes, id).await?;
    }
    if !layout::exists(&layout::store_file(state_dir))? {
        // A mount at this place is not from the agent.
        return Ok(());
    }
    loopfs::unmount_store(&volumes).context("the volume store cannot be unmounted")
}

/// Lists the kernel resources of the agent, one line each.
pub(crate) fn leftovers(state_dir: &Path) -> Vec<String> {
    let mut found = processes(state_dir);
    found.extend(mounts(state_dir));
    found.extend(loops(state_dir));
    found.extend(control_groups(state_dir));
    match layout::instance(state_dir) {
        Ok(None) => {}
        Ok(Some(instance)) => {
            found.extend(network(state_dir, &instance));
            found.extend(disks(&instance));
        }
        Err(error) => found.push(format!("the file \"instance\" cannot be read: {error}")),
    }
    found
}

fn processes(state_dir: &Path) -> Vec<String> {
    let sandboxes = layout::sandboxes(state_dir);
    let ids = directory::list(&sandboxes).map(|content| content.ids).unwrap_or_default();
    let dirs = ids.iter().map(|id| directory::of_vmm(&sandboxes, id)).chain([layout::probe(state_dir)]);
    let found = dirs.flat_map(|dir| {
        let found = [("a microVM", process::find(&dir)), ("a page server", process::page_server(&dir))];
        found.into_iter().filter_map(|(what, found)| Some((what, found.transpose()?)))
    });
    let told = |(what, found): (&str, io::Result<ProcessId>)| match found {
        Ok(id) => format!("process {}: {what}", id.pid),
        Err(error) => format!("the processes cannot be looked at: {error}"),
    };
    found.map(told).collect()
}

fn mounts(state_dir: &Path) -> Vec<String> {
    let prefix = format!("{}/", state_dir.display());
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(1));
    points.filter(|point| point.starts_with(&prefix)).map(|point| format!("mount {point}")).collect()
}

fn loops(state_dir: &Path) -> Vec<String> {
    let prefix = format!("{}/", state_dir.display());
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    let backed = entries.flatten().filter_map(|entry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        file.starts_with(&prefix).then(|| format!("loop device {}", entry.file_name().to_string_lossy()))
    });
    backed.collect()
}

fn network(state_dir: &Path, instance: &str) -> Vec<String> {
    let found = wrenn_network::leftovers(&layout::network(state_dir), instance);
    found.unwrap_or_else(|error| vec![format!("the network cannot be looked at: {error}")])
}

/// Lists device-mapper devices.
fn disks(instance: &str) -> Vec<String> {
    let prefix = format!("wr{instance}-");
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("dm/name")).ok());
    let ours = names.filter(|name| name.starts_with(&prefix));
    ours.map(|name| format!("device {}", name.trim())).collect()
}

fn control_groups(state_dir: &Path) -> Vec<String> {
    // Sandboxes and imports of other agents have no directory here.
    let dirs = [layout::sandboxes(state_dir), layout::imports(state_dir)];
    let is_ours = |id: &OsStr| dirs.iter().any(|dir| dir.join(id).try_exists().unwrap_or(true));
    let ours = cgroup::present().into_iter().filter(|group| group.file_name().is_some_and(is_ours));
    ours.map(|group| format!("control group {}", group.display())).collect()
}
