// SPDX-License-Identifier: Apache-2.0
//! Time of a pause of a guest on Firecracker that changed 10 MiB, until its memory is kept and its VMM has ended.
//!
//! The agent's pauses need a guest with envd, which does not run on every KVM. So this does what they do to the VMM and
//! the memory (`host/src/snapshots/mod.rs`), without the journal, the disk and the network.

use std::{
    fs::{self, File},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use wrenn_disk::loopfs;
use wrenn_memory::{BuildId, Diff, Generations, Layout, Origin, Part};
use wrenn_testguest::ELF;
use wrenn_vmm::{BootSpec, MemorySource, MicroVm, Snapshot, SnapshotFiles, SnapshotKind, Vmm as _};

use crate::{
    restore::{Place, prints},
    row::{Row, median},
};

const ROUNDS: usize = 30;
/// Rounds that fill caches and are not counted.
const WARM: usize = 2;
/// Steps of a pause.
const STEPS: [&str; 4] = ["stop", "write the changes", "keep the memory", "end the VMM"];

/// Number of bytes that [`WRITER`] changes.
const CHANGED: u64 = 10 << 20;
/// First instructions of the test guest.
const BEGIN: [u8; 7] = [0xb0, b'S', 0x66, 0xba, 0xf8, 0x03, 0xee];
/// Instructions of a guest that prints `S`, and then writes a number into each page of 10 MiB, prints `K`, and so on
/// with the next number.
#[rustfmt::skip]
const WRITER: [u8; 36] = [
    0xb0, b'S', 0x66, 0xba, 0xf8, 0x03, 0xee, // start: movb $'S', %al; movw $0x3f8, %dx; outb %al, %dx
    0x43,                                     // round: incl %ebx
    0xb8, 0x00, 0x00, 0x00, 0x01,             //        movl $0x1000000, %eax
    0x89, 0x18,                               // page:  movl %ebx, (%eax)
    0x05, 0x00, 0x10, 0x00, 0x00,             //        addl $0x1000, %eax
    0x3d, 0x00, 0x00, 0xa0, 0x01,             //        cmpl $0x1a00000, %eax
    0x72, 0xf2,                               //        jb page
    0xb0, b'K', 0x66, 0xba, 0xf8, 0x03, 0xee, //        movb $'K', %al; movw $0x3f8, %dx; outb %al, %dx
    0xeb, 0xe3,                               //        jmp round
];

/// Returns the test guest with the instructions of [`WRITER`].
pub(crate) fn guest() -> Result<Vec<u8>> {
    let mut elf = ELF.to_vec();
    let at = elf.windows(BEGIN.len()).position(|bytes| bytes == BEGIN);
    let at = at.context("the test guest does not begin as it did")?;
    elf[at..at + WRITER.len()].copy_from_slice(&WRITER);
    Ok(elf)
}

/// Place of guests, and of their memory on a file system that shares extents.
struct Pauses {
    place: Place,
    captures: PathBuf,
    generations: Generations,
}

impl Pauses {
    fn new(dir: &Path, store: &Path) -> Result<Self> {
        let (place, generations) = (Place::new(dir, &guest()?)?, Generations::new(&store.join("snapshots"))?);
        Ok(Self { place, captures: dir.join("captures"), generations })
    }

    fn spec(&self) -> Result<BootSpec> {
        Ok(BootSpec { track_changes: true, ..self.place.spec(0)? })
    }

    async fn boot(&self) -> Result<Box<dyn MicroVm>> {
        let spec = self.spec()?;
        let vm = self.place.driver.boot(&spec).await?;
        // `S`, and `K` after all pages.
        prints(&spec.run_dir.join("console.log"), 2).await?;
        Ok(vm)
    }

    /// Restores a guest and waits until it has changed all pages.
    async fn restore(&self, build: BuildId) -> Result<Box<dyn MicroVm>> {
        let spec = self.spec()?;
        let [data, state] = [Part::Data, Part::State].map(|part| self.generations.path(build, part));
        for path in [&data, &state] {
            chown(path, Some(spec.uid), Some(spec.gid))?;
        }
        let snapshot = Snapshot { state, memory: MemorySource::File(data), run: true };
        let vm = self.place.driver.restore(&snapshot, &spec).await?;
        // The first `K` comes after a part of them.
        prints(&spec.run_dir.join("console.log"), 2).await?;
        Ok(vm)
    }

    /// Pauses a guest that began with the memory of `parent`, or with zeros; returns its memory and the time of each
    /// step.
    async fn pause(
        &self,
        vm: &dyn MicroVm,
        parent: Option<BuildId>,
    ) -> Result<(BuildId, [Duration; STEPS.len()])> {
        rustix::fs::sync();
        let mut ends = [Instant::now(); STEPS.len() + 1];
        vm.pause().await?;
        ends[1] = Instant::now();
        let (build, captured) = self.capture(vm).await?;
        ends[2] = Instant::now();
        self.keep(build, &captured, parent)?;
        fs::remove_dir_all(self.captures.join(build.to_string()))?;
        ends[3] = Instant::now();
        vm.kill().await?;
        parent.map_or(Ok(()), |parent| self.generations.remove(parent))?;
        ends[4] = Instant::now();
        Ok((build, std::array::from_fn(|step| ends[step + 1] - ends[step])))
    }

    /// Writes what the guest changed, as `Snapshots::capture` of the agent.
    async fn capture(&self, vm: &dyn MicroVm) -> Result<(BuildId, SnapshotFiles)> {
        let build = BuildId::new();
        let dir = self.captures.join(build.to_string());
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir)?;
        let files = SnapshotFiles { state: dir.join("state"), memory: dir.join("memory") };
        vm.snapshot(SnapshotKind::Diff, &files).await?;
        let changed = fs::metadata(&files.memory)?.blocks() * 512;
        ensure!(changed >= CHANGED, "the guest changed {changed} bytes");
        Ok((build, files))
    }

    /// Keeps the changes over the memory that the guest began with, as `Snapshots::keep` of the agent.
    fn keep(&self, build: BuildId, captured: &SnapshotFiles, parent: Option<BuildId>) -> Result<()> {
        let (changes, layout) = (&File::open(&captured.memory)?, Layout::Flat);
        let (label, origin) = ("bench".to_owned(), Origin::default());
        let written = self.generations.write(Diff { build, changes, parent, layout, label, origin })?;
        fs::copy(&captured.state, written.path(Part::State))?;
        written.keep()?;
        Ok(())
    }

    /// Measures pauses of a guest that is restored after each.
    async fn rounds(&self) -> Result<Row> {
        let (mut build, _) = self.pause(&*self.boot().await?, None).await?;
        let (mut whole, mut steps) = (Vec::new(), STEPS.map(|_| Vec::new()));
        for round in 0..ROUNDS + WARM {
            let vm = self.restore(build).await?;
            let (next, took) = self.pause(&*vm, Some(build)).await?;
            build = next;
            if round >= WARM {
                whole.push(took.iter().sum());
                steps.iter_mut().zip(took).for_each(|(times, took)| times.push(took));
            }
        }
        for (name, times) in STEPS.iter().zip(&steps) {
            eprintln!("bench: of that pause, to {name}: {:.1} ms", median(times));
        }
        let what = "Firecracker's pause with 10 MiB changed until the memory is kept (ms)";
        Ok(Row::time(what, &whole, 100.0))
    }
}

/// Measures pauses on Firecracker; none without KVM.
pub(crate) async fn pauses() -> Result<Option<Row>> {
    if !Place::works_here() {
        return Ok(None);
    }
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in("/tmp")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let (file, mount) = (dir.path().join("store.xfs"), dir.path().join("store"));
    loopfs::mount_store(&file, &mount, 4 << 30)
        .context("the bench needs root, mkfs.xfs and a loop device")?;
    let row = async { Pauses::new(dir.path(), &mount)?.rounds().await }.await;
    loopfs::unmount_store(&mount)?;
    row.map(Some)
}
