// SPDX-License-Identifier: Apache-2.0
//! Time of a restore by the Firecracker driver until the guest's next byte, compared with a bare client of
//! Firecracker's API. The guest is the test guest, which runs on every KVM.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use wrenn_testguest::ELF;
use wrenn_vmm::{
    BootSpec, MemorySource, MicroVm, Snapshot, SnapshotFiles, SnapshotKind, Vmm as _,
    firecracker::{Firecracker, Isolation},
};

use crate::{
    bare::{Bare, Programs, wait_for_byte},
    row::Row,
};

const ROUNDS: usize = 50;
/// Rounds that fill caches and are not counted.
const WARM: usize = 3;
/// First of some user ids that nothing else uses.
const UID: u32 = 65_100;
const MEMORY_MB: u32 = 128;
/// Pause before each measurement, in which the processes of the previous one end.
const REST: Duration = Duration::from_millis(100);

/// Place for the files of one measurement after another.
pub(crate) struct Place {
    dir: PathBuf,
    programs: Programs,
    pub(crate) driver: Firecracker,
}

impl Place {
    /// Returns whether this machine can run guests on KVM; says so if it cannot.
    pub(crate) fn works_here() -> bool {
        let works = Path::new("/dev/kvm").exists();
        if !works {
            eprintln!("bench: no rows for restores here: there is no /dev/kvm");
        }
        works
    }

    /// Place in an empty directory for guests with this kernel.
    pub(crate) fn new(dir: &Path, kernel: &[u8]) -> Result<Self> {
        let (programs, jail) = (Programs::find()?, dir.join("jail"));
        fs::create_dir(&jail)?;
        fs::write(dir.join("guest.elf"), kernel)?;
        let isolation = Isolation::Jailer { program: programs.jailer.clone(), dir: jail };
        let driver = Firecracker::new(&programs.firecracker, isolation)?;
        Ok(Self { dir: dir.to_owned(), programs, driver })
    }

    /// Describes a microVM with an empty run directory. Those that run at the same time have different numbers.
    pub(crate) fn spec(&self, number: u32) -> Result<BootSpec> {
        let (run_dir, uid) = (self.dir.join(format!("run{number}")), UID + number);
        let _ = fs::remove_dir_all(&run_dir);
        fs::create_dir(&run_dir)?;
        chown(&run_dir, Some(uid), Some(uid))?;
        Ok(BootSpec {
            id: "bench".into(),
            run_dir,
            kernel: self.dir.join("guest.elf"),
            vcpus: 1,
            memory_mb: MEMORY_MB,
            uid,
            gid: uid,
            ..BootSpec::default()
        })
    }

    /// Boots a guest and takes a snapshot of it.
    pub(crate) async fn snapshot(&self) -> Result<SnapshotFiles> {
        let spec = self.spec(0)?;
        let vm = self.driver.boot(&spec).await?;
        prints(&spec.run_dir.join("console.log"), 1).await?;
        let files = SnapshotFiles { state: self.dir.join("state"), memory: self.dir.join("memory") };
        vm.pause().await?;
        vm.snapshot(SnapshotKind::Full, &files).await?;
        vm.kill().await?;
        for file in [&files.state, &files.memory] {
            fs::set_permissions(file, fs::Permissions::from_mode(0o444))?;
        }
        Ok(files)
    }

    async fn ours(&self, files: &SnapshotFiles) -> Result<Duration> {
        let spec = self.spec(0)?;
        let memory = MemorySource::Shared(files.memory.clone());
        let snapshot = Snapshot { state: files.state.clone(), memory, run: true };
        let begin = Instant::now();
        let vm: Box<dyn MicroVm> = self.driver.restore(&snapshot, &spec).await?;
        prints(&spec.run_dir.join("console.log"), 1).await?;
        let took = begin.elapsed();
        vm.kill().await?;
        Ok(took)
    }

    async fn by_hand(&self, files: &SnapshotFiles) -> Result<Duration> {
        let (spec, console) = (self.spec(0)?, self.dir.join("console"));
        let begin = Instant::now();
        let bare = Bare::restore(&self.programs, &self.dir.join("hand"), &spec, files, &console)?;
        prints(&console, 1).await?;
        let took = begin.elapsed();
        drop(bare);
        Ok(took)
    }
}

/// Waits for this number of bytes on the console.
pub(crate) async fn prints(console: &Path, bytes: u64) -> Result<()> {
    let console = console.to_owned();
    let said = move || fs::metadata(&console).is_ok_and(|meta| meta.len() >= bytes);
    tokio::task::spawn_blocking(|| wait_for_byte(said)).await?
}

/// Measures both sides alternately; none without KVM.
pub(crate) async fn driver_against_client() -> Result<Vec<Row>> {
    if !Place::works_here() {
        return Ok(Vec::new());
    }
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in("/tmp")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let place = Place::new(dir.path(), ELF)?;
    let files = place.snapshot().await.context("no snapshot of the test guest")?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + WARM {
        tokio::time::sleep(REST).await;
        let hand = place.by_hand(&files).await.context("Firecracker by hand")?;
        tokio::time::sleep(REST).await;
        let driver = place.ours(&files).await?;
        if round >= WARM {
            ours.push(driver);
            floor.push(hand);
        }
    }
    let what = "Firecracker restored until the guest's next byte ÷ by a bare client";
    Ok(vec![
        Row::ratio(what, &ours, &floor, 1.25),
        Row::time("Firecracker restored until the guest's next byte (ms)", &ours, 50.0),
    ])
}
