// SPDX-License-Identifier: Apache-2.0
//! Cases of hosts that hang, lie or are full, and of their effect on other hosts.

use std::sync::Arc;

use anyhow::{Result, ensure};
use futures::future::join_all;
use serde_json::json;
use wrenn_api::{ErrorCode, HostId, SandboxId};
use wrenn_control::Limits;
use wrenn_rpc::fault::Of;
use wrenn_testkit::wait_until;

use crate::{
    fixture::{Fixture, RUNNING, SOON, new_id},
    second,
    stores::Stores,
};

/// One host does not respond to a list: another has its rounds while a single call to the first is in
/// progress.
pub(crate) async fn a_host_that_hangs_delays_no_other(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 2, Limits::default()).await?;
    second::wait_until_over().await;
    let [hangs, other] = fixture.agents.as_slice() else { anyhow::bail!("two hosts are expected") };
    hangs.list_gate.forget_permits(usize::MAX);
    let asked = hangs.now().lists.0;
    let next = async || (hangs.now().lists.0 > asked).then_some(());
    wait_until("a list that hangs", SOON, next).await?;
    let (call, until) = (hangs.now().lists.0, other.now().lists.0 + 3);
    let went_on = async || {
        let same_call = hangs.now().lists.0 == call;
        (other.now().lists.0 >= until || !same_call).then_some(same_call)
    };
    ensure!(wait_until("rounds of the other", SOON, went_on).await?, "it waited for the host that hangs");
    fixture.stop().await
}

/// A host whose destroys hang: its rounds continue, and the number of concurrent calls is limited.
pub(crate) async fn removals_delay_no_round(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.stray_grace = std::time::Duration::from_millis(1);
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    let agent = fixture.agent();
    agent.destroy_gate.forget_permits(usize::MAX);
    for _ in 0..20 {
        agent.has(&new_id(), RUNNING);
    }
    let asked = async || (!agent.now().destroys.is_empty()).then_some(());
    wait_until("a destroy", SOON, asked).await?;
    fixture.rounds(agent, 3).await?;
    let destroys = agent.now().destroys.clone();
    ensure!(destroys.len() == 8, "{} destroys at a time", destroys.len());
    agent.destroy_gate.add_permits(1 << 20);
    let gone = async || agent.now().sandboxes.is_empty().then_some(());
    wait_until("all strays to go", SOON, gone).await?;
    fixture.stop().await
}

/// A row that cannot be changed does not block the following ones.
pub(crate) async fn one_row_that_fails_delays_no_other(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (stuck, other) = (fixture.create().await?, fixture.create().await?);
    let uuid = stuck.parse::<SandboxId>()?.uuid();
    fixture
        .sql(&format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON sandboxes FOR EACH ROW WHEN (OLD.id = '{uuid}')
                 EXECUTE FUNCTION refuse()"
        ))
        .await?;
    fixture.agent().now().sandboxes.clear();
    fixture.wait_status(&other, "error").await?;
    ensure!(fixture.record(&stuck).await?["status"] == "running", "it was changed");
    fixture.stop().await
}

/// Every call names its target host; if another host is at the address, nothing is created.
pub(crate) async fn another_host_at_the_address_is_unreachable(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let agent = fixture.agent();
    let id = fixture.create().await?;
    fixture.api.remove(&id).await?;
    ensure!(agent.now().meant.iter().eq([&agent.id.to_string()]), "{:?}", agent.now().meant);
    agent.now().host = HostId::new();
    fixture.wait_value("SELECT status FROM hosts", "unreachable").await?;
    fixture.api.post("/v1/sandboxes", &json!({})).await?.expect_error(503, "no_hosts_available")?;
    agent.now().host = agent.id;
    fixture.wait_value("SELECT status FROM hosts", "online").await?;
    fixture.stop().await
}

/// Query for the reserved resources of the host.
const RESERVED: &str =
    "SELECT concat_ws(' ', reserved_sandboxes, reserved_vcpus, reserved_memory_mb) FROM hosts";

/// Concurrent creates fill a host but do not exceed its capacity; resources are released exactly once.
pub(crate) async fn no_host_is_filled_beyond_its_capacity(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    fixture.agent().now().max_sandboxes = 5;
    fixture.wait_value("SELECT max_sandboxes::text FROM hosts", "5").await?;
    let body = json!({"memory_mb": 256, "vcpus": 2});
    let replies = join_all((0..20).map(|_| fixture.api.post("/v1/sandboxes", &body))).await;
    let mut made = Vec::new();
    for reply in replies {
        let reply = reply?;
        if reply.status == 201 {
            made.push(reply.json()["id"].as_str().unwrap_or_default().to_owned());
        } else {
            reply.expect_error(503, "no_hosts_available")?;
        }
    }
    ensure!(made.len() == 5, "{} were made", made.len());
    fixture.wait_value(RESERVED, "5 10 1280").await?;
    fixture.api.remove(&made[0]).await?;
    fixture.wait_value(RESERVED, "4 8 1024").await?;
    // A failed sandbox has no reservation, also when it is deleted.
    fixture.agent().now().sandboxes.remove(&made[1]);
    fixture.wait_status(&made[1], "error").await?;
    fixture.wait_value(RESERVED, "3 6 768").await?;
    fixture.api.remove(&made[1]).await?;
    fixture.wait_status(&made[1], "stopped").await?;
    fixture.wait_value(RESERVED, "3 6 768").await?;
    fixture.stop().await
}

/// While one host's row is locked, creates go to another host.
pub(crate) async fn a_locked_host_stops_no_create_elsewhere(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 2, Limits::default()).await?;
    let [small, large] = fixture.agents.as_slice() else { anyhow::bail!("two hosts are expected") };
    small.now().memory_mb = 32_768;
    fixture.wait_value("SELECT count(*)::text FROM hosts WHERE memory_mb = 32768", "1").await?;
    let mut connection = stores.connect(name).await?;
    let mut lock = sqlx::Connection::begin(&mut connection).await?;
    let locked = format!("SELECT id FROM hosts WHERE id = '{}' FOR UPDATE", small.id.uuid());
    sqlx::query(sqlx::AssertSqlSafe(locked)).execute(&mut *lock).await?;
    let created = tokio::time::timeout(SOON, fixture.create()).await;
    lock.rollback().await?;
    let id = created.map_err(|_| anyhow::anyhow!("the create waited for a host that it does not need"))??;
    ensure!(large.now().sandboxes.contains_key(&id), "it is on the other host");
    fixture.stop().await
}

/// A template that fails on every host ejects no host; a host that fails is ejected.
pub(crate) async fn a_broken_template_ejects_no_host(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let fail = |of| fixture.agent().now().create_fails.extend([(ErrorCode::AgentError, of); 3]);
    fail(Of::OF_TEMPLATE);
    for _ in 0..3 {
        fixture.api.post("/v1/sandboxes", &json!({})).await?.expect_error(502, "agent_error")?;
    }
    fixture.create().await?;
    fail(Of::OF_HOST);
    for _ in 0..3 {
        fixture.api.post("/v1/sandboxes", &json!({})).await?.expect_error(502, "agent_error")?;
    }
    fixture.api.post("/v1/sandboxes", &json!({})).await?.expect_error(503, "no_hosts_available")?;
    fixture.stop().await
}
