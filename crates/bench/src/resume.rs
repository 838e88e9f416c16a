// SPDX-License-Identifier: Apache-2.0
//! Time from the resume of a sandbox over the API to the end of its next command, compared with QEMU restored by hand
//! from memory until envd answers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use wrenn_testkit::Stack;

use crate::{
    by_hand::Guest,
    pause::{pause, resume},
    row::Row,
};

const ROUNDS: usize = 25;
/// Rounds that are not counted: the first pause also writes what changed since the boot.
const WARM: usize = 2;

async fn over_the_api(stack: &Stack, id: &str) -> Result<Duration> {
    let begin = Instant::now();
    resume(stack, id).await?;
    let ran = stack.api.exec(id, &["/bin/true"]).await?;
    let took = begin.elapsed();
    ensure!(ran["exit_code"] == 0, "{ran}");
    Ok(took)
}

/// Measures both sides alternately; the sandbox is paused while QEMU is restored.
pub(crate) async fn first_exec(stack: &Stack, guest: &Guest) -> Result<Row> {
    let id = stack.api.create(&json!({})).await?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + WARM {
        pause(stack, &id).await?;
        let hand = guest.restore(&guest.disks(1)?).await?;
        let resumed = over_the_api(stack, &id).await?;
        if round >= WARM {
            floor.push(hand);
            ours.push(resumed);
        }
    }
    stack.api.remove(&id).await?;
    Ok(Row::ratio("resume to first exec ÷ bare VMM restored until envd answers", &ours, &floor, 1.1))
}
