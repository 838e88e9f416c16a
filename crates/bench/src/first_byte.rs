// SPDX-License-Identifier: Apache-2.0
//! Time from the agent's create to the first byte of its guest, compared with a bare client of Firecracker's
//! API. The guest is the test guest, which runs on every KVM; it has no envd, so its creates never finish.
//!
//! The agent also creates a disk and acquires a network slot; the bare client gets a disk and a tap device
//! beforehand.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use wrenn_api::SandboxId;
use wrenn_control::{
    AgentTls,
    agents::{AgentClient, Agents},
};
use wrenn_network::{GUEST_ADDRESS, TAP_ADDRESS};
use wrenn_rpc::host::v1::{CreateRequest, DestroyRequest, PingRequest};
use wrenn_testguest::ELF;
use wrenn_testkit::{Frozen, Stack, test_guests};
use wrenn_vmm::{BootSpec, Tap};

use crate::{
    bare::{Bare, Programs, wait_for_byte},
    row::Row,
    slots::run,
};

const ROUNDS: usize = 75;
/// Rounds that fill caches and are not counted.
const WARM: usize = 3;
/// User id that nothing else uses.
const UID: u32 = 64_998;
const MEMORY_MB: u32 = 128;
const DISK_MB: u64 = 5120;
/// Pause before each measurement, in which work of the previous one ends, such as refilling the pool of
/// slots.
const REST: Duration = Duration::from_millis(300);

/// Network namespace with a tap device, for the bare client.
struct Netns(String);

impl Netns {
    fn new() -> Result<Self> {
        let name = format!("wbench{}", std::process::id() % 100_000);
        run("ip", &format!("netns add {name}"))?;
        let made = Self(name);
        run("ip", &format!("-n {} tuntap add tap0 mode tap vnet_hdr", made.0))?;
        run("ip", &format!("-n {} link set tap0 up", made.0))?;
        Ok(made)
    }

    fn tap(&self) -> Tap {
        Tap {
            netns: Path::new("/run/netns").join(&self.0),
            name: "tap0".to_owned(),
            mac: "02:fc:00:00:00:05".to_owned(),
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = run("ip", &format!("netns del {}", self.0));
    }
}

/// Creates a client of the stack's agent like that of the control plane.
fn client(stack: &Stack) -> Result<AgentClient> {
    let file = |name: &str| stack.state_dir.join("pki").join(name);
    let tls = AgentTls::new(file("ca.pem"), file("control.pem"), file("control.key"));
    let address = stack.sql("SELECT address FROM hosts")?;
    let host = fs::read_to_string(stack.state_dir.join("host-id"))?.trim().parse().context("no host id")?;
    Ok(Agents::new(&tls)?.at(host, &address))
}

async fn ours(stack: &Stack, agent: &AgentClient) -> Result<Duration> {
    let id = SandboxId::new().to_string();
    let console = test_guests::console(stack, &id);
    let request = CreateRequest {
        sandbox_id: id.clone(),
        template: "minimal".to_owned(),
        vcpus: 1,
        memory_mb: u64::from(MEMORY_MB),
        disk_size_mb: DISK_MB,
        ..Default::default()
    };
    let client = agent.clone();
    let begin = Instant::now();
    let create = tokio::spawn(async move { client.create(request).await.map(drop) });
    let waited =
        tokio::task::spawn_blocking(move || wait_for_byte(|| test_guests::started(&console))).await?;
    let took = begin.elapsed();
    agent.destroy(DestroyRequest { sandbox_id: id, ..Default::default() }).await?;
    let ended = create.await?;
    waited.with_context(|| format!("the create gave {ended:?}"))?;
    Ok(took)
}

fn by_hand(programs: &Programs, dir: &Path, spec: &BootSpec) -> Result<Duration> {
    let (base, console) = (dir.join("hand"), dir.join("console"));
    let begin = Instant::now();
    let bare = Bare::boot(programs, &base, spec, &console)?;
    wait_for_byte(|| test_guests::started(&console))?;
    let took = begin.elapsed();
    drop(bare);
    Ok(took)
}

/// Describes a guest like the agent's, with a disk and a slot that exist already.
fn spec(dir: &Path, parts: &Path, tap: Tap) -> Result<BootSpec> {
    let [disk, kernel, initrd] = ["disk.img", "guest.elf", "initrd.img"].map(|name| dir.join(name));
    fs::File::create(&disk)?.set_len(DISK_MB << 20)?;
    fs::write(&kernel, ELF)?;
    // On the same file system as the others, so that the bare client can hard-link it.
    fs::copy(parts.join("initrd.img"), &initrd)?;
    Ok(BootSpec {
        id: "bench".into(),
        kernel,
        initrd: Some(initrd),
        cmdline: format!("wrenn.ip={GUEST_ADDRESS}/30 wrenn.gw={TAP_ADDRESS}"),
        disk: Some(disk),
        vcpus: 1,
        memory_mb: MEMORY_MB,
        tap: Some(tap),
        uid: UID,
        gid: UID,
        ..BootSpec::default()
    })
}

/// Measures both sides alternately.
async fn rounds(stack: &Stack, programs: &Programs, dir: &Path, spec: &BootSpec) -> Result<Row> {
    let agent = client(stack)?;
    // Open the connection before the measurement, as the control plane has one open.
    agent.ping(PingRequest::default()).await?;
    let (mut times, mut floor) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + WARM {
        let (programs, dir, same) = (programs.clone(), dir.to_owned(), spec.clone());
        tokio::time::sleep(REST).await;
        let hand = tokio::task::spawn_blocking(move || by_hand(&programs, &dir, &same)).await?;
        tokio::time::sleep(REST).await;
        let one = ours(stack, &agent).await?;
        let other = hand.context("Firecracker by hand")?;
        if round >= WARM {
            times.push(one);
            floor.push(other);
        }
    }
    let what = "the agent's create until the guest's first byte ÷ Firecracker by a bare client";
    Ok(Row::ratio(what, &times, &floor, 1.25))
}

/// Measures both sides alternately; `None` without KVM.
pub(crate) async fn agent_against_client(parts: &Path) -> Result<Option<Row>> {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("bench: no row for the guest's first byte here: there is no /dev/kvm");
        return Ok(None);
    }
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in("/tmp")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let programs = Programs::find()?;
    let netns = Netns::new()?;
    let spec = spec(dir.path(), parts, netns.tap())?;
    let stack = Stack::start_with(test_guests::setup(dir.path())?).await?;
    // Stop the server, which would have the agent destroy sandboxes without a row.
    let server = Frozen::new(stack.child("server")?)?;
    let row = rounds(&stack, &programs, dir.path(), &spec).await;
    drop(server);
    let logs = stack.logs();
    stack.stop().await?;
    row.map(Some).context(logs)
}
