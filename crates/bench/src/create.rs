// SPDX-License-Identifier: Apache-2.0
//! Time from the creation of a sandbox to the end of its first command, compared with QEMU restored by hand from
//! memory until envd answers.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_testkit::{Stack, wait_until};

use crate::{
    by_hand::{self, Guest},
    row::Row,
};

const ROUNDS: usize = 25;

async fn over_the_api(stack: &Stack) -> Result<Duration> {
    let begin = Instant::now();
    let id = stack.api.create(&json!({})).await?;
    let ran = stack.api.exec(&id, &["/bin/true"]).await?;
    let took = begin.elapsed();
    ensure!(ran["exit_code"] == 0, "{ran}");
    stack.api.remove(&id).await?;
    Ok(took)
}

/// Copies the template's image for QEMU by hand, enlarged to the size of a sandbox's disk.
pub(crate) fn disk(share: &Path, dir: &Path) -> Result<std::path::PathBuf> {
    let target = dir.join("disk.img");
    let image = share.join("images/minimal/rootfs.ext4");
    by_hand::copy(&image, &target)?;
    std::fs::OpenOptions::new().write(true).open(&target)?.set_len(5120 << 20)?;
    Ok(target)
}

/// Returns the accelerator that the stack uses, so that both sides use the same.
fn accel(stack: &Stack) -> Result<&'static str> {
    let output = stack.wrenn(&["doctor", "--json"])?;
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("wrenn doctor printed no JSON")?;
    Ok(if report["kvm"]["usable"] == true { "kvm" } else { "tcg" })
}

/// Waits until sandboxes go on from the memory of their template: until a create takes a fraction of a boot.
async fn warm_up(stack: &Stack) -> Result<()> {
    let snapshots = stack.state_dir.join("agent/snapshots");
    over_the_api(stack).await?;
    let complete = async || {
        let entries = std::fs::read_dir(&snapshots).ok()?.flatten();
        entries.map(|entry| entry.path()).find(|path| path.extension().is_none())
    };
    wait_until("the memory of the template", Duration::from_secs(30), complete).await?;
    // Also the copies that the first use makes.
    over_the_api(stack).await.map(drop)
}

/// Measures both sides alternately, so that other load affects both.
pub(crate) async fn first_exec(stack: &Stack, share: &Path) -> Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in("/tmp")?;
    let guest = Guest { share, accel: accel(stack)? };
    let saved = guest.save(&disk(share, dir.path())?, dir.path()).await?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    warm_up(stack).await?;
    for _ in 0..ROUNDS {
        floor.push(guest.restore(&saved, &saved.disk()?).await?);
        ours.push(over_the_api(stack).await?);
    }
    let ratio = "create to first exec ÷ bare VMM restored until envd answers";
    Ok(vec![Row::ratio(ratio, &ours, &floor, 1.1), Row::time("create to first exec (ms)", &ours, 400.0)])
}
