// SPDX-License-Identifier: Apache-2.0
//! Control groups of microVMs: limit memory, number of tasks and CPU time of a VMM, even if the guest has
//! taken it over.
//!
//! Uses cgroup version 2 if its controllers are available, else version 1. On a machine with neither, only
//! drivers that are no security boundary work; then the VMM itself limits the guest's memory and CPUs.

mod kills;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use wrenn_os::control_group;

pub(crate) use self::kills::OutOfMemory;

/// Name of the parent group.
const NAME: &str = "wrenn";
/// Maximum number of threads of a VMM in addition to one per virtual CPU.
const TASKS: u32 = 256;
/// Period in microseconds over which CPU time is limited.
const CPU_PERIOD_US: u32 = 100_000;
/// Required controllers, without which hostile code in a VMM could use up the host's memory and process ids.
const NEEDED: [&str; 2] = ["memory", "pids"];
/// Number of attempts to create groups, because the parent may be removed concurrently.
const RACES: usize = 4;

const ROOT: &str = "/sys/fs/cgroup";

/// Returns why this machine cannot limit VMMs as hostile code requires, with the remedy; `None` if it can.
pub(crate) fn lacking() -> Option<String> {
    let lacking = lacking_below(Path::new(ROOT));
    (!lacking.is_empty()).then(|| {
        format!(
            "the host cannot bound what a microVM takes: {ROOT} has no control groups with {}; mount them there, version 2 \
             or 1, with the kernel's controllers memory and pids on, or take a driver that is no security boundary",
            lacking.join(" and ")
        )
    })
}

/// Creates the control groups of a VMM that may use `memory_mb` MiB. The group name is the sandbox id, so the
/// journal need not record it.
pub(crate) fn prepare(id: &str, memory_mb: u64, vcpus: u32) -> io::Result<Vec<PathBuf>> {
    let make = || prepare_below(Path::new(ROOT), id, memory_mb, vcpus);
    // Retry, because removing another sandbox's last group also removes the parent, possibly at this moment.
    // Then fail, because a VMM must not run without limits.
    (1..RACES).find_map(|_| make().ok()).map_or_else(make, Ok)
}

/// Removes the groups of an exited VMM. Does nothing if there are none.
pub(crate) fn remove(id: &str) -> io::Result<()> {
    groups(Path::new(ROOT), id).iter().try_for_each(|group| control_group::remove_directory(group))
}

/// Returns why the kernel killed a process in the groups of a VMM for want of memory; `None` if it did not, or does not say. Only groups
/// that were not removed yet know.
pub(crate) async fn out_of_memory(id: &str) -> Option<OutOfMemory> {
    let [version_2, version_1, ..] = groups(Path::new(ROOT), id);
    let read = tokio::task::spawn_blocking(move || kills::read(&version_2, &version_1)).await;
    read.unwrap_or_else(|error| Err(error.into())).unwrap_or_else(|error| {
        tracing::warn!(id, %error, "it is not known whether a VMM was killed for want of memory");
        None
    })
}

/// Lists the existing groups.
pub(crate) fn present() -> Vec<PathBuf> {
    let parents = groups(Path::new(ROOT), "").map(|path| path.components().collect::<PathBuf>());
    let entries = parents.iter().filter_map(|parent| fs::read_dir(parent).ok()).flatten().flatten();
    entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()).collect()
}

/// Directory and limit file of a controller.
struct Hierarchy {
    dir: PathBuf,
    file: &'static str,
    limit: String,
}

fn hierarchies(root: &Path, memory_mb: u64, vcpus: u32) -> Vec<Hierarchy> {
    let memory = (memory_mb << 20).to_string();
    let tasks = (TASKS + vcpus).to_string();
    // One more than the virtual CPUs, because the VMM itself also needs CPU time.
    let quota = (vcpus + 1) * CPU_PERIOD_US;
    let unified = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let has = |name: &str| unified.split_whitespace().any(|controller| controller == name);
    if has("memory") && has("pids") {
        let dir = root.join(NAME);
        let cpu = format!("{quota} {CPU_PERIOD_US}");
        let mut all = vec![
            Hierarchy { dir: dir.clone(), file: "memory.max", limit: memory },
            Hierarchy { dir: dir.clone(), file: "pids.max", limit: tasks },
        ];
        all.extend(has("cpu").then_some(Hierarchy { dir, file: "cpu.max", limit: cpu }));
        return all;
    }
    // The default period is the same.
    let cpu = ("cpu", "cpu.cfs_quota_us", quota.to_string());
    let first = [("memory", "memory.limit_in_bytes", memory), ("pids", "pids.max", tasks), cpu];
    first
        .into_iter()
        .filter(|(controller, ..)| root.join(controller).join("cgroup.procs").exists())
        .map(|(controller, file, limit)| Hierarchy { dir: root.join(controller).join(NAME), file, limit })
        .collect()
}

/// Enables the controllers for child groups, which cgroup version 2 requires.
fn pass_down(dir: &Path) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    if !file.try_exists()? {
        return Ok(());
    }
    // Without the cpu controller, CPU time is not limited.
    let _ = fs::write(&file, "+cpu");
    fs::write(file, "+memory +pids")
}

fn prepare_below(root: &Path, id: &str, memory_mb: u64, vcpus: u32) -> io::Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for Hierarchy { dir, file, limit } in hierarchies(root, memory_mb, vcpus) {
        pass_down(root)?;
        fs::create_dir_all(&dir)?;
        pass_down(&dir)?;
        let group = dir.join(id);
        fs::create_dir_all(&group)?;
        fs::write(group.join(file), limit)?;
        made.push(group);
    }
    made.dedup();
    Ok(made)
}

fn groups(root: &Path, id: &str) -> [PathBuf; 4] {
    ["", "memory", "pids", "cpu"].map(|controller| root.join(controller).join(NAME).join(id))
}

fn lacking_below(root: &Path) -> Vec<&'static str> {
    let there = hierarchies(root, 0, 0);
    let mut lacking = NEEDED.to_vec();
    lacking.retain(|controller| !there.iter().any(|one| one.file.starts_with(controller)));
    lacking
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_is_preferred_and_version_1_taken_where_it_is_all_there_is() {
        let root = tempfile::tempdir().expect("a directory");
        assert!(hierarchies(root.path(), 512, 1).is_empty(), "no control groups");
        assert_eq!(lacking_below(root.path()), ["memory", "pids"]);
        for controller in ["memory", "cpu"] {
            fs::create_dir_all(root.path().join(controller)).expect("made");
            fs::write(root.path().join(controller).join("cgroup.procs"), "").expect("written");
        }
        assert_eq!(lacking_below(root.path()), ["pids"]);
        let first = hierarchies(root.path(), 512, 1);
        let limits: Vec<_> = first.iter().map(|one| (one.file, one.limit.as_str())).collect();
        assert_eq!(limits, [("memory.limit_in_bytes", "536870912"), ("cpu.cfs_quota_us", "200000")]);
        assert!(first[0].dir.ends_with("memory/wrenn") && first[1].dir.ends_with("cpu/wrenn"));
        fs::write(root.path().join("cgroup.controllers"), "cpu memory pids\n").expect("written");
        let files: Vec<_> = hierarchies(root.path(), 512, 1).iter().map(|one| one.file).collect();
        assert_eq!(files, ["memory.max", "pids.max", "cpu.max"]);
        assert!(lacking_below(root.path()).is_empty());
        let made = prepare_below(root.path(), "id", 512, 1).expect("made");
        assert_eq!(made, [root.path().join("wrenn/id")], "both controllers in one group");
        assert_eq!(fs::read_to_string(made[0].join("pids.max")).expect("written"), "257");
    }
}
