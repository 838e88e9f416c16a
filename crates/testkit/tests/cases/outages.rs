// SPDX-License-Identifier: Apache-2.0
//! Temporary failures of PostgreSQL, Redis and the host.

mod under_load;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::json;
use wrenn_testkit::{Events, Frozen, Reply, Stack, kinds_once, wait_until};

pub(crate) use self::under_load::stores_restart_under_load;
use super::support::{delete_wholly, nothing_remains, record, wait_exec, wait_status};

/// Sends a GET request that must be answered within 10 s.
async fn get_soon(stack: &Stack, path: &str) -> Result<Reply> {
    let request = stack.api.request(Method::GET, path).timeout(Duration::from_secs(10));
    stack.api.send(request).await.with_context(|| format!("GET {path} within 10 s"))
}

/// Requests fail while the database hangs, and work again without a restart of the control plane.
async fn database_hangs(stack: &Stack, id: &str) -> Result<()> {
    let server = stack.child("server")?;
    let frozen = Frozen::new(stack.child("postgres")?)?;
    // Twice: first with idle pooled connections, then with new ones.
    for _ in 0..2 {
        get_soon(stack, "/v1/sandboxes").await?.expect_error(503, "service_unavailable")?;
        let health = get_soon(stack, "/health").await?.expect(503)?.json();
        anyhow::ensure!(health["status"] == "degraded", "{health}");
    }
    let create = stack.api.request(Method::POST, "/v1/sandboxes").json(&json!({}));
    let reply = stack.api.send(create.timeout(Duration::from_secs(10))).await?;
    reply.expect_error(503, "service_unavailable")?;
    drop(frozen);
    stack.wait_healthy().await?;
    wait_exec(stack, id, 15).await?;
    anyhow::ensure!(stack.child("server")? == server, "the control plane was restarted");
    Ok(())
}

/// PostgreSQL hangs, then is killed. Requests fail meanwhile; afterwards the state is unchanged.
pub(crate) async fn postgres(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let created = record(&stack, &id).await.context("no record")?;
    database_hangs(&stack, &id).await.context("while PostgreSQL hung")?;
    stack.kill_and_wait("postgres").await?;
    wait_exec(&stack, &id, 20).await?;
    let now = record(&stack, &id).await.context("no record")?;
    anyhow::ensure!(now["status"] == "running" && now["started_at"] == created["started_at"], "{now}");
    let other = stack.api.create(&json!({"memory_mb": 256})).await?;
    delete_wholly(&stack, &other).await?;
    delete_wholly(&stack, &id).await
}

/// Redis hangs, then is killed. Sandboxes can be created and deleted, and the events are delivered
/// afterwards.
pub(crate) async fn redis(stack: Arc<Stack>) -> Result<()> {
    let mut events = Events::open(&stack.api, None).await?;
    let first = stack.api.create(&json!({"memory_mb": 256})).await?;
    let (seen, _) = events.until(&first, "sandbox.running").await?;
    let last = seen.last().context("no event")?.id.clone();

    let frozen = Frozen::new(stack.child("redis-server")?)?;
    let begin = Instant::now();
    let during = stack.api.create(&json!({"memory_mb": 256})).await?;
    delete_wholly(&stack, &during).await?;
    anyhow::ensure!(begin.elapsed() < Duration::from_secs(60), "it took {:?} without Redis", begin.elapsed());
    get_soon(&stack, "/v1/events/stream").await?.expect_error(503, "service_unavailable")?;
    get_soon(&stack, "/health").await?.expect(503)?;
    drop(frozen);
    stack.wait_healthy().await?;
    let (arrived, _) = Events::open(&stack.api, Some(&last)).await?.until(&during, "sandbox.stopped").await?;
    let expected = ["sandbox.starting", "sandbox.running", "sandbox.stopping", "sandbox.stopped"];
    anyhow::ensure!(kinds_once(&arrived) == expected, "{arrived:#?}");

    stack.kill_and_wait("redis-server").await?;
    delete_wholly(&stack, &first).await?;
    let (told, _) = Events::open(&stack.api, Some(&last)).await?.until(&first, "sandbox.stopped").await?;
    anyhow::ensure!(told.len() >= 2, "{told:#?}");
    Ok(())
}

/// Checks the responses for a sandbox whose host does not answer.
async fn host_is_away(stack: &Stack, id: &str) -> Result<()> {
    let silent = async || (stack.api.get("/health").await.ok()?.json()["hosts_online"] == 0).then_some(());
    wait_until("no host online", Duration::from_secs(20), silent).await?;
    wait_status(stack, id, &["missing"], 60).await?;
    let create = stack.api.post("/v1/sandboxes", &json!({})).await?;
    create.expect_error(503, "no_hosts_available")?;
    let exec = stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &json!({"cmd": "true"})).await?;
    exec.expect_error(503, "host_unavailable")?;
    Ok(())
}

/// A delete is accepted while the host does not answer.
async fn delete_without_host(stack: &Stack, id: &str) -> Result<()> {
    let delete = stack.api.request(Method::DELETE, &format!("/v1/sandboxes/{id}"));
    stack.api.send(delete.timeout(Duration::from_secs(70))).await?.expect(204)?;
    let now = record(stack, id).await.context("no record")?;
    anyhow::ensure!(now["status"] == "stopping", "{now}");
    Ok(())
}

/// The host does not answer for a while: its sandboxes become `missing`, later `running` again; a sandbox
/// that was deleted meanwhile is removed then.
pub(crate) async fn the_host(stack: Arc<Stack>) -> Result<()> {
    let id = stack.api.create(&json!({"memory_mb": 256})).await?;
    let unwanted = stack.api.create(&json!({"memory_mb": 256})).await?;
    let frozen = Frozen::new(stack.child("agent")?)?;
    let (away, deleted) = tokio::join!(host_is_away(&stack, &id), delete_without_host(&stack, &unwanted));
    away.and(deleted)?;
    drop(frozen);
    wait_status(&stack, &id, &["running"], 20).await?;
    wait_exec(&stack, &id, 60).await?;
    let health = stack.api.get("/health").await?.expect(200)?.json();
    anyhow::ensure!(health["hosts_online"] == 1 && health["drivers"][0]["hosts"] == 1, "{health}");
    wait_status(&stack, &unwanted, &["stopped"], 40).await?;
    nothing_remains(&stack, &unwanted).await?;
    delete_wholly(&stack, &id).await
}
