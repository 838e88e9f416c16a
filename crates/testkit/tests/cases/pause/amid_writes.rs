// SPDX-License-Identifier: Apache-2.0
//! Snapshots of sandboxes that are writing to their disks.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_testkit::{Stack, short_or_long, wait_until};

use super::{
    super::support::{delete_wholly, pause, resume, sh},
    rounds::{DATABASE, START_WRITER, bring, rows, writes_on},
};

const WORK: &str = include_str!("work.py");
const WORKS: [&str; 3] = ["tar", "git", "churn"];
/// Time limit for a round of each work, in a guest that is emulated.
const LIMIT: Duration = Duration::from_secs(120);
/// Beginnings and parts of the lines by which e2fsck says that it replays the journal of a sound file system, that it
/// removes files that were deleted while they were open, and how much it has seen. The sums in the superblock are counted
/// when the file system is mounted, and written when it is unmounted; those of groups, which have other lines, must be right.
const BEGINNINGS: [&str; 6] = [
    "Pass ",
    "Clearing orphaned inode ",
    "Free blocks count wrong (",
    "Free inodes count wrong (",
    "Fix? yes",
    "e2fsck ",
];
const PARTS: [&str; 3] = ["recovering journal", "FILE SYSTEM WAS MODIFIED", "% non-contiguous), "];

/// Runs a program; returns its exit status and what it says.
fn run(program: &str, args: &[&str], file: &Path) -> Result<(Option<i32>, String)> {
    let ran = Command::new(program).args(args).arg(file).env("LC_ALL", "C").output();
    let ran = ran.with_context(|| format!("cannot run {program}"))?;
    let text = [ran.stdout, ran.stderr].concat();
    Ok((ran.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

/// Fails unless the file system of a disk that nobody writes to is sound as soon as its journal is replayed.
fn check_disk(disk: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let copy = dir.path().join("disk");
    let source = disk.to_str().context("a path")?;
    let copied = run("cp", &["--sparse=always", source], &copy)?;
    ensure!(copied.0 == Some(0), "no copy of {source}: {}", copied.1);
    let (status, said) = run("e2fsck", &["-fy"], &copy)?;
    let usual = |line: &str| {
        line.is_empty()
            || BEGINNINGS.iter().any(|begin| line.starts_with(begin))
            || PARTS.iter().any(|part| line.contains(part))
    };
    let faults: Vec<_> = said.lines().map(str::trim).filter(|line| !usual(line)).collect();
    ensure!(
        matches!(status, Some(0 | 1)) && faults.is_empty(),
        "e2fsck of {source} ends by {status:?}: {said}"
    );
    let (status, said) = run("e2fsck", &["-fn"], &copy)?;
    ensure!(status == Some(0), "e2fsck of {source} finds more the second time: {said}");
    Ok(())
}

/// Finds the file of the disk of a sandbox, or of the only snapshot if the name is `snapshot.`.
fn disk(stack: &Stack, name: &str) -> Result<PathBuf> {
    let dir = stack.state_dir.join("agent/volumes/volumes");
    let files = fs::read_dir(&dir)?.flatten().map(|entry| entry.path());
    let is_it =
        |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
    files.into_iter().find(is_it).with_context(|| format!("no disk {name} in {}", dir.display()))
}

/// Number of the rounds of each work.
async fn progress(stack: &Stack, id: &str) -> Result<Vec<u64>> {
    let counts =
        sh(stack, id, "cd /root/work && cat tar.rounds; echo; cat git.rounds; echo; cat churn.rounds")
            .await?;
    counts.split_whitespace().map(|count| Ok(count.parse()?)).collect()
}

/// Waits until every work has done a round more than before.
async fn all_go_on(stack: &Stack, id: &str, before: &[u64]) -> Result<Vec<u64>> {
    let mut last = Vec::new();
    let more = async || {
        last = progress(stack, id).await.ok()?;
        let goes_on = last.len() == WORKS.len() && last.iter().zip(before).all(|(now, before)| now > before);
        goes_on.then_some(())
    };
    let went_on = wait_until(&format!("more rounds than {before:?} of {WORKS:?}"), LIMIT, more).await;
    if went_on.is_err() {
        let said = sh(stack, id, "cd /root/work; head *.ended *.log; ps ax").await;
        return went_on.map(|()| last.clone()).with_context(|| format!("there are {last:?}: {said:?}"));
    }
    Ok(last)
}

/// Ends all works; fails unless they end well and everything is whole, and so is the disk.
async fn end_well(stack: &Stack, id: &str, writer: &str, least: u64) -> Result<()> {
    writes_on(stack, id, writer, least).await?;
    sh(stack, id, &format!("touch /run/stop; kill {writer}")).await?;
    let ended = async || {
        let count = sh(stack, id, "ls /root/work | grep -c ended").await.ok()?;
        (count == WORKS.len().to_string()).then_some(())
    };
    wait_until("the end of all works", LIMIT, ended).await?;
    let checked = sh(
        stack,
        id,
        "sync; echo 3 > /proc/sys/vm/drop_caches; cd /root/work && python3 /root/work.py check",
    )
    .await;
    checked.context("what the works have left")?;
    rows(stack, id).await?;
    pause(stack, id).await?;
    check_disk(&disk(stack, id)?)
}

/// Snapshots a sandbox at work, and pauses it meanwhile; another one that goes on from the snapshot ends its work well.
async fn snapshot_amid(stack: &Stack, id: &str, writer: &str) -> Result<()> {
    let written = rows(stack, id).await?;
    let body = json!({"sandbox_id": id, "name": "amid"});
    stack.api.post("/v1/snapshots", &body).await?.expect(201)?;
    check_disk(&disk(stack, "snapshot.")?).context("the snapshot's disk")?;
    // It has the processor for itself later, and its disk is as sound.
    pause(stack, id).await?;
    check_disk(&disk(stack, id)?).context("the paused sandbox's disk")?;
    let clone = stack.api.create(&json!({"template": "amid"})).await?;
    stack.api.delete("/v1/snapshots/amid").await?.expect(204)?;
    let done = progress(stack, &clone).await?;
    all_go_on(stack, &clone, &done).await.context("the works in the new sandbox")?;
    end_well(stack, &clone, writer, written).await.context("the end of the new sandbox")?;
    delete_wholly(stack, &clone).await?;
    resume(stack, id).await.map(drop)
}

/// A snapshot that is made while an archive is unpacked, a repository is packed, files come and go and a database is
/// written has a sound disk, and all these works go on from it and end well.
pub(crate) async fn snapshots_amid_writes_are_whole(stack: Arc<Stack>) -> Result<()> {
    let stack = &*stack;
    let id = stack.api.create(&json!({"vcpus": 2, "memory_mb": 512, "disk_size_mb": 2048})).await?;
    bring(stack, &id, "work.py", WORK).await?;
    bring(stack, &id, "database.py", DATABASE).await?;
    sh(stack, &id, "mkdir /root/work && cd /root/work && python3 /root/work.py prepare").await?;
    for name in WORKS {
        let start = format!("cd /root/work && setsid python3 /root/work.py {name} > {name}.log 2>&1 &");
        sh(stack, &id, &start).await?;
    }
    let writer = sh(stack, &id, START_WRITER).await?;
    let mut done = vec![0; WORKS.len()];
    for round in 0..short_or_long(1, 8) {
        done = all_go_on(stack, &id, &done).await?;
        snapshot_amid(stack, &id, &writer).await.with_context(|| format!("snapshot {round}"))?;
    }
    end_well(stack, &id, &writer, 0).await?;
    delete_wholly(stack, &id).await
}
