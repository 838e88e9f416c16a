// SPDX-License-Identifier: Apache-2.0
//! Time until envd answers in the lab, with Linux on Firecracker: by the driver and by a bare client. Both
//! get a slot, a copy of the image and the other files of the guest beforehand.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use wrenn_network::{Egress, GUEST_ADDRESS, PoolConfig, SlotPool, SlotSpec, TAP_ADDRESS, cleanup};
use wrenn_vmm::{
    BootSpec, Tap, Vmm as _,
    firecracker::{Firecracker, Isolation},
};

use crate::{
    bare::{Bare, Programs},
    by_hand,
    row::Row,
};

/// Number of rounds. Boot times vary by seconds, so fewer rounds could not show a difference of 5 %.
const ROUNDS: usize = 24;
const INSTANCE: &str = "bnch";
/// User id that nothing else uses.
const UID: u32 = 64_998;
/// Longer than any boot.
const LIMIT: Duration = Duration::from_secs(180);
/// Connect timeout. A SYN to a guest without network is lost and would be retransmitted only after a second.
const CONNECT: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(10);

/// Waits for envd in the same way as the agent.
async fn ready(client: &reqwest::Client, slot: &SlotSpec) -> Result<()> {
    let (url, begin) = (format!("http://{}:49983/health", slot.host_address), Instant::now());
    while !client.get(&url).send().await.is_ok_and(|response| response.status().is_success()) {
        ensure!(begin.elapsed() < LIMIT, "envd does not answer");
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Returns the faster half of the times: other load of the emulated CPU takes seconds and only makes boots
/// slower.
fn faster_half(mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort();
    times.truncate(times.len().div_ceil(2));
    times
}

struct Bench {
    dir: PathBuf,
    share: PathBuf,
    programs: Programs,
    driver: Firecracker,
    client: reqwest::Client,
}

impl Bench {
    fn new(dir: &Path, share: &Path) -> Result<Self> {
        let (programs, jails) = (Programs::find()?, dir.join("jails"));
        fs::create_dir(&jails)?;
        // On the file system of the disks, so that the bare client can hard-link them.
        for name in ["vmlinux", "initrd.img"] {
            fs::copy(share.join(name), dir.join(name))?;
        }
        let isolation = Isolation::Jailer { program: programs.jailer.clone(), dir: jails };
        let driver = Firecracker::new(&programs.firecracker, isolation)?;
        let client = reqwest::Client::builder().connect_timeout(CONNECT).timeout(Duration::from_secs(5));
        // No idle connections, because they belong to the previous guest.
        let client = client.pool_max_idle_per_host(0).build()?;
        Ok(Self { dir: dir.to_owned(), share: share.to_owned(), programs, driver, client })
    }

    fn spec(&self, slot: &SlotSpec) -> Result<BootSpec> {
        let (disk, run_dir) = (by_hand::disk(&self.share, &self.dir)?, self.dir.join("run"));
        fs::create_dir_all(&run_dir)?;
        for path in [&disk, &run_dir] {
            chown(path, Some(UID), Some(UID))?;
        }
        Ok(BootSpec {
            id: "bench".into(),
            run_dir,
            kernel: self.dir.join("vmlinux"),
            initrd: Some(self.dir.join("initrd.img")),
            cmdline: format!("wrenn.ip={GUEST_ADDRESS}/30 wrenn.gw={TAP_ADDRESS}"),
            disk: Some(disk),
            vcpus: 1,
            memory_mb: 512,
            tap: Some(Tap { netns: slot.netns.clone(), name: slot.tap.clone(), mac: slot.guest_mac.clone() }),
            uid: UID,
            gid: UID,
            ..BootSpec::default()
        })
    }

    async fn ours(&self, slot: &SlotSpec) -> Result<Duration> {
        let spec = self.spec(slot)?;
        let begin = Instant::now();
        let vm = self.driver.boot(&spec).await?;
        let answered = ready(&self.client, slot).await;
        let took = begin.elapsed();
        vm.kill().await?;
        fs::remove_dir_all(&spec.run_dir)?;
        answered.map(|()| took)
    }

    async fn by_hand(&self, slot: &SlotSpec) -> Result<Duration> {
        let spec = self.spec(slot)?;
        let (programs, dir) = (self.programs.clone(), self.dir.clone());
        let begin = Instant::now();
        let boot = move || Bare::boot(&programs, &dir.join("hand"), &spec, &dir.join("console"));
        let bare = tokio::task::spawn_blocking(boot).await??;
        let answered = ready(&self.client, slot).await;
        let took = begin.elapsed();
        tokio::task::spawn_blocking(|| drop(bare)).await?;
        answered.map(|()| took)
    }

    async fn rounds(&self, pool: &SlotPool) -> Result<Row> {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        // Round 0 fills caches; then the sides alternate in being first.
        for round in 0..=ROUNDS {
            let mut times = [Duration::ZERO; 2];
            for side in [round % 2, 1 - round % 2] {
                let slot = pool.acquire().await?;
                let took = if side == 0 { self.ours(&slot).await } else { self.by_hand(&slot).await };
                pool.release(slot.index).await?;
                times[side] = took?;
            }
            let [one, other] = times;
            eprintln!("bench: round {round}: ours {one:.2?}, by hand {other:.2?}");
            if round > 0 {
                ours.push(one);
                floor.push(other);
            }
        }
        let what = "Firecracker with Linux until envd answers ÷ by a bare client, the faster half of each";
        Ok(Row::ratio(what, &faster_half(ours), &faster_half(floor), 1.05))
    }
}

async fn pool(dir: &Path) -> Result<Arc<SlotPool>> {
    let config = PoolConfig {
        state_dir: dir.to_owned(),
        instance: INSTANCE.into(),
        warm: 0,
        max: 4,
        egress: Egress::None,
        resolvers: Vec::new(),
        permitted: Vec::new(),
        in_use: Vec::new(),
    };
    Ok(SlotPool::start(config).await?)
}

/// Measures both sides alternately.
pub(crate) async fn until_envd(share: &Path) -> Result<Row> {
    ensure!(std::env::var_os("IN_LAB").is_some(), "this row is measured in the lab: see `make bench`");
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in("/var/lib/wrenn")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let bench = Bench::new(dir.path(), share)?;
    let slots = dir.path().join("slots");
    let pool = pool(&slots).await?;
    let row = bench.rounds(&pool).await;
    pool.shutdown().await?;
    cleanup(&slots, INSTANCE).await?;
    row
}
