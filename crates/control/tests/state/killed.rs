// SPDX-License-Identifier: Apache-2.0
//! Cases of processes in sandboxes, and of whole sandboxes, that were killed for want of memory.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use wrenn_api::ErrorCode;
use wrenn_control::Limits;
use wrenn_rpc::host::v1::SandboxState;
use wrenn_testkit::{Events, wait_until};

use crate::{
    agent::Agent,
    fixture::{Fixture, SOON},
    people::User,
    stores::Stores,
};

const KIND: &str = "sandbox.out_of_memory";
/// Why a host says that a sandbox has ended.
const LIMIT: &str = "the microVM was killed because its memory limit of 704 MiB on the host was reached";
/// Beginning of the line of Prometheus with the number of such sandboxes.
const COUNTED: &str = "wrenn_out_of_memory_total{of=\"machine\"} ";

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
    of_the_team(&fixture, 4).await?;
    fixture.stop().await
}

/// Lets the agent say that a sandbox has failed for want of memory.
fn end(agent: &Agent, id: &str) -> Result<()> {
    let mut now = agent.now();
    let sandbox = now.sandboxes.get_mut(id).context("no sandbox")?;
    sandbox.state = SandboxState::SANDBOX_STATE_FAILED;
    sandbox.failure = Some((ErrorCode::OutOfMemory, LIMIT.to_owned()));
    Ok(())
}

/// Returns the number of whole sandboxes that were killed, as Prometheus gets it.
async fn counted(fixture: &Fixture) -> Result<u64> {
    let exported = String::from_utf8(fixture.api.get("/metrics").await?.expect(200)?.bytes)?;
    let count = exported.lines().find_map(|line| line.strip_prefix(COUNTED));
    Ok(count.map(str::parse::<u64>).transpose()?.unwrap_or_default())
}

/// So many are counted for the team, and none for another one.
async fn of_the_team(fixture: &Fixture, number: u64) -> Result<()> {
    let other = User::new(fixture, "other", false).await?;
    let other = other.get("/v1/stats").await?.expect(200)?.json();
    let own = fixture.api.get("/v1/stats").await?.expect(200)?.json();
    ensure!(own["out_of_memory"] == number && other["out_of_memory"] == 0, "{own} {other}");
    Ok(())
}

/// A sandbox that has ended as a whole: its record, its event and the metrics say why.
pub(crate) async fn a_whole_sandbox_is_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let mut events = Events::open(&fixture.api, None).await?;
    let id = fixture.create().await?;
    end(fixture.agent(), &id)?;
    let (own, _) = events.until(&id, "sandbox.error").await?;
    let told = &own.last().context("no event")?.data;
    ensure!(told["cause"] == "out_of_memory" && told["actor"]["kind"] == "host", "{told}");
    for sandbox in [&told["sandbox"], &fixture.record(&id).await?] {
        let error = &sandbox["error"];
        ensure!(error["code"] == "out_of_memory" && error["message"] == LIMIT, "{sandbox}");
    }
    // It is counted after it was recorded, with those of the other cases.
    let is_counted = async || counted(&fixture).await.ok().filter(|count| *count > 0);
    wait_until("it to be counted", SOON, is_counted).await?;
    of_the_team(&fixture, 1).await?;
    fixture.stop().await
}
