// SPDX-License-Identifier: Apache-2.0
//! Cases of records of stopped sandboxes, and of repeated deletes.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;
use wrenn_api::{ErrorCode, SandboxId};
use wrenn_control::Limits;
use wrenn_rpc::fault::Of;
use wrenn_testkit::wait_until;

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// Records of stopped and failed sandboxes are deleted, except for that of a current idempotency key.
pub(crate) async fn old_records_go(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.record_retention = Duration::from_millis(10);
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    let deleted = fixture.create().await?;
    fixture.api.remove(&deleted).await?;
    fixture.agent().now().create_fails.push((ErrorCode::AgentError, Of::OF_TEMPLATE));
    fixture.api.post("/v1/sandboxes", &json!({})).await?.expect_error(502, "agent_error")?;
    let kept = fixture.ask("kept", "{}").await?.expect(201)?.json();
    fixture.api.remove(kept["id"].as_str().unwrap_or_default()).await?;
    fixture.wait_value("SELECT string_agg(status, ' ') FROM sandboxes", "stopped").await?;
    fixture.ask("kept", "{}").await?.expect_error(409, "idempotency_sandbox_deleted")?;
    fixture.stop().await
}

/// A second delete of a stopping sandbox succeeds without a change of its row or a call to the agent.
pub(crate) async fn a_repeated_delete_changes_nothing(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (id, agent) = (fixture.create().await?, fixture.agent());
    agent.destroy_gate.forget_permits(usize::MAX);
    let (api, path) = (fixture.api.clone(), format!("/v1/sandboxes/{id}"));
    let first = tokio::spawn(async move { api.delete(&path).await });
    let asked = async || agent.was_told_to_destroy(&id).then_some(());
    wait_until("the destroy", SOON, asked).await?;
    let uuid = id.parse::<SandboxId>()?.uuid();
    let version = format!("SELECT concat(status, version) FROM sandboxes WHERE id = '{uuid}'");
    let before = fixture.value(&version).await?;
    fixture.api.remove(&id).await?;
    ensure!(fixture.value(&version).await? == before, "it was {before}");
    ensure!(agent.now().destroys.len() == 1, "{:?}", agent.now().destroys);
    agent.destroy_gate.add_permits(1 << 20);
    first.await??.expect(204)?;
    fixture.wait_status(&id, "stopped").await?;
    fixture.stop().await
}
