// SPDX-License-Identifier: Apache-2.0
//! Creates and deletes many sandboxes concurrently and compares all resources before and after.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use tokio::sync::watch;
use wrenn_testkit::{Resources, Stack, short_or_long, test_guests, wait_until};

use super::support::{delete_wholly, listed, nothing_remains, with_test_guests};

/// Number of concurrent creates and deletes.
const WAYS: usize = 8;

/// Number of sandboxes that come and go.
fn many() -> usize {
    short_or_long(200, 3000)
}

/// Counts the resources of agent and server that [`Resources`] does not see, by name.
fn held(stack: &Stack) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for part in ["agent", "server"] {
        let process = stack.process(part)?;
        let tasks = fs::read_dir(format!("/proc/{}/task", process.pid.as_raw_nonzero()))?;
        counts.insert(format!("open files of the {part}"), process.open_files()?);
        counts.insert(format!("threads of the {part}"), tasks.count());
    }
    let agent = stack.state_dir.join("agent");
    for dir in ["sandboxes", "network/slots", "network/netns", "volumes/volumes", "volumes/nodes"] {
        counts.insert(dir.to_owned(), fs::read_dir(agent.join(dir)).map_or(0, Iterator::count));
    }
    Ok(counts)
}

/// Lists sandboxes whose guests have started.
async fn started(stack: &Stack) -> Result<Vec<String>> {
    let starting = stack.api.get("/v1/sandboxes?status=starting&limit=100").await?.expect(200)?.json();
    let ids = starting.as_array().into_iter().flatten().filter_map(|sandbox| sandbox["id"].as_str());
    let running = ids.filter(|id| test_guests::started(&test_guests::console(stack, id)));
    Ok(running.map(str::to_owned).collect())
}

/// Deletes every sandbox that has started, until `done` is true.
async fn delete_started(stack: &Stack, done: watch::Receiver<bool>) -> Result<()> {
    while !*done.borrow() {
        let running = started(stack).await?;
        let deletes = stream::iter(&running).map(|id| async { stack.api.remove(id).await.map(drop) });
        deletes.buffer_unordered(WAYS).try_collect::<()>().await?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn create_and_delete(stack: &Stack, count: usize) -> Result<()> {
    let (finished, done) = watch::channel(false);
    let body = json!({"memory_mb": 128});
    let creates = async {
        let creates = stream::iter(0..count).map(|_| stack.api.post("/v1/sandboxes", &body));
        let answers: Vec<_> = creates.buffer_unordered(WAYS).try_collect().await?;
        finished.send_replace(true);
        // Each of them started and was deleted while its create waited for envd.
        answers.into_iter().try_for_each(|answer| answer.expect_error(409, "conflict").map(drop))
    };
    let ((), ()) = futures::try_join!(creates, delete_started(stack, done))?;
    let ids = listed(stack).await?;
    ensure!(ids.is_empty(), "not deleted: {ids:?}");
    Ok(())
}

async fn churn(stack: &Stack) -> Result<()> {
    // The first ones create what stays, such as threads and connections.
    create_and_delete(stack, 2 * WAYS).await?;
    let (before, held_before) = (Resources::now(&stack.state_dir), held(stack)?);
    let begin = std::time::Instant::now();
    create_and_delete(stack, many()).await?;
    println!("  {} sandboxes came and went in {:.1} s", many(), begin.elapsed().as_secs_f32());

    let mut more = Vec::new();
    let same = wait_until("as much as before", Duration::from_secs(30), async || {
        // Warm slots have other numbers now.
        more = Resources::now(&stack.state_dir).grown(&before);
        // Pooled connections and threads vary; a leak would grow with each sandbox.
        let slack = |name: &str| if name.contains(" of the ") { many().min(500) / 2 } else { 0 };
        let grown =
            held(stack).ok()?.into_iter().filter(|(name, now)| *now > held_before[name] + slack(name));
        more.extend(grown.map(|(name, now)| format!("{name}: {now}, there were {}", held_before[&name])));
        more.is_empty().then_some(())
    });
    same.await.with_context(|| format!("there is more than before: {more:#?}"))?;
    let stopped = stack.sql("SELECT count(*) FROM sandboxes WHERE status = 'stopped'")?;
    ensure!(stopped == (many() + 2 * WAYS).to_string(), "{stopped} were stopped");
    // Match resources of any sandbox.
    nothing_remains(stack, "sb").await
}

/// Hundreds of sandboxes on the real Firecracker, eight at a time.
pub(crate) async fn hundreds_come_and_go() -> Result<()> {
    with_test_guests(churn).await
}

/// Maximum number of sandboxes of a host with two CPUs.
const TOGETHER: usize = 32;

async fn reaped(stack: &Stack) -> Result<()> {
    let body = json!({"memory_mb": 128});
    // Any result: their agent is killed meanwhile.
    let creates = futures::future::join_all((0..TOGETHER).map(|_| stack.api.post("/v1/sandboxes", &body)));
    let dies = async {
        let all = async || started(stack).await.ok().filter(|ids| ids.len() == TOGETHER);
        wait_until("every guest to run", Duration::from_secs(60), all).await?;
        ensure!(stack.vmms().len() == TOGETHER, "{:#?}", stack.vmms());
        let begin = std::time::Instant::now();
        stack.kill_and_wait("agent").await?;
        let none = async || stack.vmms().is_empty().then_some(());
        wait_until("no VMM to be there", Duration::from_secs(60), none).await?;
        println!(
            "  {TOGETHER} VMMs of a killed agent were gone after {:.1} s",
            begin.elapsed().as_secs_f32()
        );
        Ok(())
    };
    let (_, died) = futures::join!(creates, dies);
    died?;
    let ids = listed(stack).await?;
    ensure!(ids.len() == TOGETHER, "{} of {TOGETHER} are listed", ids.len());
    for id in &ids {
        delete_wholly(stack, id).await?;
    }
    nothing_remains(stack, "sb").await
}

/// The agent is killed while many sandboxes start on the real Firecracker: the next agent kills every VMM.
pub(crate) async fn those_that_start_are_reaped_with_their_agent() -> Result<()> {
    with_test_guests(reaped).await
}
