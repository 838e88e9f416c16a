//! The control plane is here, its host is in a lab: a sandbox on real Firecracker, KVM and device-mapper, created,
//! used and deleted over the network, and nothing of it left on that host.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_api::HostId;
use wrenn_testkit::{Lab, LabConfig, Stack, wait_until};

const STATE: &str = "/var/lib/wrenn/state";
const PORT: u16 = 9726;

fn env(lab: &Lab) -> Vec<String> {
    let variables = [
        format!("WRENN_STATE_DIR={STATE}"),
        format!("WRENN_AGENT_LISTEN={}:{PORT}", lab.address()),
        "WRENN_AGENT_DRIVER=firecracker".to_owned(),
    ];
    ["env".to_owned()].into_iter().chain(variables).collect()
}

/// Runs `wrenn` in the lab.
fn wrenn(lab: &Lab, args: &[&str]) -> Result<String> {
    let mut command = env(lab);
    command.push("wrenn".to_owned());
    command.extend(args.iter().map(|&arg| arg.to_owned()));
    lab.check(&command)
}

/// Brings the agent its identity and starts it.
fn start_agent(lab: &Lab, stack: &Stack, id: HostId) -> Result<u32> {
    lab.check(&["mkdir", "-p", &format!("{STATE}/pki")])?;
    // Its own key and what it trusts: the CA's key stays with the control plane.
    for name in ["ca.pem", "agent.pem", "agent.key"] {
        lab.put(&stack.state_dir.join("pki").join(name), &format!("{STATE}/pki/{name}"))?;
    }
    let file = stack.state_dir.join("lab-host-id");
    std::fs::write(&file, format!("{id}\n"))?;
    lab.put(&file, &format!("{STATE}/host-id"))?;
    let mut command = env(lab);
    command.extend(["wrenn".to_owned(), "agent".to_owned()]);
    lab.spawn("agent", &command)
}

/// Makes the lab the one host that sandboxes go to.
async fn register(stack: &Stack, id: HostId, address: &str) -> Result<()> {
    let uuid = id.uuid();
    stack.sql(&format!("INSERT INTO hosts (id, address) VALUES ('{uuid}', '{address}')"))?;
    stack.sql(&format!("UPDATE hosts SET ejected_until = now() + interval '1 hour' WHERE id <> '{uuid}'"))?;
    let online = async || {
        let status = stack.sql(&format!("SELECT status FROM hosts WHERE id = '{uuid}'")).ok()?;
        (status == "online").then_some(())
    };
    wait_until("the lab's host to be online", Duration::from_secs(90), online).await
}

async fn use_it(stack: &Stack, lab: &Lab) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let ran = stack.api.exec(&id, &["sh", "-c", "echo from $(uname -s)"]).await?;
    ensure!(ran["stdout"] == "from Linux\n", "{ran}");
    stack.api.write(&id, "/tmp/note", b"kept".to_vec()).await?.expect(204)?;
    ensure!(stack.api.read(&id, "/tmp/note").await?.bytes == b"kept"[..], "the file came back changed");
    let jailed = lab.check(&["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])?;
    ensure!(jailed.contains(&format!("--id {id}-")), "no Firecracker of {id} in the lab: {jailed}");
    let maps = lab.check(&["dmsetup", "ls"])?;
    ensure!(maps.contains(&id), "no device of {id}: {maps}");
    stack.api.remove(&id).await?;
    let gone = async || {
        let maps = lab.check(&["dmsetup", "ls"]).ok()?;
        (!maps.contains(&id)).then_some(())
    };
    wait_until("the sandbox's disk to be gone", Duration::from_secs(60), gone).await
}

async fn from_outside(stack: &Stack, lab: &Lab) -> Result<()> {
    let id = HostId::new();
    let agent = start_agent(lab, stack, id)?;
    register(stack, id, &format!("{}:{PORT}", lab.address())).await?;
    use_it(stack, lab).await?;
    lab.check(&["kill", &agent.to_string()])?;
    let ended = async || lab.check(&["test", "!", "-e", &format!("/proc/{agent}")]).ok();
    wait_until("the agent's end", Duration::from_secs(30), ended).await?;
    wrenn(lab, &["down"])?;
    wrenn(lab, &["leak-check"]).context("what is left in the lab")?;
    let maps =
        lab.check(&["sh", "-c", "dmsetup ls; losetup -a; ip -o link show type veth; nft list tables"])?;
    ensure!(!maps.contains("wr"), "left in the lab: {maps}");
    Ok(())
}

/// How often a lab may stand still, as emulated processors that emulate processors do at times.
const LOST_MAX: u32 = 2;

/// The outcome in one lab, and whether that stands still.
async fn in_one_lab() -> (Result<()>, bool) {
    let config = LabConfig::new("outside").with_product();
    let lab =
        tokio::task::spawn_blocking(move || Lab::start(&config)).await.expect("no panic").expect("a lab");
    let stack = Stack::start().await.expect("wrenn starts");
    let outcome = from_outside(&stack, &lab).await;
    let lost = outcome.is_err() && lab.check(&["true"]).is_err();
    let logs = lab.logs().map(Path::to_owned);
    let stopped = stack.stop().await;
    tokio::task::spawn_blocking(move || lab.stop()).await.expect("no panic");
    stopped.expect("wrenn stops and leaves nothing");
    (outcome.with_context(|| format!("the lab's logs: {logs:?}")), lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_uses_a_host_in_a_lab() {
    if wrenn_testkit::in_lab() {
        return;
    }
    for _ in 0..LOST_MAX {
        match in_one_lab().await {
            (Err(error), true) => eprintln!("the lab stands still, another one is started: {error:#}"),
            (outcome, _) => return outcome.unwrap_or_else(|error| panic!("{error:#}")),
        }
    }
    in_one_lab().await.0.unwrap_or_else(|error| panic!("{error:#}"));
}
