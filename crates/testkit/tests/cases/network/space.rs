// SPDX-License-Identifier: Apache-2.0
//! Network namespaces, each owned by a thread; the kernel removes a namespace when its thread exits. That of a case has mounts
//! of its own, too.

use std::{
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result};
use rustix::{
    mount::{MountPropagationFlags, mount_bind, mount_change},
    thread::{Pid, UnshareFlags, gettid, unshare_unsafe},
};
use serde_json::Value;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// Thread in a network namespace of its own.
#[derive(Debug)]
pub(super) struct Space {
    thread: Pid,
    jobs: mpsc::Sender<Job>,
}

/// Moves the calling thread into a new network namespace. The thread must not return to a pool.
fn leave() -> Result<()> {
    // SAFETY: file descriptors are not unshared; only this thread changes its namespace.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("cannot make a network namespace")?;
    ip("link set lo up")
}

/// Gives the calling thread mounts of its own. The thread must not return to a pool.
fn leave_mounts() -> Result<()> {
    // SAFETY: file descriptors are not unshared; only this thread changes its namespace.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("cannot make a mount namespace")?;
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// Puts a file with this content over another one, for a case that runs in [`apart`] and what it starts.
pub(super) fn replace_file(path: &str, content: &str) -> Result<()> {
    // The mount keeps the file when its name is removed.
    let file = tempfile::NamedTempFile::new()?;
    fs::write(&file, content)?;
    fs::set_permissions(&file, Permissions::from_mode(0o644))?;
    mount_bind(file.path(), path).with_context(|| format!("cannot mount a file over {path}"))
}

/// Runs a case and everything that it starts in a network namespace without an uplink, and with mounts of its own.
pub(super) async fn apart<F>(case: F) -> Result<()>
where
    F: AsyncFnOnce() -> Result<()> + Send + 'static,
{
    let (tell, told) = oneshot::channel();
    thread::Builder::new().name("apart".into()).spawn(move || {
        let run = || {
            leave()?;
            leave_mounts()?;
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(case())
        };
        let _ = tell.send(run());
    })?;
    told.await.context("the case's thread died")?
}

impl Space {
    /// Creates a namespace and its thread.
    pub(super) fn new() -> Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        thread::Builder::new().name("space".into()).spawn(move || {
            let left = leave().map(|()| gettid());
            let _ = tell.send(left);
            work.into_iter().for_each(|job| job());
        })?;
        Ok(Self { thread: told.recv().context("the namespace's thread died")??, jobs })
    }

    /// Name of the namespace for `ip link set … netns`.
    pub(super) fn name(&self) -> String {
        self.thread.as_raw_nonzero().to_string()
    }

    /// Runs `work` in the namespace.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = mpsc::channel();
        let job = Box::new(move || {
            let _ = tell.send(work());
        });
        self.jobs.send(job).ok().context("the namespace is gone")?;
        told.recv().context("the namespace's thread died")?
    }
}

fn program(name: &str, args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(name)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{name} {args:?}: {said}{input}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `ip` in the calling thread's namespace.
pub(super) fn ip(args: &str) -> Result<()> {
    program("ip", &args.split(' ').collect::<Vec<_>>(), "").map(drop)
}

/// Lists the network links of the calling thread's namespace. `/sys/class/net` would show those of the
/// namespace in which it was mounted.
pub(super) fn links() -> Result<Vec<String>> {
    let listed: Value = serde_json::from_str(&program("ip", &["-j", "link", "show"], "")?)?;
    let all = listed.as_array().context("no list of links")?;
    Ok(all.iter().filter_map(|link| Some(link["ifname"].as_str()?.to_owned())).collect())
}

/// Adds nftables rules in the calling thread's namespace.
pub(super) fn add_rules(rules: &str) -> Result<()> {
    program("nft", &["-f", "-"], rules).map(drop)
}

/// Reads the nftables counters of the calling thread's namespace, by name.
pub(super) fn counted() -> Result<Vec<(String, u64)>> {
    let listed: Value = serde_json::from_str(&program("nft", &["-j", "list", "counters"], "")?)?;
    let objects = listed["nftables"].as_array().context("no list of counters")?;
    let counters = objects.iter().filter_map(|object| {
        let counter = &object["counter"];
        Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
    });
    Ok(counters.collect())
}

/// Reads the source and destination pairs of an nftables set, each as `FROM > TO`, sorted.
pub(super) fn pairs(family: &str, table: &str, set: &str) -> Result<Vec<String>> {
    let listed: Value =
        serde_json::from_str(&program("nft", &["-j", "list", "set", family, table, set], "")?)?;
    let objects = listed["nftables"].as_array().context("no set")?;
    let elements = objects.iter().filter_map(|object| object["set"]["elem"].as_array()).flatten();
    let mut pairs = elements
        .map(|element| {
            let pair = element["concat"].as_array().or_else(|| element["elem"]["val"]["concat"].as_array());
            let [from, to] = pair.map(Vec::as_slice).context("not a pair")? else {
                anyhow::bail!("not a pair: {element}")
            };
            Ok(format!("{} > {}", from.as_str().unwrap_or_default(), to.as_str().unwrap_or_default()))
        })
        .collect::<Result<Vec<_>>>()?;
    pairs.sort();
    Ok(pairs)
}
