// SPDX-License-Identifier: Apache-2.0
//! Cases of processes in sandboxes that were killed for want of memory.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use wrenn_control::Limits;
use wrenn_testkit::Events;

use crate::{agent::Agent, fixture::Fixture, stores::Stores};

const KIND: &str = "sandbox.out_of_memory";

/// Lets the agent say that a process of a sandbox was killed.
pub(crate) fn kill(agent: &Agent, id: &str, at_unix_ms: i64, pid: u32, command: &'static str) -> Result<()> {
    let mut now = agent.now();
    let sandbox = now.sandboxes.get_mut(id).context("no sandbox")?;
    sandbox.killed = Some((at_unix_ms, pid, command));
    Ok(())
}

/// Each is in the record of the sandbox and told in one event, whatever the number of servers and of rounds; what happened before the
/// sandbox was there is not.
pub(crate) async fn each_is_told_once(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    fixture.serve().await?;
    let mut events = Events::open_at(&fixture.api, &format!("/v1/events/stream?type={KIND}"), None).await?;
    let (id, of_template) = (fixture.create().await?, fixture.create().await?);
    let begin = Utc::now().timestamp_millis();
    kill(fixture.agent(), &of_template, begin - 3_600_000, 9, "older")?;
    for (later, pid, command) in [(0, 412, "python3"), (1, 0, ""), (2, 7, "no\u{1b}de")] {
        kill(fixture.agent(), &id, begin + later, pid, command)?;
        let (own, _) = events.until(&id, KIND).await?;
        ensure!(own.len() == 1, "{own:#?}");
        let killed = &own[0].data["sandbox"]["last_out_of_memory"];
        ensure!(killed["pid"].as_u64() == (pid > 0).then_some(u64::from(pid)), "{killed}");
        let name = killed["command"].as_str().unwrap_or_default();
        ensure!(name == command.replace('\u{1b}', ""), "{killed}");
        ensure!(own[0].data["at"] == killed["at"] && own[0].data["type"] == KIND, "{}", own[0].data);
        fixture.rounds(fixture.agent(), 3).await?;
    }
    let record = fixture.record(&id).await?;
    ensure!(record["last_out_of_memory"]["pid"] == 7 && record["status"] == "running", "{record}");
    ensure!(fixture.record(&of_template).await?["last_out_of_memory"].is_null(), "it is another sandbox's");
    // One that was told twice would come before this one.
    kill(fixture.agent(), &id, begin + 3, 8, "last")?;
    let (own, _) = events.until(&id, KIND).await?;
    ensure!(own.len() == 1 && own[0].data["sandbox"]["last_out_of_memory"]["pid"] == 8, "{own:#?}");
    fixture.stop().await
}
