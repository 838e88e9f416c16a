// SPDX-License-Identifier: Apache-2.0
//! Snapshot of kernel resources, to find what a test leaked.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use crate::{Process, processes};

/// Network links, mounts, loop and device-mapper devices, nftables tables, control groups and processes that
/// Wrenn can leak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    links: BTreeSet<String>,
    mounts: BTreeSet<String>,
    loops: BTreeSet<String>,
    device_maps: BTreeSet<String>,
    jails: BTreeSet<String>,
    tables: BTreeSet<String>,
    control_groups: BTreeSet<String>,
    processes: BTreeSet<String>,
}

fn lines(program: &str, args: &[&str]) -> BTreeSet<String> {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn entries(dir: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Lists the network links of this namespace. `/sys` would show those of the namespace in which it was
/// mounted.
fn links() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

/// Lists device-mapper devices by name.
pub(crate) fn device_maps() -> BTreeSet<String> {
    let name = |device: String| fs::read_to_string(format!("/sys/block/{device}/dm/name")).ok();
    entries("/sys/block").into_iter().filter_map(name).map(|name| name.trim().to_owned()).collect()
}

/// Lists jailed Firecracker processes of sandboxes; their command lines do not contain the state directory.
fn jails() -> BTreeSet<String> {
    let jailed = processes().into_iter().filter(Process::is_jailed_sandbox);
    jailed.map(|process| process.args.join(" ")).collect()
}

/// Lists control groups without processes, of microVMs, and of the services of the Wrenn in `state_dir`. A group
/// with processes may belong to another Wrenn.
fn empty_control_groups(state_dir: &Path) -> BTreeSet<String> {
    let host = fs::read_to_string(state_dir.join("host-id")).unwrap_or_default();
    let is_others = |group: &String| group.starts_with("service-") && !group.contains(host.trim());
    let mut found = BTreeSet::new();
    for controller in ["", "memory/", "pids/", "cpu/"] {
        let parent = format!("/sys/fs/cgroup/{controller}wrenn");
        let groups = entries(&parent).into_iter();
        let empty = groups.filter(|group| !is_others(group) && has_processes(&parent, group) == Some(false));
        found.extend(empty.map(|group| format!("{parent}/{group}")));
    }
    found
}

/// Returns whether a control group has processes; `None` if it is gone, or no group. Processes of other namespaces
/// are not listed in a group, but they are counted.
fn has_processes(parent: &str, group: &str) -> Option<bool> {
    let listed = fs::read_to_string(format!("{parent}/{group}/cgroup.procs")).ok()?;
    let counted = [format!("{parent}/{group}"), format!("/sys/fs/cgroup/pids/wrenn/{group}")];
    let count = |dir| fs::read_to_string(format!("{dir}/pids.current")).ok()?.trim().parse::<u64>().ok();
    Some(!listed.is_empty() || counted.into_iter().filter_map(count).any(|count| count > 0))
}

/// Lists processes whose command line contains `state_dir`.
fn processes_of(state_dir: &Path) -> BTreeSet<String> {
    let needle = state_dir.to_string_lossy().into_owned();
    let all = processes().into_iter().map(|process| (process.pid, process.args.join(" ")));
    let ours = all.filter(|(_, text)| text.contains(&needle));
    ours.map(|(pid, text)| format!("{} {text}", pid.as_raw_nonzero())).collect()
}

impl Resources {
    /// Takes a snapshot; of mounts, loop devices and processes only those that belong to `state_dir`.
    pub fn now(state_dir: &Path) -> Self {
        // Of the calling thread, which may have mounts of its own.
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
        let needle = state_dir.to_string_lossy();
        let ours = |text: &str| text.contains(&*needle);
        let backing = |name: &String| {
            fs::read_to_string(Path::new("/sys/block").join(name).join("loop/backing_file"))
                .unwrap_or_default()
        };
        Self {
            links: links(),
            mounts: mounts.lines().filter(|line| ours(line)).map(str::to_owned).collect(),
            loops: entries("/sys/block").into_iter().filter(|name| ours(&backing(name))).collect(),
            device_maps: device_maps(),
            jails: jails(),
            tables: lines("nft", &["list", "tables"]),
            control_groups: empty_control_groups(state_dir),
            processes: processes_of(state_dir),
        }
    }

    /// Lists the kinds of resources of which there are more than in `before`, whatever their names.
    pub fn grown(&self, before: &Self) -> Vec<String> {
        let more = self.pairs(before).into_iter().filter(|(_, now, before)| now.len() > before.len());
        more.map(|(kind, now, before)| format!("{kind}: {now:?}, there were {}", before.len())).collect()
    }

    /// Lists the resources that are not in `before`.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let new = |(kind, now, before): (&str, &BTreeSet<String>, &BTreeSet<String>)| {
            now.difference(before).map(|thing| format!("{kind}: {thing}")).collect::<Vec<_>>()
        };
        self.pairs(before).into_iter().flat_map(new).collect()
    }

    /// Pairs the resources of each kind with those of `before`.
    fn pairs<'a>(
        &'a self,
        before: &'a Self,
    ) -> [(&'static str, &'a BTreeSet<String>, &'a BTreeSet<String>); 8] {
        [
            ("link", &self.links, &before.links),
            ("mount", &self.mounts, &before.mounts),
            ("loop device", &self.loops, &before.loops),
            ("device map", &self.device_maps, &before.device_maps),
            ("jailed process", &self.jails, &before.jails),
            ("nftables table", &self.tables, &before.tables),
            ("control group", &self.control_groups, &before.control_groups),
            ("process", &self.processes, &before.processes),
        ]
    }
}
