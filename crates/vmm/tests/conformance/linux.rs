// SPDX-License-Identifier: Apache-2.0
//! Linux guest as in sandboxes: Debian on a dm-snapshot disk, in a network slot, jailed; paused, snapshotted,
//! and restored several times at once with other ids, slots and disks.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use wrenn_disk::{Backend, StoreConfig, Volumes};
use wrenn_network::{Egress, GUEST_ADDRESS, GUEST_RESOLVERS, PoolConfig, SlotPool, SlotSpec, TAP_ADDRESS};
use wrenn_testguest::PAGE;
use wrenn_vmm::{BootSpec, MemorySource, MicroVm, Rate, Snapshot, SnapshotFiles, SnapshotKind, Tap};

use crate::{
    disks::lasting_dir,
    guest::{ask, download, run, wait_ready, write},
    outside::{GREETS, MOVED_MB, OUTSIDE, Outside, RESOLVERS, sh},
    pages::Memory,
    rig::{Dir, Rig, share},
    snapshots::{page, pages, take},
};

/// Number of concurrent clones of one snapshot, and the index of those with a special role.
const CLONES: usize = 6;
const POWERED_OFF: usize = 0;
const SLOW_DISK: usize = 1;
const PAGED: usize = 2;
const ADOPTED: usize = 3;
const KILLED: usize = 4;
const DISK_MB: u64 = 2048;
const SLOTS: u16 = 32;
const INSTANCE: &str = "vc";
/// Rate limit of slow devices. The unused part of a second can be moved at once.
const SLOW: Rate = Rate { bytes: Some(512 << 10), operations: None };
/// Minimum time in seconds to move [`MOVED_MB`] at that rate, without the burst of the first second and a
/// last request that may exceed the rest.
const MOVED_IN: f64 = 4.0;
/// Time limit of an exit, longer than it takes on a busy machine.
const END: Duration = Duration::from_secs(60);

/// Program that resolves a name in the guest.
const ASK: &str = "python3 -c 'import socket; print(socket.gethostbyname(\"some.name\"))'";

fn told(resolver: Ipv4Addr) -> String {
    format!("192.0.2.{}", resolver.octets()[3])
}

struct Place {
    volumes: Arc<dyn Volumes>,
    store: PathBuf,
    slots: Arc<SlotPool>,
    dir: TempDir,
}

impl Place {
    async fn new() -> Self {
        let dir = lasting_dir();
        let store = dir.path().join("volumes");
        fs::create_dir(&store).unwrap();
        let volumes = wrenn_disk::open(StoreConfig::new(&store, Backend::Dm, INSTANCE)).await.unwrap();
        let slots = Self::slots(&dir, RESOLVERS[0]).await;
        let flows = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap();
        assert!(
            flows.trim().parse::<u64>().unwrap() > u64::from(SLOTS) * 10_000,
            "{flows} flows for all guests"
        );
        Self { volumes, store, slots, dir }
    }

    async fn slots(dir: &TempDir, resolver: Ipv4Addr) -> Arc<SlotPool> {
        let config = PoolConfig {
            state_dir: dir.path().join("network"),
            instance: INSTANCE.into(),
            warm: 1,
            max: SLOTS,
            egress: Egress::Nat,
            resolvers: vec![resolver],
            permitted: Vec::new(),
            in_use: Vec::new(),
        };
        SlotPool::start(config).await.unwrap()
    }

    /// Simulates a move of the machine to a network with another resolver.
    async fn moves(&mut self) {
        self.slots.shutdown().await.unwrap();
        self.slots = Self::slots(&self.dir, RESOLVERS[1]).await;
    }

    /// Describes a microVM with this disk and this slot.
    fn spec(rig: &Rig, dir: &Dir, id: &str, disk: &Path, slot: &SlotSpec) -> BootSpec {
        BootSpec {
            id: id.to_owned(),
            cmdline: format!(
                "wrenn.ip={GUEST_ADDRESS}/30 wrenn.gw={TAP_ADDRESS} wrenn.dns={}",
                GUEST_RESOLVERS.map(|address| address.to_string()).join(",")
            ),
            disk: Some(disk.to_owned()),
            tap: Some(Tap { netns: slot.netns.clone(), name: slot.tap.clone(), mac: slot.guest_mac.clone() }),
            ..rig.spec_without_disk(dir)
        }
    }

    /// Copies the disk of a paused guest to another id.
    async fn fork_disk(&self, from: &str, to: &str, owner: u32) -> PathBuf {
        let file = |id: &str, end: &str| self.store.join("volumes").join(format!("{id}.{end}"));
        for end in ["cow", "json"] {
            sh(&format!("cp --sparse=always {} {}", file(from, end).display(), file(to, end).display()));
        }
        self.volumes.attach(to, owner).await.unwrap().path
    }

    /// Removes everything and fails if something is left.
    async fn end(self) {
        self.slots.shutdown().await.unwrap();
        let network = self.dir.path().join("network");
        wrenn_network::cleanup(&network, INSTANCE).await.unwrap();
        assert_eq!(wrenn_network::leftovers(&network, INSTANCE).unwrap(), [] as [String; 0]);
        let maps = Command::new("dmsetup").arg("ls").output().unwrap();
        assert!(!String::from_utf8_lossy(&maps.stdout).contains(&format!("wr{INSTANCE}-")), "{maps:?}");
    }
}

/// Merges the pages of a diff into a full memory file; returns their size in bytes.
fn merge(diff: &Path, whole: &Path) -> u64 {
    let (changed, whole) = (pages(diff), File::options().write(true).open(whole).unwrap());
    for &address in &changed {
        whole.write_all_at(&page(diff, address), address).unwrap();
    }
    changed.len() as u64 * PAGE
}

/// Checks disk size, entropy source, DNS and network limit of a running guest.
fn look_at(address: Ipv4Addr) {
    let size = run(address, "df -BM --output=size / | tail -n 1 | tr -d ' M'");
    let size: u64 = size.trim().parse().unwrap();
    assert!((DISK_MB * 9 / 10..=DISK_MB).contains(&size), "the guest sees a disk of {size} MiB");
    let source = run(address, "cat /sys/class/misc/hw_random/rng_current");
    assert!(source.starts_with("virtio_rng"), "the source of entropy is {source:?}");
    assert_eq!(run(address, ASK).trim(), told(RESOLVERS[0]));
    let (sent, written) = (download(address), write(address));
    println!("a slow network and a free disk move {MOVED_MB} MiB in {sent:.2} and {written:.2} s");
    assert!(sent > MOVED_IN, "the network has no limit");
}

/// Takes a full snapshot and a diff snapshot and merges them.
async fn snapshot(vm: &dyn MicroVm, address: Ipv4Addr, dir: &Dir) -> SnapshotFiles {
    let whole = take(vm, SnapshotKind::Full, dir, "whole").await;
    vm.resume().await.unwrap();
    run(address, "echo since then > /dev/shm/later; echo on the disk > /root/later; sync");
    let diff = take(vm, SnapshotKind::Diff, dir, "diff").await;
    let (merged, size) = (merge(&diff.memory, &whole.memory), fs::metadata(&whole.memory).unwrap().len());
    println!("a diff has {merged} of {size} bytes");
    assert!((1..size / 2).contains(&merged));
    SnapshotFiles { state: diff.state, memory: whole.memory }
}

/// MicroVM restored from the snapshot.
struct Heir {
    id: String,
    slot: SlotSpec,
    spec: BootSpec,
    vm: Box<dyn MicroVm>,
    pages: Option<Memory>,
    dir: Dir,
}

impl Heir {
    async fn new(rig: &Rig, place: &Place, files: &SnapshotFiles, number: usize) -> Self {
        let (dir, id, slot) = (Dir::new(), format!("clone{number}"), place.slots.acquire().await.unwrap());
        let disk = place.fork_disk("first", &id, rig.uid()).await;
        let mut spec = Place::spec(rig, &dir, &id, &disk, &slot);
        if number == SLOW_DISK {
            spec.disk_rate = SLOW;
        }
        let pages = (number == PAGED).then(|| Memory::flat(&files.memory));
        let memory = match &pages {
            Some(pages) => pages.source(),
            None => MemorySource::File(files.memory.clone()),
        };
        let snapshot = Snapshot { state: files.state.clone(), memory, run: true };
        let vm = rig.driver.restore(&snapshot, &spec).await.unwrap();
        place.slots.refresh(slot.index).await.unwrap();
        Self { id, slot, spec, vm, pages, dir }
    }

    fn address(&self) -> Ipv4Addr {
        self.slot.host_address
    }
}

/// All clones at once: each is reachable, has the files of the snapshot, writes its own, and reaches the
/// outside.
fn talk(heirs: &[Heir]) {
    for heir in heirs {
        wait_ready(heir.address(), &*heir.vm);
    }
    let talks = heirs.iter().enumerate().map(|(number, heir)| {
        let address = heir.address();
        std::thread::spawn(move || {
            let script = format!(
                "cat /root/marker /root/later /dev/shm/later; echo {number} > /root/own; sync; cat /root/own; python3 -c '
import socket
print(socket.gethostbyname(\"some.name\"))
print(socket.create_connection((\"{OUTSIDE}\", {GREETS}), 100).recv(64).decode())'"
            );
            run(address, &script)
        })
    });
    let talks: Vec<_> = talks.collect();
    for (number, talk) in talks.into_iter().enumerate() {
        let said = talk.join().unwrap();
        let resolved = told(RESOLVERS[1]);
        let expected = format!("written before\non the disk\nsince then\n{number}\n{resolved}\nhello\n");
        assert!(said.starts_with(&expected), "clone {number} said {said:?}");
    }
}

/// Ends microVMs in other ways than by their driver's kill.
async fn end(rig: &Rig, heirs: &[Heir]) {
    // Power off from inside; the VMM has no power button.
    let off = "python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'";
    let halted = heirs[POWERED_OFF].address();
    let asked = std::thread::spawn(move || ask(halted, off));
    let ended = tokio::time::timeout(END, heirs[POWERED_OFF].vm.exited()).await;
    ended.expect("a guest that powers off ends its VMM");
    drop(asked.join());
    // Kill by another process.
    let pid = Pid::from_raw(heirs[KILLED].vm.process().pid).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let ended = tokio::time::timeout(END, heirs[KILLED].vm.exited()).await.expect("noticed");
    assert_eq!(ended.status, Some(137));
    // Kill by a driver that adopted it.
    let heir = &heirs[ADOPTED];
    let adopted = rig.driver.adopt(&heir.spec, None).await.unwrap().expect("it runs");
    assert_eq!(run(heir.address(), "cat /root/own").trim(), ADOPTED.to_string());
    adopted.kill().await.unwrap();
    heir.vm.exited().await;
}

pub(crate) async fn one_snapshot_runs_several_times_at_once(rig: &Rig) {
    let mut place = Place::new().await;
    let outside = Outside::new();
    place.volumes.prepare("minimal", &share("images/minimal/rootfs.ext4")).await.unwrap();
    let dir = Dir::new();
    let slot = place.slots.acquire().await.unwrap();
    let disk = place.volumes.clone_image("minimal", "first", DISK_MB, rig.uid()).await.unwrap();
    assert!(disk.numbers.is_some(), "a block device");
    let spec = BootSpec { network_rate: SLOW, ..Place::spec(rig, &dir, "first", &disk.path, &slot) };
    let vm = rig.driver.boot(&spec).await.unwrap();
    let ready = wait_ready(slot.host_address, &*vm);
    println!("envd answers {ready:?} after the boot call");
    look_at(slot.host_address);
    run(slot.host_address, "echo written before > /root/marker; sync");
    let files = snapshot(&*vm, slot.host_address, &dir).await;
    vm.kill().await.unwrap();
    place.slots.release(slot.index).await.unwrap();
    place.volumes.detach("first").await.unwrap();
    place.moves().await;

    let mut heirs = Vec::new();
    for number in 0..CLONES {
        heirs.push(Heir::new(rig, &place, &files, number).await);
    }
    talk(&heirs);
    let faults = heirs[PAGED].pages.as_ref().map_or(0, Memory::used);
    println!("a page server gave {faults} parts of the memory");
    assert!(faults > 0);
    // The rate limits are those of the restore, not of the snapshot.
    let slow = heirs[SLOW_DISK].address();
    let (sent, written) = (download(slow), write(slow));
    println!("a free network and a slow disk move {MOVED_MB} MiB in {sent:.2} and {written:.2} s");
    assert!(written > MOVED_IN, "the disk has no limit");
    end(rig, &heirs).await;
    for Heir { id, slot, vm, dir, .. } in heirs {
        vm.kill().await.unwrap();
        place.slots.release(slot.index).await.unwrap();
        place.volumes.remove(&id).await.unwrap();
        drop(dir);
    }
    place.volumes.remove("first").await.unwrap();
    place.end().await;
    drop(outside);
}
