// SPDX-License-Identifier: Apache-2.0
//! Cases of destroys, and of the databases that may request them.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use wrenn_control::Limits;
use wrenn_testkit::wait_until;

use crate::{
    agent::WHY,
    fixture::{Fixture, RUNNING, SOON, UNKNOWN, new_id},
    second,
    stores::Stores,
};

fn impatient() -> Limits {
    let mut limits = Limits::default();
    limits.stray_grace = Duration::from_millis(1);
    limits
}

/// A missing row, as after a restore of the database, does not destroy the microVM at once.
pub(crate) async fn a_deleted_row_destroys_nothing_at_once(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (kept, agent) = (fixture.create().await?, fixture.agent());
    fixture.sql("DELETE FROM sandboxes").await?;
    fixture.rounds(agent, 3).await?;
    ensure!(agent.now().sandboxes.contains_key(&kept), "it was destroyed");
    ensure!(agent.now().destroys.is_empty(), "{:?}", agent.now().destroys);
    fixture.stop().await
}

/// A microVM that never had a row is destroyed after the grace period, with the fleet in the call.
pub(crate) async fn a_stray_is_destroyed_in_time(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, impatient()).await?;
    let (stray, agent) = (new_id(), fixture.agent());
    agent.has(&stray, RUNNING);
    let gone = async || (!agent.now().sandboxes.contains_key(&stray)).then_some(());
    wait_until("the stray to go", SOON, gone).await?;
    let fleet = agent.now().destroys[0].1.clone();
    let (id, now) = (fixture.value("SELECT id::text FROM fleet").await?, epoch(&fixture).await?);
    let is_known = |epoch: u64| (1..=now).contains(&epoch);
    ensure!(fleet.is_some_and(|fleet| fleet.id == id && is_known(fleet.epoch)), "another fleet");
    fixture.stop().await
}

/// Returns the epoch of the database, which each start of a server raises.
async fn epoch(fixture: &Fixture) -> Result<u64> {
    Ok(fixture.value("SELECT epoch::text FROM fleet").await?.parse()?)
}

/// While an agent has quarantined this database, only users delete sandboxes, and the epoch does not change.
pub(crate) async fn a_quarantined_database_destroys_nothing_but_what_users_delete(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, impatient()).await?;
    let (mine, failed, stray) = (fixture.create().await?, fixture.create().await?, new_id());
    second::wait_until_over().await;
    let (agent, before) = (fixture.agent().clone(), epoch(&fixture).await?);
    agent.now().quarantine = "the database is older than one seen before".into();
    fixture.wait_value("SELECT count(*)::text FROM hosts WHERE quarantine LIKE '%older%'", "1").await?;
    fixture.rounds(&agent, 1).await?;
    agent.has(&stray, RUNNING);
    let uuid = failed.parse::<wrenn_api::SandboxId>()?.uuid();
    fixture
        .sql(&format!("UPDATE sandboxes SET status = 'error', started_at = NULL WHERE id = '{uuid}'"))
        .await?;
    fixture.serve().await?;
    fixture.rounds(&agent, 3).await?;
    ensure!(agent.now().destroys.is_empty(), "{:?}", agent.now().destroys);
    ensure!(epoch(&fixture).await? == before, "it caught up by being used");

    fixture.api.remove(&mine).await?;
    fixture.wait_status(&mine, "stopped").await?;
    ensure!(agent.now().destroys == [(mine, None)], "{:?}", agent.now().destroys);

    agent.now().quarantine.clear();
    let gone = async || agent.now().sandboxes.is_empty().then_some(());
    wait_until("the others to go", SOON, gone).await?;
    fixture.serve().await?;
    ensure!(epoch(&fixture).await? == before + 1, "a start does not raise it");
    fixture.stop().await
}

/// A sandbox whose journal the agent cannot read is shown with the cause, and kept until its user deletes it.
pub(crate) async fn what_an_agent_does_not_understand_is_kept(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, impatient()).await?;
    let (mine, stray, agent) = (fixture.create().await?, new_id(), fixture.agent());
    agent.has(&mine, UNKNOWN);
    agent.has(&stray, UNKNOWN);
    let record = fixture.wait_status(&mine, "missing").await?;
    ensure!(record["error"]["message"] == WHY, "{record}");
    fixture.rounds(agent, 3).await?;
    ensure!(agent.now().destroys.is_empty(), "{:?}", agent.now().destroys);
    let again = fixture.record(&mine).await?;
    ensure!(again["last_updated"] == record["last_updated"], "it is told again: {again}");
    // The agent was upgraded.
    agent.has(&mine, RUNNING);
    let record = fixture.wait_status(&mine, "running").await?;
    ensure!(record["error"].is_null(), "{record}");
    agent.has(&mine, UNKNOWN);
    fixture.wait_status(&mine, "missing").await?;
    fixture.api.remove(&mine).await?;
    fixture.wait_status(&mine, "stopped").await?;
    ensure!(!agent.now().sandboxes.contains_key(&mine), "it is still there");
    fixture.stop().await
}
