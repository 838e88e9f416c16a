// SPDX-License-Identifier: Apache-2.0
//! VMMs and page servers that die amid an operation: it ends, says why, and nothing of the disk is lost.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use wrenn_testkit::{Stack, wait_until};

use crate::cases::support::{delete_wholly, post, sh, wait_exec, wait_status};

/// Points of the agent at which a VMM runs, and what is asked of a sandbox that runs before. With packed memory on Firecracker it
/// has a page server there, too.
const POINTS: [(&str, Ask); 7] = [
    ("agent.pause.recorded", Ask::Pause),
    ("agent.pause.captured", Ask::Pause),
    ("agent.pause.kept", Ask::Pause),
    ("agent.snapshot.captured", Ask::Snapshot),
    ("agent.resume.vmm_started", Ask::Resume),
    ("agent.resume.vmm", Ask::Resume),
    ("agent.resume.init", Ask::Resume),
];

/// Operation of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Pause,
    Snapshot,
    Resume,
}

/// Process of a sandbox that is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Vmm,
    PageServer,
}

impl Victim {
    fn process(self, stack: &Stack, id: &str) -> Result<Pid> {
        match self {
            Self::Vmm => stack.vmm(id),
            Self::PageServer => stack.page_server(id),
        }
    }
}

/// Time limit of an operation amid which a process died.
const LIMIT: Duration = Duration::from_secs(90);

/// Asks for the operation, kills the process while the agent stands still at the point, and returns the response's status.
async fn kill_at(stack: &Stack, victim: Victim, point: &str, ask: Ask, id: &str) -> Result<u16> {
    let agent = stack.child("agent")?;
    stack.arm_stop(point)?;
    let (path, body) = match ask {
        Ask::Pause => (format!("/v1/sandboxes/{id}/pause"), json!({})),
        Ask::Resume => (format!("/v1/sandboxes/{id}/resume"), json!({})),
        Ask::Snapshot => ("/v1/snapshots".to_owned(), json!({"sandbox_id": id, "name": "of-a-dead-one"})),
    };
    let asked = async { tokio::time::timeout(LIMIT, stack.api.post(&path, &body)).await };
    let killed = async {
        let stopped = async || (!stack.armed(point) && stands_still(agent)).then_some(());
        let stopped = wait_until("the agent to stand still", Duration::from_secs(20), stopped).await;
        let killed = stopped.and_then(|()| Ok(kill_process(victim.process(stack, id)?, Signal::KILL)?));
        kill_process(agent, Signal::CONT)?;
        killed
    };
    let (asked, killed) = tokio::join!(asked, killed);
    killed?;
    Ok(asked.context("the operation does not end")??.status)
}

/// Returns whether a process is stopped.
fn stands_still(process: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
}

/// Waits until the sandbox is in a status of which the death is known, and makes it run again.
async fn brought_back(stack: &Stack, id: &str) -> Result<Value> {
    let settled = wait_status(stack, id, &["paused", "error"], 60).await?;
    let said = settled["error"]["message"].as_str().is_some_and(|why| why.len() > 10);
    ensure!(said || settled["status"] == "paused", "it does not say why: {settled}");
    let memory = settled["status"] == "paused" && settled["error"].is_null();
    post(stack, id, "resume", &json!({ "memory": memory })).await?;
    wait_exec(stack, id, 30).await?;
    Ok(settled)
}

/// Pauses and resumes the sandbox until it has a page server: memory that was captured as a whole, as after a boot, needs none.
async fn get_page_server(stack: &Stack, id: &str) -> Result<()> {
    for _ in 0..2 {
        post(stack, id, "pause", &json!({})).await?;
        post(stack, id, "resume", &json!({})).await?;
        if stack.page_server(id).is_ok() {
            return Ok(());
        }
    }
    stack.page_server(id).map(drop)
}

/// At each point of a pause, a resume and a snapshot the process may die: the operation ends, and the disk is whole. What was
/// captured before goes on from its memory.
async fn die_amid_operations(stack: &Stack, victim: Victim) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    sh(stack, &id, "echo kept > /root/note; sync; echo 1 > /dev/shm/memory").await?;
    for (point, ask) in POINTS {
        if victim == Victim::PageServer {
            get_page_server(stack, &id).await.with_context(|| format!("before {point}"))?;
        }
        if ask == Ask::Resume {
            post(stack, &id, "pause", &json!({})).await?;
        }
        let after = async {
            let status = kill_at(stack, victim, point, ask, &id).await?;
            let settled = brought_back(stack, &id).await?;
            let text = sh(stack, &id, "cat /root/note; cat /dev/shm/memory 2> /dev/null; true").await?;
            anyhow::Ok((status, settled, text))
        };
        let (status, settled, text) = after.await.with_context(|| format!("killed at {point}"))?;
        // The memory is whole from its capture on. After a resume the guest may have changed the disk, which does not fit it.
        let has_memory = ask == Ask::Pause && (point.ends_with("captured") || point.ends_with("kept"));
        let expected = if has_memory { "kept\n1" } else { "kept" };
        ensure!(text == expected, "killed at {point}: {status}, {settled}, and then {text:?}");
        sh(stack, &id, "echo 1 > /dev/shm/memory").await?;
    }
    // The snapshot may have been made or not.
    stack.api.delete("/v1/snapshots/of-a-dead-one").await?;
    delete_wholly(stack, &id).await
}

/// VMMs die amid pauses, resumes and snapshots.
pub(crate) async fn vmms_that_die_amid_operations(stack: Arc<Stack>) -> Result<()> {
    die_amid_operations(&stack, Victim::Vmm).await
}

/// Page servers die amid pauses, resumes and snapshots: packed memory on Firecracker with Linux guests, in a lab.
pub(crate) async fn page_servers_that_die_amid_operations(stack: Arc<Stack>) -> Result<()> {
    die_amid_operations(&stack, Victim::PageServer).await
}
