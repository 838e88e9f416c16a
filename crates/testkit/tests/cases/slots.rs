// SPDX-License-Identifier: Apache-2.0
//! Reuse of network slots of failed sandboxes.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use wrenn_testkit::{Frozen, Setup, Stack, wait_until};

use super::{
    hosts::quick_driver,
    support::{delete_wholly, end, power_off, wait_exec, wait_status},
};

/// Returns the slot index of a sandbox.
fn slot(stack: &Stack, id: &str) -> Result<Value> {
    let path = stack.state_dir.join("agent/sandboxes").join(id).join("journal.json");
    let text = std::fs::read_to_string(path)?;
    let mut entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let slot = entries.find(|entry| entry["step"] == "slot").with_context(|| format!("no slot in {text}"))?;
    Ok(slot["index"].clone())
}

/// Creates a sandbox, which must get the slot of the sandbox `failed`.
async fn heir(stack: &Stack, failed: &str) -> Result<String> {
    let had = slot(stack, failed)?;
    // The failure is reported before the slot is freed.
    let journaled = stack.state_dir.join(format!("agent/network/slots/{had}"));
    let free = async || (!journaled.exists()).then_some(());
    wait_until("the failed one's network to be free", Duration::from_secs(30), free).await?;
    let id = stack.api.create(&json!({"memory_mb": 128})).await?;
    let has = slot(stack, &id)?;
    anyhow::ensure!(had == has, "the new sandbox has network {has}, the failed one had {had}");
    Ok(id)
}

/// Kills a VMM while its agent is stopped, then the agent; the next agent must report the failure.
async fn die_unseen(stack: &Stack, id: &str) -> Result<()> {
    let (vmm, agent) = (stack.vmm(id)?, stack.child("agent")?);
    let frozen = Frozen::new(agent)?;
    kill_process(vmm, Signal::KILL)?;
    kill_process(agent, Signal::KILL)?;
    drop(frozen);
    let failed = wait_status(stack, id, &["error"], 30).await?;
    let message = failed["error"]["message"].as_str().unwrap_or_default();
    anyhow::ensure!(message.contains("delete"), "it does not say what to do: {failed}");
    Ok(())
}

async fn all_answer(stack: &Stack, ids: &[String], when: &'static str) -> Result<()> {
    for id in ids {
        wait_exec(stack, id, 60).await.context(when)?;
    }
    Ok(())
}

async fn pass_on(stack: &Stack) -> Result<()> {
    let body = json!({"memory_mb": 128});
    let (first, second) = (stack.api.create(&body).await?, stack.api.create(&body).await?);
    power_off(stack, &first).await?;
    let mut heirs = vec![heir(stack, &first).await?];
    delete_wholly(stack, &first).await?;
    all_answer(stack, &heirs, "after the failed one was deleted").await?;

    power_off(stack, &second).await?;
    heirs.push(heir(stack, &second).await?);
    stack.kill_and_wait("agent").await?;
    all_answer(stack, &heirs, "after a restart of the agent with a failed one").await?;
    delete_wholly(stack, &second).await?;
    all_answer(stack, &heirs, "after the failed one of a former agent was deleted").await?;

    let third = stack.api.create(&body).await?;
    die_unseen(stack, &third).await?;
    heirs.push(heir(stack, &third).await?);
    stack.kill_and_wait("agent").await?;
    all_answer(stack, &heirs, "after a second restart since one died unseen").await?;
    delete_wholly(stack, &third).await?;
    all_answer(stack, &heirs, "after the one that died unseen was deleted").await?;
    for id in &heirs {
        delete_wholly(stack, id).await?;
    }
    Ok(())
}

/// Failed sandboxes free their slots at once, even if they failed while no agent ran. Deleting their records
/// later, or restarting the agent, must not remove the slots' new users.
pub(crate) async fn a_failed_one_takes_nothing_from_its_heir() -> Result<()> {
    // No warm slots, so that a freed slot is used next.
    let mut env = quick_driver();
    env.push(("WRENN_AGENT_WARM_SLOTS".to_owned(), "0".to_owned()));
    let stack = Stack::start_with(Setup { env, ..Setup::default() }).await?;
    let result = pass_on(&stack).await;
    end(stack, result).await
}
