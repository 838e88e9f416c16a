//! Firecracker with the test guest, directly on this machine's KVM: until the guest's first byte.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use wrenn_testguest::{ELF, STARTED};
use wrenn_vmm::{
    BootSpec, Vmm as _,
    firecracker::{Firecracker, Isolation},
};

use crate::{
    bare::{Bare, Programs},
    row::Row,
};

const ROUNDS: usize = 25;
/// The first ones fill caches.
const WARM: usize = 3;
/// Not a user of anything else.
const UID: u32 = 64_998;
/// Longer than the guest needs for a byte.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_micros(200);

fn said(console: &Path) -> bool {
    fs::read(console).is_ok_and(|text| text.contains(&STARTED))
}

/// Waits until the guest has said that it runs. Both sides are asked in the same way.
fn wait_for_byte(console: &Path) -> Result<()> {
    let begin = Instant::now();
    while !said(console) {
        ensure!(begin.elapsed() < LIMIT, "the guest says nothing");
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn make_dir(path: &Path) -> Result<()> {
    Ok(fs::create_dir_all(path)?)
}

async fn ours(driver: &Firecracker, spec: &BootSpec) -> Result<Duration> {
    make_dir(&spec.run_dir)?;
    chown(&spec.run_dir, Some(UID), Some(UID))?;
    let console = spec.run_dir.join("console.log");
    let begin = Instant::now();
    let vm = driver.boot(spec).await?;
    // It usually has by now.
    let waited = if said(&console) {
        Ok(())
    } else {
        tokio::task::spawn_blocking(move || wait_for_byte(&console)).await?
    };
    let took = begin.elapsed();
    vm.kill().await?;
    waited?;
    fs::remove_dir_all(&spec.run_dir)?;
    Ok(took)
}

fn by_hand(programs: &Programs, dir: &Path, spec: &BootSpec) -> Result<Duration> {
    let (base, console) = (dir.join("hand"), dir.join("console"));
    let begin = Instant::now();
    let bare = Bare::boot(programs, &base, spec, &console)?;
    wait_for_byte(&console)?;
    let took = begin.elapsed();
    drop(bare);
    Ok(took)
}

/// Measures in turns; `None` where there is no KVM.
pub(crate) async fn driver_against_client() -> Result<Option<Row>> {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("bench: no row for Firecracker's first byte here: there is no /dev/kvm");
        return Ok(None);
    }
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in("/tmp")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let (programs, jails) = (Programs::find()?, dir.path().join("jails"));
    make_dir(&jails)?;
    let kernel = dir.path().join("guest.elf");
    fs::write(&kernel, ELF)?;
    let spec = BootSpec {
        id: "bench".into(),
        run_dir: dir.path().join("run"),
        kernel,
        vcpus: 1,
        memory_mb: 128,
        uid: UID,
        gid: UID,
        ..BootSpec::default()
    };
    let isolation = Isolation::Jailer { program: programs.jailer.clone(), dir: jails };
    let driver = Firecracker::new(&programs.firecracker, isolation)?;
    let (mut times, mut floor) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + WARM {
        let (programs, dir, same) = (programs.clone(), dir.path().to_owned(), spec.clone());
        let hand = tokio::task::spawn_blocking(move || by_hand(&programs, &dir, &same)).await?;
        let one = ours(&driver, &spec).await?;
        let other = hand.context("Firecracker by hand")?;
        if round >= WARM {
            times.push(one);
            floor.push(other);
        }
    }
    Ok(Some(Row::ratio("Firecracker until the guest's first byte ÷ by a bare client", &times, &floor, 1.25)))
}
