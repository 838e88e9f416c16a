// SPDX-License-Identifier: Apache-2.0
//! Creates and kills many microVMs with disk and network concurrently and compares kernel resources before
//! and after.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;
use wrenn_disk::{Backend, StoreConfig, Volumes};
use wrenn_network::{Egress, PoolConfig, SlotPool};
use wrenn_vmm::{BootSpec, Tap};

use crate::rig::{Dir, Rig, console_grows, in_lab};

const WAYS: usize = 8;
const INSTANCE: &str = "vh";

/// Counts the lines of a program's output that contain `text`.
fn lines(program: &str, args: &[&str], text: &str) -> usize {
    let output = Command::new(program).args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains(text)).count()
}

fn files(dir: &str) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Counts resources by kind.
fn resources(dir: &Path) -> BTreeMap<&'static str, usize> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let here = dir.display().to_string();
    let firecrackers = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&cmdline).contains("churn-")
    });
    BTreeMap::from([
        ("processes", firecrackers.count()),
        ("links", fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count()),
        ("mounts", mounts.lines().filter(|line| line.contains(&here)).count()),
        ("packet filters", lines("nft", &["list", "tables"], "")),
        ("loop devices", lines("losetup", &["--list", "--noheadings", "-O", "BACK-FILE"], &here)),
        (
            "device maps",
            fs::read_dir("/sys/block").unwrap().flatten().filter(|e| e.path().join("dm").exists()).count(),
        ),
        ("pins of namespaces", files(&format!("{here}/network/netns"))),
        ("journaled slots", files(&format!("{here}/network/slots"))),
        ("files of disks", files(&format!("{here}/volumes/volumes"))),
        ("open files", files("/proc/self/fd")),
        ("threads", files("/proc/self/task")),
    ])
}

/// Runs one microVM from boot to kill, without envd.
async fn live(rig: &Rig, number: usize, volumes: &dyn Volumes, slots: &SlotPool) {
    let (dir, id) = (Dir::new(), format!("churn-{number}"));
    let slot = slots.acquire().await.unwrap();
    let base = rig.spec(&dir);
    let disk = volumes.clone_image("small", &id, 64, base.uid).await.unwrap();
    let spec = BootSpec {
        id: id.clone(),
        disk: Some(disk.path),
        tap: Some(Tap { netns: slot.netns.clone(), name: slot.tap.clone(), mac: slot.guest_mac.clone() }),
        ..base
    };
    let vm = rig.driver.boot(&spec).await.unwrap();
    assert!(console_grows(&*vm, 0).await, "{id} prints");
    vm.kill().await.unwrap();
    slots.release(slot.index).await.unwrap();
    volumes.remove(&id).await.unwrap();
}

pub(crate) async fn hundreds_come_and_go_and_leave_nothing(rig: &Rig) {
    // In the lab even the CPU is emulated.
    let (rounds, place) = if in_lab() { (32, "/var/lib/wrenn") } else { (500, "/tmp") };
    let dir = TempDir::new_in(place).unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::create_dir(dir.path().join("volumes")).unwrap();
    let image = dir.path().join("small.img");
    fs::write(&image, vec![7; 4 << 20]).unwrap();
    let store = StoreConfig::new(dir.path().join("volumes"), Backend::Auto, INSTANCE);
    let volumes = wrenn_disk::open(store).await.unwrap();
    volumes.prepare("small", &image).await.unwrap();
    let config = PoolConfig {
        state_dir: dir.path().join("network"),
        instance: INSTANCE.into(),
        warm: 4,
        max: 64,
        egress: Egress::Nat,
        resolvers: Vec::new(),
        permitted: Vec::new(),
        in_use: Vec::new(),
    };
    // The first one creates what stays: threads, sockets, the host's nftables table.
    let slots = SlotPool::start(config.clone()).await.unwrap();
    live(rig, 0, &*volumes, &slots).await;
    slots.shutdown().await.unwrap();
    let before = resources(dir.path());

    let slots = SlotPool::start(config).await.unwrap();
    let next = Arc::new(AtomicUsize::new(1));
    futures::future::join_all((0..WAYS).map(|_| {
        let (next, volumes, slots) = (next.clone(), volumes.clone(), slots.clone());
        async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number > rounds {
                    return;
                }
                live(rig, number, &*volumes, &slots).await;
            }
        }
    }))
    .await;
    slots.shutdown().await.unwrap();
    drop(slots);
    let more = || {
        let now = resources(dir.path()).into_iter().filter(|(kind, count)| *count > before[kind]);
        now.map(|(kind, count)| format!("{kind}: {count}, there were {}", before[kind])).collect::<Vec<_>>()
    };
    // Threads and namespaces disappear a moment after their use.
    for _ in 0..300 {
        if more().is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(more(), [] as [String; 0], "after {rounds} microVMs on {} disks", volumes.backend());
    wrenn_network::cleanup(&dir.path().join("network"), INSTANCE).await.unwrap();
}
