// SPDX-License-Identifier: Apache-2.0
//! Many sandboxes at once.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use wrenn_testkit::{Stack, in_lab, short_or_long};

use super::support::{delete_wholly, listed, start_counter, still_counts, wait_exec};

/// Number of sandboxes. Emulated guests are slow, and a host with two CPUs accepts 32 sandboxes.
fn many() -> usize {
    if in_lab() { 3 } else { short_or_long(12, 30) }
}

/// Number of concurrent creates and deletes: one per CPU.
fn ways() -> usize {
    if in_lab() { 1 } else { 2 }
}

/// Creates `count` sandboxes, a few at a time.
pub(crate) async fn create_many(stack: &Stack, count: usize) -> Result<Vec<String>> {
    let body = json!({"memory_mb": 128});
    let creates = stream::iter(0..count).map(|_| stack.api.create(&body));
    creates.buffer_unordered(ways()).try_collect().await
}

/// Deletes sandboxes, a few at a time.
pub(crate) async fn delete_many(stack: &Stack, ids: &[String]) -> Result<()> {
    let deletes = stream::iter(ids).map(|id| delete_wholly(stack, id));
    deletes.buffer_unordered(ways()).try_collect().await
}

fn check_processes(stack: &Stack, ids: &[String]) -> Result<()> {
    let vmms = stack.vmms();
    anyhow::ensure!(vmms.len() == ids.len(), "{} VMMs for {} sandboxes: {vmms:#?}", vmms.len(), ids.len());
    let alone = ids.iter().find(|&id| !vmms.iter().any(|line| line.contains(id)));
    anyhow::ensure!(alone.is_none(), "{alone:?} has no VMM: {vmms:#?}");
    Ok(())
}

/// The agent is killed and restarted: it adopts all sandboxes, and their processes keep running.
pub(crate) async fn many_survive_the_agent(stack: Arc<Stack>) -> Result<()> {
    let many = many();
    let ids = create_many(&stack, many).await?;
    let mut counters = Vec::new();
    for id in &ids[..3] {
        counters.push((id, start_counter(&stack, id).await?));
    }
    let begin = Instant::now();
    stack.kill_and_wait("agent").await?;
    stream::iter(&ids).map(|id| wait_exec(&stack, id, 60)).buffer_unordered(4).try_collect::<()>().await?;
    println!("  {many} sandboxes answer {:.1} s after the agent was killed", begin.elapsed().as_secs_f32());
    let running = stack.api.get("/v1/sandboxes?status=running&limit=100").await?.expect(200)?.json();
    let count = running.as_array().map_or(0, Vec::len);
    anyhow::ensure!(count == many && listed(&stack).await?.len() == many, "{count} of {many} run: {running}");
    for (id, pid) in counters {
        still_counts(&stack, id, &pid).await.with_context(|| format!("in {id}"))?;
    }
    check_processes(&stack, &ids)?;
    delete_many(&stack, &ids).await?;
    check_processes(&stack, &[])
}
