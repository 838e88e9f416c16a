// SPDX-License-Identifier: Apache-2.0
//! Content of snapshots, page by page.

use std::{
    fs::File,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
};

use rustix::{
    fs::{SeekFrom, seek},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use wrenn_testguest as guest;
use wrenn_vmm::{BootSpec, Diffs, MemorySource, MicroVm, Snapshot, SnapshotFiles, SnapshotKind, VmmError};

use crate::rig::{Dir, Rig, console_grows};

/// Takes a snapshot of a running guest and leaves it paused.
pub(crate) async fn take(vm: &dyn MicroVm, kind: SnapshotKind, dir: &Dir, name: &str) -> SnapshotFiles {
    vm.pause().await.unwrap();
    let file = |part: &str| dir.path().join(format!("{name}.{part}"));
    let files = SnapshotFiles { state: file("state"), memory: file("memory") };
    vm.snapshot(kind, &files).await.unwrap();
    for path in [&files.state, &files.memory] {
        // QEMU opens the memory for writing, too.
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o666)).unwrap();
    }
    files
}

/// Lists the addresses of the pages in a memory file; the others are holes.
pub(crate) fn pages(path: &Path) -> Vec<u64> {
    let (file, mut at, mut pages) = (File::open(path).unwrap(), 0, Vec::new());
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        pages.extend((start / guest::PAGE..at.div_ceil(guest::PAGE)).map(|page| page * guest::PAGE));
    }
    pages
}

/// Reads one page of a memory file.
pub(crate) fn page(path: &Path, address: u64) -> Vec<u8> {
    let mut bytes = vec![0; guest::PAGE as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, address).unwrap();
    bytes
}

pub(crate) fn counter(path: &Path) -> u32 {
    u32::from_le_bytes(page(path, guest::COUNTER)[..4].try_into().unwrap())
}

/// Returns whether the guest changes each of these pages.
fn only_expected(changed: &[u64]) -> bool {
    changed.iter().all(|&address| guest::changes(address))
}

/// Lets the guest run for some rounds.
pub(crate) async fn run_on(vm: &dyn MicroVm) {
    let length = vm.console(1 << 20).await.len();
    vm.resume().await.unwrap();
    assert!(console_grows(vm, length + 1).await, "it goes on");
}

/// Lists the pages that differ between two full memory files. Skips the first MiB with Firecracker's tables,
/// where a restore writes a new generation id that tells a kernel that it was cloned.
pub(crate) fn differing(one: &Path, other: &Path) -> Vec<u64> {
    let (one, other) = (std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
    assert_eq!(one.len(), other.len());
    let size = guest::PAGE as usize;
    let pairs = one.chunks(size).zip(other.chunks(size)).enumerate();
    let changed = pairs.filter(|(_, (one, other))| one != other).map(|(index, _)| index as u64 * guest::PAGE);
    changed.filter(|&address| address >= 1 << 20).collect()
}

pub(crate) async fn diffs_hold_the_changed_pages_and_no_other(rig: &Rig) {
    let dir = Dir::new();
    let vm = rig.boot(&dir).await;
    let full = take(&*vm, SnapshotKind::Full, &dir, "full").await;
    for word in 0..guest::PATTERN_WORDS {
        let address = guest::PATTERN + u64::from(word) * 4;
        let bytes =
            &page(&full.memory, address / guest::PAGE * guest::PAGE)[(address % guest::PAGE) as usize..][..4];
        assert_eq!(u32::from_le_bytes(bytes.try_into().unwrap()), word ^ 0x5a5a_a5a5);
    }
    // Twice, because a diff starts at the end of the previous one.
    let mut base = full.memory;
    for round in ["first", "second"] {
        run_on(&*vm).await;
        let diff = take(&*vm, SnapshotKind::Diff, &dir, round).await;
        let changed = pages(&diff.memory);
        assert!(counter(&diff.memory) > counter(&base));
        let again = take(&*vm, SnapshotKind::Diff, &dir, "nothing").await;
        match rig.driver.capabilities().diffs {
            Diffs::SinceSnapshot => {
                assert!(!changed.is_empty() && only_expected(&changed), "{changed:x?}");
                assert_eq!(pages(&again.memory), [] as [u64; 0], "nothing ran in between");
            }
            Diffs::SinceStart => assert_eq!(pages(&again.memory), changed, "nothing ran in between"),
        }
        let now = take(&*vm, SnapshotKind::Full, &dir, &format!("{round}_full")).await;
        for &address in &changed {
            assert_eq!(page(&now.memory, address), page(&diff.memory, address), "page {address:x}");
        }
        let differing = differing(&base, &now.memory);
        assert!(differing.iter().all(|address| changed.contains(address)), "{differing:x?} of {changed:x?}");
        base = now.memory;
    }
    vm.kill().await.unwrap();
    let left: Vec<_> =
        std::fs::read_dir(dir.path().join("run")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".new")), "{left:?}");
}

/// Small file system mounted on a directory.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn on(dir: &'a Path) -> Self {
        // It has space for the guest's memory once.
        mount("small", dir, "tmpfs", MountFlags::empty(), c"size=200m,mode=755").unwrap();
        Self(dir)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

pub(crate) async fn a_full_disk_leaves_no_half(rig: &Rig) {
    let dir = Dir::new();
    let small = Small::on(dir.path());
    let vm = rig.boot(&dir).await;
    vm.pause().await.unwrap();
    let filler = dir.path().join("filler");
    let free = rustix::fs::statvfs(dir.path()).unwrap();
    // The state fits, the memory does not.
    let room = free.f_bavail * free.f_frsize - (192 << 10);
    std::fs::write(&filler, vec![1; room as usize]).unwrap();
    let file = |part: &str| dir.path().join(part);
    let files = SnapshotFiles { state: file("state"), memory: file("memory") };
    let full = vm.snapshot(SnapshotKind::Full, &files).await.unwrap_err();
    assert!(matches!(full, VmmError::Full { .. }), "{full:?}");
    assert!(!files.state.exists() && !files.memory.exists());
    assert!(!dir.path().join("run/memory.new").exists(), "half of a memory takes no room");
    // The guest continues, and its changes are in the next snapshot, which is a full one.
    run_on(&*vm).await;
    vm.pause().await.unwrap();
    std::fs::remove_file(filler).unwrap();
    vm.snapshot(SnapshotKind::Full, &files).await.unwrap();
    let before = counter(&files.memory);
    std::fs::remove_file(&files.memory).unwrap();
    run_on(&*vm).await;
    let diff = take(&*vm, SnapshotKind::Diff, &dir, "diff").await;
    assert!(counter(&diff.memory) > before);
    vm.kill().await.unwrap();
    drop(small);
}

pub(crate) fn heir(rig: &Rig, dir: &Dir) -> BootSpec {
    BootSpec { id: "another-id".into(), ..rig.spec(dir) }
}

async fn goes_on(vm: &dyn MicroVm, base: &SnapshotFiles, dir: &Dir) {
    let equal = dir.path().join("equal.memory");
    let files = SnapshotFiles { state: dir.path().join("equal.state"), memory: equal.clone() };
    vm.snapshot(SnapshotKind::Full, &files).await.unwrap();
    assert_eq!(differing(&base.memory, &equal), [] as [u64; 0], "memory is what it was");
    run_on(vm).await;
    assert!(vm.console(1 << 20).await.iter().all(|&byte| byte == guest::INTACT), "its pattern too");
    let later = take(vm, SnapshotKind::Diff, dir, "later").await;
    assert!(counter(&later.memory) > counter(&base.memory), "it counts on");
    let changed = pages(&later.memory);
    assert!(only_expected(&changed), "{changed:x?}");
    vm.kill().await.unwrap();
}

pub(crate) async fn a_guest_goes_on_from_files_under_another_id(rig: &Rig) {
    let (dir, other) = (Dir::new(), Dir::new());
    let vm = rig.boot(&dir).await;
    let files = take(&*vm, SnapshotKind::Full, &dir, "base").await;
    vm.kill().await.unwrap();
    let memory = MemorySource::File(files.memory.clone());
    let snapshot = Snapshot { state: files.state.clone(), memory, run: false };
    let clone = rig.driver.restore(&snapshot, &heir(rig, &other)).await.unwrap();
    goes_on(&*clone, &files, &other).await;
}

pub(crate) async fn a_diff_since_the_boot_is_the_whole_memory(rig: &Rig) {
    let dir = Dir::new();
    let vm = rig.boot(&dir).await;
    let diff = take(&*vm, SnapshotKind::Diff, &dir, "diff").await;
    let full = take(&*vm, SnapshotKind::Full, &dir, "full").await;
    assert_eq!(differing(&diff.memory, &full.memory), [] as [u64; 0]);
    vm.kill().await.unwrap();
}

/// Drivers whose guests' memory can be read give the changes without a file of them.
pub(crate) async fn changes_that_can_be_read_are_those_of_a_diff(rig: &Rig) {
    let dir = Dir::new();
    let vm = rig.boot(&dir).await;
    let diff = take(&*vm, SnapshotKind::Diff, &dir, "diff").await;
    let state = dir.path().join("read.state");
    match vm.snapshot_state(&state).await.unwrap() {
        None => {
            assert_eq!(rig.driver.capabilities().diffs, Diffs::SinceSnapshot, "QEMU's memory can be read");
            assert!(!state.exists());
        }
        Some(changes) => {
            assert!(std::fs::metadata(&state).unwrap().len() > 0);
            assert_eq!(changes.memory_size().unwrap(), std::fs::metadata(&diff.memory).unwrap().len());
            let extents = changes.extents().unwrap();
            let starts = extents.iter().flat_map(|run| (run.start..run.end).step_by(guest::PAGE as usize));
            assert_eq!(starts.clone().collect::<Vec<_>>(), pages(&diff.memory));
            for address in starts {
                let mut content = vec![0; guest::PAGE as usize];
                changes.read(&mut content, address).unwrap();
                assert_eq!(content, page(&diff.memory, address), "page {address:x}");
            }
        }
    }
    run_on(&*vm).await;
    vm.kill().await.unwrap();
}

/// Several at once, one of which is snapshotted and restored again. None changes the memory that they share.
pub(crate) async fn many_share_one_memory(rig: &Rig) {
    let dir = Dir::new();
    let vm = rig.boot(&dir).await;
    let files = take(&*vm, SnapshotKind::Full, &dir, "base").await;
    vm.kill().await.unwrap();
    let before = std::fs::read(&files.memory).unwrap();
    // QEMU needs no access to it; Firecracker reads it in its jail.
    std::fs::set_permissions(&files.memory, PermissionsExt::from_mode(0o444)).unwrap();
    let shared = |files: &SnapshotFiles| {
        let memory = MemorySource::Shared(files.memory.clone());
        Snapshot { state: files.state.clone(), memory, run: true }
    };
    let dirs: Vec<_> = (0..3).map(|_| Dir::new()).collect();
    let mut clones = Vec::new();
    for dir in &dirs {
        clones.push(rig.driver.restore(&shared(&files), &heir(rig, dir)).await.unwrap());
    }
    for clone in &clones {
        assert!(console_grows(&**clone, 1).await, "it goes on");
    }
    let next = take(&*clones[0], SnapshotKind::Full, &dirs[0], "next").await;
    assert!(counter(&next.memory) > counter(&files.memory));
    clones.remove(0).kill().await.unwrap();
    let other = Dir::new();
    let again = rig.driver.restore(&shared(&next), &heir(rig, &other)).await.unwrap();
    clones.push(again);
    for clone in &clones {
        let length = clone.console(1 << 20).await.len();
        assert!(console_grows(&**clone, length).await, "it goes on");
        assert!(clone.console(1 << 20).await.iter().all(|&byte| byte == guest::INTACT), "with its memory");
        clone.kill().await.unwrap();
    }
    assert!(std::fs::read(&files.memory).unwrap() == before, "nothing changed what they share");
}

pub(crate) async fn what_is_no_snapshot_is_refused(rig: &Rig) {
    let (dir, other) = (Dir::new(), Dir::new());
    let vm = rig.boot(&dir).await;
    let running = SnapshotFiles { state: dir.path().join("s"), memory: dir.path().join("m") };
    let refused = vm.snapshot(SnapshotKind::Full, &running).await.unwrap_err();
    assert!(matches!(refused, VmmError::Refused { .. }), "a running guest has no instant: {refused}");
    assert!(!running.state.exists() && !running.memory.exists());
    let files = take(&*vm, SnapshotKind::Full, &dir, "base").await;
    vm.kill().await.unwrap();

    let absent = Snapshot {
        state: dir.path().join("absent"),
        memory: MemorySource::File(files.memory.clone()),
        run: true,
    };
    let refused = rig.driver.restore(&absent, &heir(rig, &other)).await.map(drop).unwrap_err();
    assert!(matches!(refused, VmmError::Missing { .. }), "{refused}");
    let state = std::fs::read(&files.state).unwrap();
    let mut flipped = state.clone();
    flipped[state.len() / 2] ^= 1;
    for (what, content) in [("cut", &state[..state.len() / 2]), ("flipped", &flipped[..]), ("empty", &[])] {
        if what == "flipped" && rig.firecracker().is_none() {
            // QEMU's state has no checksum; those of `wrenn-memory` notice it.
            continue;
        }
        std::fs::write(&files.state, content).unwrap();
        let broken = Snapshot { state: files.state.clone(), ..absent.clone() };
        let refused = rig.driver.restore(&broken, &heir(rig, &other)).await.map(drop);
        assert!(matches!(refused, Err(VmmError::Refused { .. })), "{what}: {refused:?}");
        let found = wrenn_vmm::process::find(&heir(rig, &other).run_dir).unwrap();
        assert_eq!(found, None, "nothing is left of it");
    }
}
