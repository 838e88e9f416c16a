// SPDX-License-Identifier: Apache-2.0
//! Memory that is damaged, missing or of another VMM: refused before a guest goes on, and removed like any other.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_testkit::{Stack, wait_until};
use xxhash_rust::xxh3::xxh3_64;

use super::{COUNTER, generation, snapshot_records};
use crate::cases::{
    support::{delete_wholly, nothing_remains, pause, post, resume, sh},
    template_snapshots::resumed,
};

/// Files of a generation.
const PARTS: [&str; 4] = ["data", "state", "header", "manifest"];

/// A file of which a byte was changed.
struct Flipped {
    path: PathBuf,
    at: u64,
    byte: u8,
}

impl Flipped {
    /// Changes the last byte of a file that is not zero.
    fn new(path: PathBuf) -> Result<Self> {
        let whole = fs::read(&path)?;
        let at = whole.iter().rposition(|byte| *byte != 0).context("an empty file")?;
        let flipped = Self { path, at: at as u64, byte: whole[at] };
        flipped.write(flipped.byte ^ 1)?;
        Ok(flipped)
    }

    fn write(&self, byte: u8) -> Result<()> {
        Ok(fs::File::options().write(true).open(&self.path)?.write_all_at(&[byte], self.at)?)
    }

    fn back(self) -> Result<()> {
        self.write(self.byte)
    }
}

/// Directory of the memory of a named snapshot of a sandbox whose environment has this text.
fn named_generation(stack: &Stack, text: &str) -> Result<PathBuf> {
    let agent = stack.state_dir.join("agent");
    let records = snapshot_records(stack, text)?;
    let record: Value = serde_json::from_str(records.first().context("no record of the snapshot")?)?;
    let build = record["build"].as_str().context("no generation")?.replace('-', "");
    Ok(agent.join("volumes/snapshots").join(build))
}

/// Makes a generation one of another VMM.
fn of_another_vmm(generation: &Path) -> Result<()> {
    let path = generation.join("manifest");
    let text = fs::read_to_string(&path)?;
    let mut manifest: Value = serde_json::from_str(text.lines().next().unwrap_or_default())?;
    manifest["origin"]["vmm"] = "another 0.1".into();
    let line = manifest.to_string();
    let sum = xxh3_64(line.as_bytes());
    Ok(fs::write(path, format!("{line}\n{sum:016x}\n"))?)
}

/// A changed byte of a paused sandbox's memory, or of a snapshot's, is told, and costs nothing else.
pub(crate) async fn damaged_memory_is_refused(stack: Arc<Stack>) -> Result<()> {
    let mark = "a-damaged-one";
    let id = stack.api.create(&json!({"memory_mb": 256, "envs": {"MARK": mark}})).await?;
    let pid = sh(&stack, &id, COUNTER).await?;
    let snapshot = json!({"sandbox_id": id, "name": "damaged"});
    stack.api.post("/v1/snapshots", &snapshot).await?.expect(201)?;
    pause(&stack, &id).await?;
    let (own, named) = (generation(&stack, &id).context("no memory")?, named_generation(&stack, mark)?);
    for part in PARTS {
        let flipped = Flipped::new(own.join(part))?;
        let refused = stack.api.post(&format!("/v1/sandboxes/{id}/resume"), &json!({})).await?;
        refused.expect_error(409, "snapshot_damaged").with_context(|| part)?;
        ensure!(stack.vmms().iter().all(|vmm| !vmm.contains(&id)), "a VMM runs after {part}");
        flipped.back()?;
        let flipped = Flipped::new(named.join(part))?;
        let refused = stack.api.post("/v1/sandboxes", &json!({"template": "damaged"})).await?;
        refused.expect_error(409, "snapshot_damaged").with_context(|| format!("of the snapshot, {part}"))?;
        flipped.back()?;
    }
    resume(&stack, &id).await?;
    let clone = stack.api.create(&json!({"template": "damaged"})).await?;
    for id in [id, clone] {
        ensure!(sh(&stack, &id, "kill -0 $(cat /tmp/pid) && cat /tmp/pid").await? == pid, "another process");
        delete_wholly(&stack, &id).await?;
    }
    stack.api.delete("/v1/snapshots/damaged").await?.expect(204).map(drop)
}

/// A memory that is not there, or has lost a file, is told; the sandbox boots from its disk or is deleted, and nothing
/// of the memory stays.
pub(crate) async fn missing_memory_is_told_and_leaves_nothing(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    sh(&stack, &id, "echo kept > /root/note").await?;
    let path = format!("/v1/sandboxes/{id}");
    for part in PARTS {
        pause(&stack, &id).await?;
        let own = generation(&stack, &id).context("no memory")?;
        let aside = own.with_extension("aside");
        fs::rename(own.join(part), &aside)?;
        let refused = stack.api.post(&format!("{path}/resume"), &json!({})).await?;
        refused.expect_error(409, "snapshot_missing").with_context(|| part)?;
        let got = stack.api.get(&path).await?.expect(200)?.json();
        ensure!(got["status"] == "paused" && got["error"]["code"] == "snapshot_missing", "{got}");
        fs::remove_file(&aside)?;
        let resumed = post(&stack, &id, "resume", &json!({"memory": false})).await?;
        ensure!(resumed["status"] == "running" && resumed["error"].is_null(), "{resumed}");
        ensure!(sh(&stack, &id, "cat /root/note").await? == "kept", "the file is gone");
        ensure!(!own.exists(), "the memory without its {part} stays");
    }
    pause(&stack, &id).await?;
    let own = generation(&stack, &id).context("no memory")?;
    fs::remove_file(own.join("header"))?;
    delete_wholly(&stack, &id).await?;
    ensure!(!own.exists(), "the memory of a deleted sandbox stays");
    nothing_remains(&stack, &id).await
}

/// Names the disks of snapshots of templates' memory.
fn template_disks(stack: &Stack) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for dir in ["volumes", "nodes"] {
        let entries = fs::read_dir(stack.state_dir.join("agent/volumes").join(dir)).into_iter().flatten();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            found.extend(name.starts_with("template.").then_some(name));
        }
    }
    Ok(found)
}

/// Creates a sandbox from the snapshot "upgraded", whose memory does not load; returns its id.
async fn create_upgraded(stack: &Stack) -> Result<String> {
    let body = json!({"template": "upgraded"});
    let made = stack.api.post("/v1/sandboxes", &body).await?.expect(201)?.json();
    let reason = made["metadata"]["boot_reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("another 0.1"), "{made}");
    Ok(made["id"].as_str().context("no id")?.to_owned())
}

/// After an upgrade of the VMM a memory is not loaded. A paused sandbox says so and boots from its disk. The first sandbox from a
/// snapshot boots from its disk and says so, and later ones go on from the memory of such a boot.
pub(crate) async fn another_vmm_costs_the_memory_only(stack: Arc<Stack>) -> Result<()> {
    let mark = "an-upgraded-one";
    let id = stack.api.create(&json!({"memory_mb": 256, "envs": {"MARK": mark}})).await?;
    sh(&stack, &id, COUNTER).await?;
    sh(&stack, &id, "echo kept > /root/note").await?;
    stack.api.post("/v1/snapshots", &json!({"sandbox_id": id, "name": "upgraded"})).await?.expect(201)?;
    pause(&stack, &id).await?;
    of_another_vmm(&generation(&stack, &id).context("no memory")?)?;
    of_another_vmm(&named_generation(&stack, mark)?)?;
    let refused = stack.api.post(&format!("/v1/sandboxes/{id}/resume"), &json!({})).await?;
    refused.expect_error(409, "snapshot_incompatible")?;
    post(&stack, &id, "resume", &json!({"memory": false})).await?;
    let first = create_upgraded(&stack).await?;
    ensure!(!resumed(&stack, &first)?, "there was nothing to go on from");
    let again = async || {
        // The memory of the first is kept in the background.
        let id = create_upgraded(&stack).await.ok()?;
        if resumed(&stack, &id).ok()? {
            return Some(id);
        }
        delete_wholly(&stack, &id).await.ok()?;
        None
    };
    let second = wait_until("one that goes on from the first", Duration::from_secs(60), again).await?;
    let with_its_own = template_disks(&stack)?;
    for id in [id, first, second] {
        let script =
            "cat /root/note; echo $MARK; [ -e /tmp/n ] && kill -0 $(cat /tmp/pid) 2>/dev/null; hostname";
        let found = sh(&stack, &id, script).await?;
        ensure!(found == format!("kept\n{mark}\n{id}"), "{found}");
        delete_wholly(&stack, &id).await?;
    }
    stack.api.delete("/v1/snapshots/upgraded").await?.expect(204)?;
    ensure!(
        !with_its_own.is_subset(&template_disks(&stack)?),
        "the disk of the boot stays: {with_its_own:?}"
    );
    Ok(())
}
