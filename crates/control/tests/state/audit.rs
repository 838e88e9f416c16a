// SPDX-License-Identifier: Apache-2.0
//! Cases of the audit log: what is recorded, how it is read, and that no page skips a record.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _};
use wrenn_control::{Admin, Limits};
use wrenn_rpc::host::v1::SandboxState;
use wrenn_testkit::{Api, wait_until};

use crate::{
    fixture::{Fixture, SOON, new_id},
    people::User,
    stores::Stores,
};

/// Returns the records that a query gives, newest first.
async fn records(api: &Api, query: &str) -> Result<Vec<Value>> {
    let reply = api.get(&format!("/v1/audit-logs?{query}")).await?.expect(200)?.json();
    reply.as_array().cloned().context("no list")
}

/// Walks through all pages.
async fn walk(api: &Api, from: Option<String>) -> Result<Vec<String>> {
    let (mut found, mut cursor) = (Vec::new(), from);
    loop {
        let page = cursor.iter().map(|cursor| format!("&cursor={cursor}")).collect::<String>();
        let reply =
            api.get(&format!("/v1/audit-logs?limit=2&action=test.insert{page}")).await?.expect(200)?;
        let list = reply.json();
        let ids = list.as_array().context("no list")?.iter().filter_map(|one| one["resource"]["id"].as_str());
        found.extend(ids.map(str::to_owned));
        match reply.headers.get("x-next-cursor") {
            Some(next) => cursor = Some(next.to_str()?.to_owned()),
            None => return Ok(found),
        }
    }
}

/// What was done is there with its actor, resource, outcome, address and request, also when the key is gone; what only reads is not.
pub(crate) async fn every_act_is_on_record(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let other = Admin::new(&stores.database_url(name))?.ensure_api_key(None).await?;
    let reader = fixture.api.with_key(&other);
    let id = fixture.create().await?;
    fixture.api.get(&format!("/v1/sandboxes/{id}")).await?.expect(200)?;
    let nobodys = new_id();
    let request = fixture.api.request(Method::DELETE, &format!("/v1/sandboxes/{nobodys}"));
    let refused = fixture.api.send(request.header("X-Request-ID", "mine-1")).await?;
    refused.expect_error(404, "not_found")?;
    // Its host pauses it by itself.
    fixture.agent().has(&id, SandboxState::SANDBOX_STATE_PAUSED);
    fixture.wait_status(&id, "paused").await?;
    fixture.api.remove(&id).await?;
    fixture
        .sql(&format!(
            "UPDATE api_keys SET revoked_at = now() WHERE secret_sha256 <> sha256('{other}'::bytea)"
        ))
        .await?;

    let of_it = records(&reader, &format!("resource={id}")).await?;
    let acts: Vec<_> = of_it.iter().filter_map(|one| one["action"].as_str()).collect();
    ensure!(acts == ["sandbox.delete", "sandbox.pause", "sandbox.create"], "{acts:?}");
    let (deleted, paused, created) = (&of_it[0], &of_it[1], &of_it[2]);
    for act in [deleted, created] {
        ensure!(act["actor"]["kind"] == "api_key" && act["actor"]["name"] == "wrenn up", "{act}");
        ensure!(act["outcome"] == "succeeded" && act["resource"]["kind"] == "sandbox", "{act}");
        ensure!(act["address"].as_str().is_some_and(|address| address.starts_with("127.")), "{act}");
        ensure!(act["request_id"].is_string(), "{act}");
    }
    ensure!(paused["actor"]["kind"] != "api_key" && paused["address"].is_null(), "{paused}");

    let refused = records(&reader, "outcome=refused").await?;
    let [refused] = refused.as_slice() else { anyhow::bail!("{refused:?}") };
    ensure!(
        refused["resource"]["id"] == nobodys.as_str() && refused["error_code"] == "not_found",
        "{refused}"
    );
    ensure!(refused["request_id"] == "mine-1", "{refused}");
    let key = created["actor"]["id"].as_str().context("no key")?;
    ensure!(records(&reader, &format!("actor={key}")).await?.len() == 3, "of the key");
    ensure!(
        records(&reader, "action=sandbox.create&action=sandbox.pause").await?.len() == 2,
        "of two actions"
    );
    ensure!(records(&reader, "to=2026-01-01T00:00:00Z").await?.is_empty(), "before all");
    ensure!(records(&reader, "resource_kind=team").await?.is_empty(), "of teams");

    let all = records(&reader, "").await?;
    let lines = reader.get("/v1/audit-logs/export").await?.expect(200)?.bytes;
    let lines = String::from_utf8(lines)?;
    let exported: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(exported == all, "{lines}");
    let csv = reader.get("/v1/audit-logs/export?format=csv&outcome=refused").await?.expect(200)?.bytes;
    let csv = String::from_utf8(csv)?;
    ensure!(csv.lines().count() == 2 && csv.contains("not_found") && csv.contains("mine-1"), "{csv}");
    let of_all = reader.get("/v1/admin/audit-logs").await?.expect(200)?.json();
    ensure!(of_all.as_array().is_some_and(|of_all| of_all.len() >= all.len()), "{of_all}");
    fixture.stop().await
}

/// A record whose transaction ends late is at the beginning of the log, not amid what was read already.
pub(crate) async fn pages_skip_no_record_that_comes_late(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let insert = |number: u32| {
        format!(
            "INSERT INTO audit_log (id, at, team_id, actor_kind, action, resource_kind, resource_id, outcome)
             SELECT gen_random_uuid(), now() - {number} * interval '1 minute', id, 'system', 'test.insert', 'test', '{number}',
                 'succeeded' FROM teams WHERE name = 'default'"
        )
    };
    // The oldest of all, of a transaction that takes long.
    let mut late = stores.connect(name).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; {}", insert(100)))).execute(&mut late).await?;
    for number in (1..=5).rev() {
        fixture.sql(&insert(number)).await?;
    }
    let first = fixture.api.get("/v1/audit-logs?limit=2&action=test.insert").await?.expect(200)?;
    let cursor = first.headers.get("x-next-cursor").context("one page")?.to_str()?.to_owned();
    sqlx::raw_sql("COMMIT").execute(&mut late).await?;
    late.close().await?;
    fixture.sql(&insert(0)).await?;
    let rest = walk(&fixture.api, Some(cursor)).await?;
    ensure!(rest == ["3", "4", "5"], "{rest:?}");
    let all = walk(&fixture.api, None).await?;
    let places: BTreeSet<_> = all.iter().cloned().collect();
    ensure!(all.len() == 7 && places.len() == 7, "{all:?}");
    // Both that came later are before what was read.
    let newest: BTreeSet<_> = all[..2].iter().map(String::as_str).collect();
    ensure!(newest == BTreeSet::from(["0", "100"]), "{all:?}");
    let unknown = fixture.api.get("/v1/audit-logs?cursor=au0000000000000000000000000").await?;
    unknown.expect_error(400, "invalid_request")?;
    fixture.stop().await
}

/// Old records go, also when nobody reads the log.
pub(crate) async fn old_audit_records_go(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.audit_keep_days = 3;
    let mut fixture = Fixture::start(stores, name, 1, limits).await?;
    fixture
        .sql(
            "INSERT INTO audit_log (id, at, team_id, actor_kind, action, outcome)
             SELECT gen_random_uuid(), now() - age * interval '1 hour', gen_random_uuid(), 'system', 'test.insert', 'succeeded'
             FROM generate_series(1, 20000, 2) AS age",
        )
        .await?;
    // The first round of a server removes them.
    fixture.serve().await?;
    let left = async || {
        let left =
            fixture.value("SELECT count(*)::text FROM audit_log WHERE action = 'test.insert'").await.ok()?;
        // 1, 3, ... 71 hours.
        (left == "36").then_some(())
    };
    wait_until("old records to be removed", SOON, left).await?;
    fixture.stop().await
}

/// A record has the name that its actor had then, also when the user was renamed and deleted, and the key is gone from
/// the database.
pub(crate) async fn a_record_keeps_the_names_of_then(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (owner, ada) = (User::new(&fixture, "grace", false).await?, User::new(&fixture, "ada", false).await?);
    owner.let_in(&ada, "admin").await?;
    ada.act_for(&owner.team).await?;
    let made = ada.post("/v1/api-keys", &json!({"name": "ci"})).await?.expect(201)?.json();
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let (id, key) = (text(&made["api_key"]["id"])?, text(&made["key"])?);
    let by_key = fixture.api.with_key(&key);
    let sandbox = by_key.create(&json!({"memory_mb": 256})).await?;
    let rename = async |path: &str, name: &str| {
        ada.send(Method::PATCH, path, Some(&json!({"name": name}))).await?.expect(200)
    };
    rename("/v1/me", "Countess").await?;
    let path = format!("/v1/api-keys/{id}");
    rename(&path, "nightly").await?;
    by_key.remove(&sandbox).await?;
    owner.delete(&path).await?.expect(204)?;
    let own = json!({"confirmation": ada.email});
    ada.send(Method::DELETE, "/v1/me", Some(&own)).await?.expect(204)?;
    fixture.sql("DELETE FROM api_keys WHERE name = 'nightly'").await?;
    ensure!(fixture.value("SELECT count(*)::text FROM api_keys WHERE name = 'nightly'").await? == "0");

    let log = owner.get("/v1/audit-logs?limit=200").await?.expect(200)?.json();
    let log = log.as_array().context("no list")?;
    let expected = [
        ("api_key.create", "user", &ada.id, "ada"),
        ("sandbox.create", "api_key", &id, "ci"),
        ("api_key.update", "user", &ada.id, "Countess"),
        ("sandbox.delete", "api_key", &id, "nightly"),
        ("api_key.revoke", "user", &owner.id, "grace"),
    ];
    let of_all = fixture.api.get("/v1/admin/audit-logs?limit=200").await?.expect(200)?.json();
    let of_all = of_all.as_array().context("no list of all")?;
    for (action, kind, id, name) in expected {
        let record =
            log.iter().find(|one| one["action"] == action).with_context(|| format!("no {action}"))?;
        let actor = json!({"kind": kind, "id": id, "name": name});
        ensure!(record["actor"] == actor && record["outcome"] == "succeeded", "{record}");
        ensure!(of_all.contains(record), "the platform's log has no {record}");
    }
    fixture.stop().await
}
