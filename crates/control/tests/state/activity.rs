// SPDX-License-Identifier: Apache-2.0
//! Cases of requests that use a sandbox while it begins to be paused for being idle. What comes first is decided by a
//! lock on the rows: whoever waits for it first, has it first.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgConnection;
use wrenn_control::Limits;
use wrenn_testkit::{Api, Reply, short_or_long, wait_until};

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// Timeout of the sandboxes, in seconds: nothing is idle for so long in a test.
const TIMEOUT: u32 = 3600;
/// A pause that waits for the lock, and a note of an activity that does.
const PAUSE: &str = "UPDATE sandboxes SET status%";
const NOTE: &str = "UPDATE sandboxes SET %last_active_at = now()%";
/// How PostgreSQL calls a wait for a row.
const ROW: &str = "tuple|transactionid";

/// Time limits that a wait for the lock does not reach.
fn patient() -> Limits {
    let mut limits = Limits::default();
    limits.database = Duration::from_secs(60);
    limits
}

/// Lock on the rows of all sandboxes.
struct Lock(PgConnection);

impl Lock {
    /// Makes all sandboxes idle for longer than their timeout, and locks their rows.
    async fn idle(fixture: &Fixture) -> Result<Self> {
        let connect = || fixture.stores.connect(&fixture.database);
        let (mut change, mut table, mut rows) = (connect().await?, connect().await?, connect().await?);
        let idle = "BEGIN; UPDATE sandboxes SET last_active_at = clock_timestamp() - interval '2 hours'";
        run(&mut change, idle).await?;
        // Whoever sees the change waits for the table, until the rows are locked.
        let locked = run(&mut table, "BEGIN; LOCK TABLE sandboxes IN SHARE ROW EXCLUSIVE MODE");
        let changed = async {
            waits(fixture, "BEGIN; LOCK TABLE%", "relation").await?;
            run(&mut change, "COMMIT").await
        };
        tokio::try_join!(locked, changed)?;
        run(&mut rows, "BEGIN; SELECT id FROM sandboxes FOR UPDATE").await?;
        run(&mut table, "COMMIT").await?;
        Ok(Self(rows))
    }

    async fn release(mut self) -> Result<()> {
        run(&mut self.0, "COMMIT").await
    }
}

async fn run(connection: &mut PgConnection, statements: &'static str) -> Result<()> {
    sqlx::raw_sql(statements).execute(connection).await?;
    Ok(())
}

/// Waits until a statement of this form waits for a lock.
async fn waits(fixture: &Fixture, statement: &str, lock: &str) -> Result<()> {
    let query = format!(
        "SELECT (count(*) > 0)::text FROM pg_stat_activity WHERE datname = current_database()
         AND wait_event_type = 'Lock' AND wait_event ~ '{lock}' AND query LIKE '{statement}'"
    );
    fixture.wait_value(&query, "true").await
}

/// Starts a server with a running sandbox that has a timeout.
async fn start(stores: &Arc<Stores>, name: &str, auto_resume: bool) -> Result<(Fixture, String)> {
    let fixture = Fixture::start(stores, name, 1, patient()).await?;
    let id = fixture.api.create(&json!({"timeout_sec": TIMEOUT, "auto_resume": auto_resume})).await?;
    Ok((fixture, id))
}

/// Sends a request while a pause of the sandbox is about to begin, and lets the pause begin before the request is noted.
async fn later_than_the_pause(fixture: &Fixture, path: &str, body: &str) -> Result<Reply> {
    let lock = Lock::idle(fixture).await?;
    waits(fixture, PAUSE, ROW).await?;
    let request = fixture.send_json(Method::POST, path, body);
    let noted = async {
        waits(fixture, NOTE, ROW).await?;
        lock.release().await
    };
    let (reply, noted) = tokio::join!(request, noted);
    noted.context("the request was not noted")?;
    reply
}

/// Returns the seconds that a sandbox has until it is paused.
fn left(record: &Value) -> Result<i64> {
    let expires: DateTime<Utc> = record["expires_at"].as_str().context("no deadline")?.parse()?;
    Ok((expires - Utc::now()).num_seconds())
}

pub(crate) async fn a_ping_that_is_later_than_the_pause_is_refused(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let (fixture, id) = start(stores, name, true).await?;
    let reply = later_than_the_pause(&fixture, &format!("/v1/sandboxes/{id}/ping"), "{}").await?;
    let told = reply.expect_error(409, "invalid_state")?.json();
    ensure!(told.to_string().contains("resume it"), "{told}");
    fixture.wait_status(&id, "paused").await?;
    fixture.stop().await
}

pub(crate) async fn a_command_that_is_later_than_the_pause_is_not_started(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let (fixture, id) = start(stores, name, false).await?;
    let path = format!("/v1/sandboxes/{id}/exec");
    let reply = later_than_the_pause(&fixture, &path, r#"{"cmd": "true"}"#).await?;
    reply.expect_error(409, "invalid_state")?;
    fixture.wait_status(&id, "paused").await?;
    ensure!(fixture.agent().calls_of(&id) == ["pause"], "{:?}", fixture.agent().calls_of(&id));
    fixture.stop().await
}

pub(crate) async fn a_command_that_is_later_than_the_pause_resumes_the_sandbox(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let (fixture, id) = start(stores, name, true).await?;
    let path = format!("/v1/sandboxes/{id}/exec");
    let reply = later_than_the_pause(&fixture, &path, r#"{"cmd": "true"}"#).await?.expect(200)?.json();
    ensure!(reply["stdout"] == "true", "{reply}");
    let calls = fixture.agent().calls_of(&id);
    ensure!(calls == ["pause", "resume", "exec"], "{calls:?}");
    let record = fixture.record(&id).await?;
    ensure!(record["status"] == "running" && left(&record)? > 3000, "{record}");
    fixture.stop().await
}

/// A resume that finds the sandbox running, and is then overtaken by its pause.
pub(crate) async fn a_resume_that_is_later_than_the_pause_resumes_the_sandbox(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let (fixture, id) = start(stores, name, false).await?;
    let path = format!("/v1/sandboxes/{id}/resume");
    for (body, seconds) in [("{}", TIMEOUT), (r#"{"timeout_sec": 7200}"#, 7200)] {
        let resumed = later_than_the_pause(&fixture, &path, body).await?.expect(200)?.json();
        ensure!(resumed["status"] == "running" && resumed["timeout_sec"] == seconds, "{body}: {resumed}");
        ensure!(left(&resumed)? > i64::from(seconds) - 600, "{body}: {resumed}");
        let record = fixture.record(&id).await?;
        ensure!(record["status"] == "running" && left(&record)? > 3000, "{body}: {record}");
    }
    ensure!(fixture.agent().calls_of(&id) == ["pause", "resume", "pause", "resume"], "another order");
    fixture.stop().await
}

/// Two servers ping and pause several sandboxes at once: one that was pinged runs, with a new deadline.
pub(crate) async fn what_was_pinged_is_not_paused(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, patient()).await?;
    let other = fixture.serve().await?;
    let body = json!({"timeout_sec": TIMEOUT});
    // Fewer than half of a server's connections to its database, so that a pause and a ping of each have one.
    let ids = try_join_all((0..5).map(|_| fixture.api.create(&body))).await?;
    let ping_all = async |ids: &[String]| {
        let pings = ids.iter().flat_map(|id| [(&fixture.api, id), (&other, id)]);
        try_join_all(pings.map(|(api, id)| ping(api, id))).await
    };
    let (mut pinged, mut paused) = (0, 0);
    for round in 0..short_or_long(6, 60) {
        let lock = Lock::idle(&fixture).await?;
        // The pings of none, of all or of half of the sandboxes come before the pauses.
        let (early, late) = ids.split_at([0, ids.len(), ids.len() / 2][round % 3]);
        let later = async {
            waits(&fixture, PAUSE, ROW).await?;
            let released = async {
                waits(&fixture, NOTE, ROW).await?;
                lock.release().await
            };
            Ok(tokio::try_join!(ping_all(late), released)?.0)
        };
        let (early, late) = tokio::try_join!(ping_all(early), later)?;
        for (id, pings) in ids.iter().zip([early, late].concat().chunks(2)) {
            if pings.contains(&true) {
                pinged += 1;
            } else {
                fixture.wait_status(id, "paused").await?;
                paused += 1;
            }
            let path = format!("/v1/sandboxes/{id}/resume");
            fixture.api.post(&path, &json!({})).await?.expect(200)?;
        }
    }
    ensure!(pinged > 0 && paused > 0, "{pinged} were pinged, and {paused} were paused");
    fixture.stop().await
}

/// Pings a sandbox; returns whether that succeeded. It then runs, with a new deadline.
async fn ping(api: &Api, id: &str) -> Result<bool> {
    let path = format!("/v1/sandboxes/{id}");
    let reply = api.send(api.request(Method::POST, &format!("{path}/ping"))).await?;
    if reply.status != 204 {
        reply.expect_error(409, "invalid_state")?;
        return Ok(false);
    }
    for _ in 0..3 {
        let record = api.get(&path).await?.expect(200)?.json();
        ensure!(record["status"] == "running" && left(&record)? > 3000, "after a ping: {record}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(true)
}

/// A sandbox is still recorded as missing when its host answers again: it is used, though its activity cannot be noted.
pub(crate) async fn a_missing_sandbox_is_used_once_its_host_answers(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let (fixture, id) = start(stores, name, false).await?;
    let agent = fixture.agent();
    // No round of the reconciler ends, as when it has just begun.
    agent.list_gate.forget_permits(usize::MAX);
    let asked = agent.now().lists.0;
    let next = async || (agent.now().lists.0 > asked).then_some(());
    wait_until("a list that hangs", SOON, next).await?;
    fixture.sql("UPDATE sandboxes SET status = 'missing'").await?;
    fixture.api.exec(&id, &["true"]).await?;
    let (path, body) = (format!("/v1/sandboxes/{id}/ping"), json!({}));
    let told = fixture.api.post(&path, &body).await?.expect_error(409, "invalid_state")?.json();
    ensure!(told.to_string().contains("try again"), "{told}");
    agent.list_gate.add_permits(crate::agent::OPEN);
    fixture.wait_status(&id, "running").await?;
    fixture.api.exec(&id, &["true"]).await?;
    fixture.stop().await
}
