//! A sandbox from the agent's create until its guest's first byte, against the same calls of Firecracker's API by a
//! bare client. The guest is the test guest, which runs on every KVM; it has no envd, so no create ends here.
//!
//! The agent makes a disk and takes a network slot; the bare client has got a disk and a tap device beforehand.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
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
    bare::{Bare, Programs},
    row::Row,
    slots::run,
};

const ROUNDS: usize = 25;
/// The first ones fill caches.
const WARM: usize = 3;
/// Not a user of anything else.
const UID: u32 = 64_998;
const MEMORY_MB: u32 = 128;
const DISK_MB: u64 = 5120;
/// Longer than the guest needs for a byte.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_micros(200);
/// Before each measurement: what the one before leaves to do, such as another slot for the pool, is done by then.
const REST: Duration = Duration::from_millis(300);

/// A network namespace with a tap device in it, for the bare client.
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

/// Waits until the guest has said that it runs. Both sides are asked in the same way.
fn wait_for_byte(console: &Path) -> Result<()> {
    let begin = Instant::now();
    while !test_guests::started(console) {
        ensure!(begin.elapsed() < LIMIT, "the guest says nothing");
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// A client of the stack's agent, as the control plane has one.
fn client(stack: &Stack) -> Result<AgentClient> {
    let file = |name: &str| stack.state_dir.join("pki").join(name);
    let tls = AgentTls { ca: file("ca.pem"), cert: file("control.pem"), key: file("control.key") };
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
    let waited = tokio::task::spawn_blocking(move || wait_for_byte(&console)).await?;
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
    wait_for_byte(&console)?;
    let took = begin.elapsed();
    drop(bare);
    Ok(took)
}

/// What the agent gives its guests, with a disk and in a slot that are there already.
fn spec(dir: &Path, parts: &Path, tap: Tap) -> Result<BootSpec> {
    let [disk, kernel, initrd] = ["disk.img", "guest.elf", "initrd.img"].map(|name| dir.join(name));
    fs::File::create(&disk)?.set_len(DISK_MB << 20)?;
    fs::write(&kernel, ELF)?;
    // Beside the others, so that a jail made by hand can have a link to it.
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

/// Measures in turns.
async fn rounds(stack: &Stack, programs: &Programs, dir: &Path, spec: &BootSpec) -> Result<Row> {
    let agent = client(stack)?;
    // The connection is there, as the control plane's is.
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

/// Measures in turns; `None` where there is no KVM.
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
    // It would have the agent remove what it does not know.
    let server = Frozen::new(stack.child("server")?)?;
    let row = rounds(&stack, &programs, dir.path(), &spec).await;
    drop(server);
    let logs = stack.logs();
    stack.stop().await?;
    row.map(Some).context(logs)
}
