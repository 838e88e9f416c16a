// SPDX-License-Identifier: Apache-2.0
//! Sandboxes that go on from the memory of their template: each has an identity of its own, and a snapshot that
//! is damaged costs a boot and nothing else.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::json;
use wrenn_testkit::{Stack, in_lab, short_or_long, wait_until};

use super::pause::clock_is_right;

const MEMORY_MB: u64 = 256;
/// Time limit for what the agent does in the background, on a slow disk too.
const LIMIT: Duration = Duration::from_secs(60);
/// Number of creates at a time.
const AT_ONCE: usize = 2;
/// What must be another one in each sandbox, one per line.
const IDENTITY: &str = "cat /etc/machine-id /proc/sys/kernel/random/uuid; hostname
    head -c 16 /dev/urandom | od -An -tx1
    python3 -c 'import uuid, secrets; print(uuid.uuid4(), secrets.token_hex())'";

/// Complete snapshots on the disk.
fn snapshots(stack: &Stack) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(stack.state_dir.join("agent/volumes/snapshots")) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_none()).collect()
}

async fn wait_snapshot(stack: &Stack, former: &[PathBuf]) -> Result<PathBuf> {
    let found = async || snapshots(stack).into_iter().find(|path| !former.contains(path));
    wait_until("a snapshot of the template", LIMIT, found).await
}

/// Returns whether the sandbox's VMM loaded a snapshot: QEMU is told so by its arguments, Firecracker by its API.
pub(crate) fn resumed(stack: &Stack, id: &str) -> Result<bool> {
    let vmm = stack.vmm(id)?.as_raw_nonzero();
    let told =
        fs::read(format!("/proc/{vmm}/cmdline"))?.split(|byte| *byte == 0).any(|word| word == b"-incoming");
    let log = stack.state_dir.join("agent/sandboxes").join(id).join("run/log");
    Ok(told || fs::read_to_string(log).is_ok_and(|log| log.contains("/snapshot/load")))
}

async fn create(stack: &Stack) -> Result<String> {
    stack.api.create(&json!({"memory_mb": MEMORY_MB})).await
}

/// Checks the sandbox's clock; returns its identities.
async fn identities(stack: &Stack, id: &str) -> Result<Vec<String>> {
    let ran = stack.api.exec(id, &["sh", "-c", IDENTITY]).await?;
    let lines: Vec<_> = ran["stdout"].as_str().unwrap_or_default().lines().map(str::to_owned).collect();
    ensure!(lines.len() == 5, "{ran}");
    ensure!(lines[2] == id, "the host name is {}", lines[2]);
    clock_is_right(stack, id).await?;
    Ok(lines)
}

fn flip(path: &Path) -> Result<()> {
    let mut content = fs::read(path)?;
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(fs::write(path, content)?)
}

/// A flipped bit of a snapshot is found when the agent starts: it is removed, and the next sandbox boots. Returns its id.
async fn flipped_bit_is_found(stack: &Stack, snapshot: &Path) -> Result<String> {
    flip(&snapshot.join("data"))?;
    stack.kill_and_wait("agent").await?;
    let gone = async || (!snapshot.exists()).then_some(());
    wait_until("the removal of a damaged memory", LIMIT, gone).await?;
    // The memory is removed before the agent listens; until then, no host is online.
    let back = async || create(stack).await.ok();
    let id = wait_until("a create by the host that is back", LIMIT, back).await?;
    ensure!(!resumed(stack, &id)?, "it booted");
    identities(stack, &id).await?;
    Ok(id)
}

pub(crate) async fn sandboxes_go_on_from_their_template_each_as_itself() -> Result<()> {
    let stack = Stack::start().await?;
    let first = create(&stack).await?;
    ensure!(!resumed(&stack, &first)?, "there was nothing to go on from");
    let snapshot = wait_snapshot(&stack, &[]).await?;
    for part in ["data", "state", "header", "manifest"] {
        let meta = fs::metadata(snapshot.join(part))?;
        // Some are written by a VMM, whose user another sandbox may have later.
        ensure!((meta.uid(), meta.mode() & 0o222 & !0o200) == (0, 0), "{part} can be changed by a VMM");
    }
    let count = short_or_long(if in_lab() { AT_ONCE } else { 4 }, 50);
    let (mut ids, mut seen) = (vec![first.clone()], BTreeSet::from_iter(identities(&stack, &first).await?));
    let mut clones = 0;
    while clones < count {
        let made = futures::future::try_join_all((0..AT_ONCE).map(|_| create(&stack))).await?;
        for id in &made {
            ensure!(resumed(&stack, id)?, "{id} booted");
            seen.extend(identities(&stack, id).await?);
            stack.api.remove(id).await?;
        }
        clones += made.len();
    }
    let expected = (clones + 1) * 5;
    ensure!(seen.len() == expected, "{} of {expected} identities are different", seen.len());

    // A state that the VMM does not load costs a boot, and is replaced.
    fs::set_permissions(snapshot.join("state"), fs::Permissions::from_mode(0o600))?;
    fs::write(snapshot.join("state"), "no state")?;
    let second = create(&stack).await?;
    ensure!(!resumed(&stack, &second)?, "it was booted after all");
    identities(&stack, &second).await?;
    let another = wait_snapshot(&stack, std::slice::from_ref(&snapshot)).await?;
    ensure!(!snapshot.exists(), "what does not load is gone");
    ids.push(second);

    // What does not depend on the VMM takes minutes in a lab.
    if short_or_long(!in_lab(), true) {
        ids.push(flipped_bit_is_found(&stack, &another).await?);
    }
    for id in ids {
        stack.api.remove(&id).await?;
    }
    stack.stop().await
}
