// SPDX-License-Identifier: Apache-2.0
//! Time from the creation of a sandbox to the end of its first command, compared with QEMU restored by hand from
//! memory until envd answers; and of many creates at once, compared with as many QEMUs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use wrenn_testkit::{Stack, wait_until};

use crate::{by_hand::Guest, row::Row};

const ROUNDS: usize = 25;
/// Sandboxes that are created at once, and how often.
const MANY: usize = 20;
const MANY_ROUNDS: usize = 7;

/// Returns the time from the creation of a sandbox to the end of its first command.
pub(crate) async fn over_the_api(stack: &Stack, body: &Value) -> Result<Duration> {
    let begin = Instant::now();
    let id = stack.api.create(body).await?;
    let ran = stack.api.exec(&id, &["/bin/true"]).await?;
    let took = begin.elapsed();
    ensure!(ran["exit_code"] == 0, "{ran}");
    stack.api.remove(&id).await?;
    Ok(took)
}

/// Returns the time until the last of many sandboxes that are created at once runs.
async fn many_over_the_api(stack: &Stack) -> Result<Duration> {
    let (begin, mut creates) = (Instant::now(), JoinSet::new());
    for _ in 0..MANY {
        let api = stack.api.clone();
        creates.spawn(async move { api.create(&json!({})).await });
    }
    let ids = creates.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    let took = begin.elapsed();
    for id in ids {
        stack.api.remove(&id).await?;
    }
    Ok(took)
}

/// Waits until sandboxes go on from the memory of their template: until a create takes a fraction of a boot.
pub(crate) async fn warm_up(stack: &Stack) -> Result<()> {
    let snapshots = stack.state_dir.join("agent/volumes/snapshots");
    let first = stack.api.create(&json!({})).await?;
    let complete = async || {
        let entries = std::fs::read_dir(&snapshots).ok()?.flatten();
        entries.map(|entry| entry.path()).find(|path| path.extension().is_none())
    };
    wait_until("the memory of the template", Duration::from_secs(30), complete).await?;
    stack.api.remove(&first).await?;
    // Also the copies that the first use makes.
    over_the_api(stack, &json!({})).await.map(drop)
}

/// Measures creates from the memory of the template. Both sides alternate, so that other load affects both.
pub(crate) async fn first_exec(stack: &Stack, guest: &Guest) -> Result<Vec<Row>> {
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    warm_up(stack).await?;
    for _ in 0..ROUNDS {
        floor.push(guest.restore(&guest.disks(1)?).await?);
        ours.push(over_the_api(stack, &json!({})).await?);
    }
    let ratio = "create to first exec ÷ bare VMM restored until envd answers";
    Ok(vec![Row::ratio(ratio, &ours, &floor, 1.1), Row::time("create to first exec (ms)", &ours, 400.0)])
}

/// Measures many creates at once from the memory of the template, alternately with as many QEMUs.
pub(crate) async fn at_once(stack: &Stack, guest: &Guest) -> Result<Row> {
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    warm_up(stack).await?;
    for _ in 0..MANY_ROUNDS {
        floor.push(guest.restore(&guest.disks(MANY)?).await?);
        ours.push(many_over_the_api(stack).await?);
    }
    let what = "20 creates at once ÷ 20 bare VMMs restored at once until envd answers";
    Ok(Row::ratio(what, &ours, &floor, 1.2))
}
