// SPDX-License-Identifier: Apache-2.0
//! Snapshots and pauses of a sandbox in use: what its users see meanwhile, and what many of them leave.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wrenn_testkit::{Events, Stack, processor_time, short_or_long};

use super::{
    COUNTER,
    commands::{number, talk},
    count, small,
};
use crate::cases::support::{delete_wholly, pause, record, resume, sh};

/// Status, commands and events say at every instant of a snapshot that the sandbox runs, and it does.
pub(crate) async fn nobody_notices_a_snapshot(stack: Arc<Stack>) -> Result<()> {
    let id = small(&stack).await?;
    sh(&stack, &id, COUNTER).await?;
    // So that there is something to write.
    sh(&stack, &id, "head -c 40M /dev/urandom > /dev/shm/changed").await?;
    let mut events = Events::open(&stack.api, None).await?;
    let body = json!({"sandbox_id": id, "name": "unnoticed"});
    let done = AtomicBool::new(false);
    let made = async {
        let made = stack.api.post("/v1/snapshots", &body).await;
        done.store(true, Ordering::Relaxed);
        made?.expect(201).map(drop)
    };
    let look = async {
        let mut seen = Vec::new();
        // The last look may end after the snapshot, which is fast.
        while !done.load(Ordering::Relaxed) {
            let (status, number) = tokio::join!(record(&stack, &id), count(&stack, &id));
            let status = status.with_context(|| format!("no record, after {seen:?}"))?["status"].clone();
            ensure!(status == "running", "{status}, after {seen:?}");
            seen.push(number.with_context(|| format!("a command, after {seen:?}"))?);
        }
        Ok(seen)
    };
    let (made, seen) = tokio::join!(made, look);
    made?;
    let seen = seen?;
    ensure!(!seen.is_empty() && seen.is_sorted(), "the counter was at {seen:?}");
    ensure!(count(&stack, &id).await? >= seen[seen.len() - 1], "the counter has gone back");
    stack.api.delete("/v1/snapshots/unnoticed").await?.expect(204)?;
    delete_wholly(&stack, &id).await?;
    let (told, _) = events.until(&id, "sandbox.stopped").await?;
    let told: Vec<_> = told.iter().map(|event| event.kind.as_str()).collect();
    ensure!(told == ["sandbox.stopping", "sandbox.stopped"], "{told:?}");
    Ok(())
}

/// Pauses with output on its way, one in three after a snapshot, leave a microVM that is idle when its guest is.
pub(crate) async fn many_pauses_leave_an_idle_vmm(stack: Arc<Stack>) -> Result<()> {
    let id = small(&stack).await?;
    for round in 0..short_or_long(3, 10) {
        let caller = talk(&stack, &id);
        let pid = number(&stack, &id, "/tmp/talks").await?;
        if round % 3 == 2 {
            let body = json!({"sandbox_id": id, "name": "talking"});
            stack.api.post("/v1/snapshots", &body).await?.expect(201)?;
            stack.api.delete("/v1/snapshots/talking").await?.expect(204)?;
        }
        pause(&stack, &id).await?;
        caller.await??.expect_error(409, "invalid_state")?;
        resume(&stack, &id).await?;
        sh(&stack, &id, &format!("kill {pid} && rm /tmp/talks"))
            .await
            .with_context(|| format!("round {round}"))?;
    }
    let vmm = stack.vmm(&id)?;
    let before = processor_time(vmm)?;
    let watched = Duration::from_secs(4);
    tokio::time::sleep(watched).await;
    let used = processor_time(vmm)?.saturating_sub(before);
    // A device that finds no end takes a processor for itself, an idle guest some hundredths of one.
    ensure!(used < watched / 4, "the VMM of an idle guest used {used:?} of {watched:?}");
    delete_wholly(&stack, &id).await
}
