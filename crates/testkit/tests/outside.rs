// SPDX-License-Identifier: Apache-2.0
//! Control plane on this machine with two labs as hosts: creates, uses and deletes sandboxes on real
//! Firecracker, KVM and device-mapper over the network, and checks that nothing is left on the hosts.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_api::HostId;
use wrenn_testkit::{Lab, LabConfig, Stack, lab_agent_variables, wait_until};

const STATE: &str = "/var/lib/wrenn/state";
const PORT: u16 = 9726;

fn env(lab: &Lab) -> Vec<String> {
    let variables =
        [format!("WRENN_STATE_DIR={STATE}"), format!("WRENN_AGENT_LISTEN={}:{PORT}", lab.address())];
    let for_labs = lab_agent_variables().map(|(name, value)| format!("{name}={value}"));
    ["env".to_owned()].into_iter().chain(variables).chain(for_labs).collect()
}

/// Runs `wrenn` in the lab.
fn wrenn(lab: &Lab, args: &[&str]) -> Result<String> {
    let mut command = env(lab);
    command.push("wrenn".to_owned());
    command.extend(args.iter().map(|&arg| arg.to_owned()));
    lab.check(&command)
}

/// Installs the agent's identity and starts it.
fn start_agent(lab: &Lab, stack: &Stack, id: HostId) -> Result<u32> {
    lab.check(&["mkdir", "-p", &format!("{STATE}/pki")])?;
    // The agent gets its own key and the CA's certificate; the CA's key stays with the control plane.
    for name in ["ca.pem", "agent.pem", "agent.key"] {
        lab.put(&stack.state_dir.join("pki").join(name), &format!("{STATE}/pki/{name}"))?;
    }
    let file = stack.state_dir.join(format!("host-id-of-{}", lab.name()));
    std::fs::write(&file, format!("{id}\n"))?;
    lab.put(&file, &format!("{STATE}/host-id"))?;
    let mut command = env(lab);
    command.extend(["wrenn".to_owned(), "agent".to_owned()]);
    lab.spawn("agent", &command)
}

/// Lab that is a host of the control plane.
struct Host<'a> {
    lab: &'a Lab,
    id: HostId,
    agent: u32,
}

impl<'a> Host<'a> {
    async fn new(stack: &Stack, lab: &'a Lab) -> Result<Self> {
        let id = HostId::new();
        let (uuid, address) = (id.uuid(), lab.address());
        let agent = start_agent(lab, stack, id)?;
        stack.sql(&format!("INSERT INTO hosts (id, address) VALUES ('{uuid}', '{address}:{PORT}')"))?;
        let online = async || {
            let status = stack.sql(&format!("SELECT status FROM hosts WHERE id = '{uuid}'")).ok()?;
            (status == "online").then_some(())
        };
        wait_until("the lab's host to be online", Duration::from_secs(300), online).await?;
        Ok(Self { lab, id, agent })
    }

    /// Makes this host the only one that gets sandboxes.
    fn choose(&self, stack: &Stack) -> Result<()> {
        let uuid = self.id.uuid();
        let others = format!("CASE WHEN id <> '{uuid}' THEN now() + interval '1 hour' END");
        stack.sql(&format!("UPDATE hosts SET ejected_until = {others}")).map(drop)
    }

    fn devices(&self) -> Result<String> {
        self.lab.check(&["dmsetup", "ls"])
    }

    /// Creates a sandbox on this host and returns its id.
    async fn create(&self, stack: &Stack) -> Result<String> {
        self.choose(stack)?;
        let id = stack.api.create(&json!({"memory_mb": 256})).await?;
        let jailed = self.lab.check(&["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])?;
        ensure!(jailed.contains(&format!("--id {id}-")), "no Firecracker of {id} in the lab: {jailed}");
        let devices = self.devices()?;
        ensure!(devices.contains(&id), "no device of {id}: {devices}");
        Ok(id)
    }

    async fn delete(&self, stack: &Stack, id: &str) -> Result<()> {
        stack.api.remove(id).await?;
        let gone = async || self.devices().is_ok_and(|devices| !devices.contains(id)).then_some(());
        wait_until("the sandbox's disk to be gone", Duration::from_secs(240), gone).await
    }

    /// Stops the agent and fails if anything is left.
    async fn end(self) -> Result<()> {
        let Self { lab, agent, .. } = self;
        lab.check(&["kill", &agent.to_string()])?;
        let ended = async || lab.check(&["test", "!", "-e", &format!("/proc/{agent}")]).ok();
        wait_until("the agent's end", Duration::from_secs(120), ended).await?;
        wrenn(lab, &["down", "--destroy"])?;
        wrenn(lab, &["leak-check"]).with_context(|| format!("what is left in {}", lab.name()))?;
        let left =
            lab.check(&["sh", "-c", "dmsetup ls; losetup -a; ip -o link show type veth; nft list tables"])?;
        ensure!(!left.contains("wr"), "left in {}: {left}", lab.name());
        Ok(())
    }
}

/// Runs a command in a sandbox, and writes and reads a file.
async fn use_it(stack: &Stack, id: &str) -> Result<()> {
    let ran = stack.api.exec(id, &["sh", "-c", "echo from $(uname -s)"]).await?;
    ensure!(ran["stdout"] == "from Linux\n", "{ran}");
    stack.api.write(id, "/tmp/note", id.into()).await?.expect(204)?;
    ensure!(stack.api.read(id, "/tmp/note").await?.bytes == id.as_bytes(), "the file came back changed");
    Ok(())
}

/// Builds a template on one host, and creates a sandbox of it on the other one, which gets it first.
async fn move_a_template(stack: &Stack, [from, to]: [&Host<'_>; 2]) -> Result<()> {
    from.choose(stack)?;
    let recipe = "FROM minimal\nRUN echo moved > /moved\n";
    let sizes = json!({"name": "moved", "recipe": recipe, "memory_mb": 256});
    let build = stack.api.post("/v1/templates/builds", &sizes).await?.expect(201)?.json();
    let path = format!("/v1/templates/builds/{}", build["id"].as_str().context("no id")?);
    let ended = async || {
        let build = stack.api.get(&path).await.ok()?.json();
        (!["pending", "running"].iter().any(|status| build["status"] == *status)).then_some(build)
    };
    let build = wait_until("the build to end", Duration::from_secs(600), ended).await?;
    ensure!(build["status"] == "succeeded", "{build}");
    to.choose(stack)?;
    // While the labs work, a host may not answer in time, and then it does not respond for a moment.
    let create = async || stack.api.create(&json!({"template": "moved", "memory_mb": 256})).await.ok();
    let id = wait_until("a sandbox on the other host", Duration::from_secs(240), create).await?;
    ensure!(to.devices()?.contains(&id), "the sandbox is not on the host that was to get the template");
    let ran = stack.api.exec(&id, &["cat", "/moved"]).await?;
    ensure!(ran["stdout"] == "moved\n", "{ran}");
    to.delete(stack, &id).await?;
    stack.api.delete("/v1/templates/moved").await?.expect(204)?;
    let left = async || (stack.sql("SELECT count(*) FROM copies").ok()? == "0").then_some(());
    wait_until("the copy to be gone", Duration::from_secs(240), left).await
}

async fn from_outside(stack: &Stack, labs: &[Lab; LABS]) -> Result<()> {
    let mut hosts = Vec::new();
    for lab in labs {
        hosts.push(Host::new(stack, lab).await.with_context(|| lab.name().to_owned())?);
    }
    let mut ids = Vec::new();
    for host in &hosts {
        ids.push(host.create(stack).await.with_context(|| host.lab.name().to_owned())?);
    }
    // Both run at once; each is used on its own host.
    for (host, id) in hosts.iter().zip(&ids) {
        use_it(stack, id).await.with_context(|| host.lab.name().to_owned())?;
        host.delete(stack, id).await?;
    }
    move_a_template(stack, [&hosts[0], &hosts[1]]).await.context("a template that moves")?;
    for host in hosts {
        host.end().await?;
    }
    Ok(())
}

const LABS: usize = 2;
/// Time limit of the whole test, for all labs together.
const TIME_LIMIT: Duration = Duration::from_secs(2400);
/// Number of times that a lab may hang, which nested emulation sometimes does.
const LOST_MAX: u32 = 2;

/// Starts the labs concurrently; they are killed at `deadline`.
fn start(deadline: Instant) -> Result<[Lab; LABS]> {
    std::thread::scope(|scope| {
        let [one, two] = ["one", "two"].map(|name| {
            let time_limit = deadline.saturating_duration_since(Instant::now());
            let config = LabConfig { time_limit, ..LabConfig::new(&format!("outside-{name}")) };
            scope.spawn(move || Lab::start(&config.with_product()))
        });
        Ok([one.join().expect("no panic")?, two.join().expect("no panic")?])
    })
}

/// Runs the test in two labs; also returns whether a lab hangs.
async fn in_two_labs(deadline: Instant) -> (Result<()>, bool) {
    let labs = tokio::task::spawn_blocking(move || start(deadline)).await.expect("no panic").expect("labs");
    let stack = Stack::start().await.expect("wrenn starts");
    let outcome = from_outside(&stack, &labs).await;
    let lost = outcome.is_err() && labs.iter().any(|lab| lab.check(&["true"]).is_err());
    let logs: Vec<PathBuf> = labs.iter().filter_map(|lab| lab.logs().ok()).map(Path::to_owned).collect();
    let stopped = stack.stop().await;
    tokio::task::spawn_blocking(move || labs.map(Lab::stop)).await.expect("no panic");
    stopped.expect("wrenn stops and leaves nothing");
    (outcome.with_context(|| format!("the labs' logs: {logs:?}")), lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_uses_hosts_in_two_labs() {
    if wrenn_testkit::in_lab() {
        return;
    }
    let deadline = Instant::now() + TIME_LIMIT;
    for _ in 0..LOST_MAX {
        match in_two_labs(deadline).await {
            (Err(error), true) => eprintln!("a lab hangs, starting new ones: {error:#}"),
            (outcome, _) => return outcome.unwrap_or_else(|error| panic!("{error:#}")),
        }
    }
    in_two_labs(deadline).await.0.unwrap_or_else(|error| panic!("{error:#}"));
}
