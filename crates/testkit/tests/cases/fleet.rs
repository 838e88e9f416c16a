//! Many sandboxes at once, and what one of them does to the others.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use wrenn_testkit::Stack;

use super::support::{delete_wholly, listed, start_counter, still_counts, wait_exec, wait_status};

/// Emulated guests take their time.
const MANY: usize = 20;
/// Creates and deletes side by side.
const WAYS: usize = 2;

/// Creates sandboxes, a few at a time.
pub(crate) async fn create_many(stack: &Stack, count: usize) -> Result<Vec<String>> {
    let body = json!({"memory_mb": 128});
    let creates = stream::iter(0..count).map(|_| stack.api.create(&body));
    creates.buffer_unordered(WAYS).try_collect().await
}

/// Deletes them all, a few at a time.
pub(crate) async fn delete_many(stack: &Stack, ids: &[String]) -> Result<()> {
    let deletes = stream::iter(ids).map(|id| delete_wholly(stack, id));
    deletes.buffer_unordered(WAYS).try_collect().await
}

fn check_processes(stack: &Stack, ids: &[String]) -> Result<()> {
    let vmms = stack.vmms();
    anyhow::ensure!(vmms.len() == ids.len(), "{} VMMs for {} sandboxes: {vmms:#?}", vmms.len(), ids.len());
    let alone = ids.iter().find(|&id| !vmms.iter().any(|line| line.contains(id)));
    anyhow::ensure!(alone.is_none(), "{alone:?} has no VMM: {vmms:#?}");
    Ok(())
}

/// The agent dies and comes back: it adopts every one of them, and nothing in them noticed.
pub(crate) async fn many_survive_the_agent(stack: Arc<Stack>) -> Result<()> {
    let ids = create_many(&stack, MANY).await?;
    let mut counters = Vec::new();
    for id in &ids[..3] {
        counters.push((id, start_counter(&stack, id).await?));
    }
    stack.kill_and_wait("agent").await?;
    let begin = Instant::now();
    stream::iter(&ids).map(|id| wait_exec(&stack, id, 10)).buffer_unordered(4).try_collect::<()>().await?;
    println!(
        "  {MANY} sandboxes answer {:.1} s after the agent was started again",
        begin.elapsed().as_secs_f32()
    );
    let running = stack.api.get("/v1/sandboxes?status=running&limit=100").await?.expect(200)?.json();
    let count = running.as_array().map_or(0, Vec::len);
    anyhow::ensure!(count == MANY && listed(&stack).await?.len() == MANY, "{count} of {MANY} run: {running}");
    for (id, pid) in counters {
        still_counts(&stack, id, &pid).await.with_context(|| format!("in {id}"))?;
    }
    check_processes(&stack, &ids)?;
    delete_many(&stack, &ids).await?;
    check_processes(&stack, &[])
}

/// Ends a guest from inside.
async fn power_off(stack: &Stack, id: &str) -> Result<()> {
    let script = "echo 1 > /proc/sys/kernel/sysrq; echo o > /proc/sysrq-trigger; sleep 5";
    let body = json!({"cmd": "sudo", "args": ["sh", "-c", script]});
    let _ = stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?;
    wait_status(stack, id, &["error"], 30).await.map(drop)
}

/// A sandbox that failed gives its network back at once; deleting its record later, or starting the agent
/// again, must not take that network from the next owner.
pub(crate) async fn a_failed_one_takes_nothing_from_others(stack: Arc<Stack>) -> Result<()> {
    let failed = create_many(&stack, 2).await?;
    let t = Instant::now();
    for id in &failed {
        power_off(&stack, id).await?;
    }
    println!("DBG off {:?}", t.elapsed());
    // More than are kept ready, so that what was given back is handed out again.
    let others = create_many(&stack, 6).await?;
    println!("DBG six {:?}", t.elapsed());
    let all_answer = async || {
        stream::iter(&others)
            .map(|id| wait_exec(&stack, id, 10))
            .buffer_unordered(4)
            .try_collect::<()>()
            .await
    };
    delete_wholly(&stack, &failed[0]).await?;
    all_answer().await.context("after a failed sandbox was deleted")?;
    stack.kill_and_wait("agent").await?;
    all_answer().await.context("after a restart of the agent with a failed sandbox")?;
    delete_wholly(&stack, &failed[1]).await?;
    all_answer().await.context("after a failed sandbox of a former agent was deleted")?;
    println!("DBG checked {:?}", t.elapsed());
    delete_many(&stack, &others).await?;
    println!("DBG deleted {:?}", t.elapsed());
    Ok(())
}

/// The VMM dies while its agent is away; the sandbox is a failure that is explained, and takes nothing from
/// others in later starts of the agent.
pub(crate) async fn one_that_died_unseen_takes_nothing_from_others(stack: Arc<Stack>) -> Result<()> {
    let dead = create_many(&stack, 1).await?.remove(0);
    let vmm = stack.vmm(&dead)?;
    let agent = wrenn_testkit::Frozen::new(stack.child("agent")?)?;
    rustix::process::kill_process(vmm, rustix::process::Signal::KILL)?;
    rustix::process::kill_process(stack.child("agent")?, rustix::process::Signal::KILL)?;
    drop(agent);
    let failed = wait_status(&stack, &dead, &["error"], 30).await?;
    let message = failed["error"]["message"].as_str().unwrap_or_default();
    anyhow::ensure!(message.contains("delete"), "it does not say what to do: {failed}");
    let others = create_many(&stack, 5).await?;
    stack.kill_and_wait("agent").await?;
    for id in &others {
        wait_exec(&stack, id, 10).await.context("after another restart of the agent")?;
    }
    delete_wholly(&stack, &dead).await?;
    for id in &others {
        wait_exec(&stack, id, 10).await.context("after it was deleted")?;
    }
    delete_many(&stack, &others).await
}
