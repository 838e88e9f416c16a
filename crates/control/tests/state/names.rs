// SPDX-License-Identifier: Apache-2.0
//! Cases of names and labels: who has a name, what refers to a sandbox, and filters of lists and events.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_control::Limits;
use wrenn_testkit::Events;

use crate::{
    fixture::{Fixture, SOON, new_id},
    stores::Stores,
};

fn id_of(sandbox: &Value) -> Result<String> {
    Ok(sandbox["id"].as_str().with_context(|| format!("no id: {sandbox}"))?.to_owned())
}

async fn create(fixture: &Fixture, body: &Value) -> Result<String> {
    id_of(&fixture.api.post("/v1/sandboxes", body).await?.expect(201)?.json())
}

async fn update(fixture: &Fixture, sandbox: &str, body: &Value) -> Result<wrenn_testkit::Reply> {
    fixture.send_json(Method::PATCH, &format!("/v1/sandboxes/{sandbox}"), &body.to_string()).await
}

/// Ids of a list with this query.
async fn listed(fixture: &Fixture, query: &str) -> Result<Vec<String>> {
    let list = fixture.api.get(&format!("/v1/sandboxes?{query}")).await?.expect(200)?.json();
    list.as_array().context("no list")?.iter().map(id_of).collect()
}

/// A name is taken until its sandbox is deleted, also by a change; other teams have names of their own.
pub(crate) async fn a_name_is_of_one_sandbox(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let first = create(&fixture, &json!({"name": "web"})).await?;
    let record = fixture.record(&first).await?;
    ensure!(record["name"] == "web" && record["labels"] == json!({}), "{record}");
    let refused = fixture.api.post("/v1/sandboxes", &json!({"name": "web"})).await?;
    refused.expect_error(409, "sandbox_name_taken")?;
    let second = fixture.create().await?;
    ensure!(fixture.record(&second).await?["name"].is_null());
    update(&fixture, &second, &json!({"name": "web"})).await?.expect_error(409, "sandbox_name_taken")?;
    let before = fixture.row(&second).await?;
    for wrong in ["Web", "-a", "a-", "a.b", "a b", &"x".repeat(64), &new_id()] {
        let body = json!({"name": wrong});
        fixture.api.post("/v1/sandboxes", &body).await?.expect_error(400, "invalid_request")?;
        update(&fixture, &second, &body).await?.expect_error(400, "invalid_request")?;
    }
    ensure!(fixture.row(&second).await? == before, "a refused change changed {before}");
    // Its own name is no conflict, and null leaves it.
    update(&fixture, &first, &json!({"name": "web"})).await?.expect(200)?;
    let kept = update(&fixture, &first, &json!({"name": null})).await?.expect(200)?.json();
    ensure!(kept["name"] == "web", "{kept}");
    // Once it is taken away, another one can have it.
    let nameless = update(&fixture, &first, &json!({"name": ""})).await?.expect(200)?.json();
    ensure!(nameless["name"].is_null(), "{nameless}");
    let renamed = update(&fixture, &second, &json!({"name": "web"})).await?.expect(200)?.json();
    ensure!(renamed["name"] == "web" && renamed["id"] == *second, "{renamed}");
    // While its host does not remove it, its name is free all the same.
    let agent = fixture.agent();
    agent.destroy_gate.forget_permits(usize::MAX);
    let (api, path) = (fixture.api.clone(), format!("/v1/sandboxes/{second}"));
    let removal = tokio::spawn(async move { api.delete(&path).await });
    fixture.wait_status(&second, "stopping").await?;
    let third = create(&fixture, &json!({"name": "web"})).await?;
    agent.destroy_gate.add_permits(1 << 20);
    removal.await??.expect(204)?;
    fixture.wait_status(&second, "stopped").await?;
    ensure!(fixture.record(&third).await?["name"] == "web");
    // A create that was refused for its name leaves nothing, and frees its key.
    fixture.ask("key", r#"{"name": "web"}"#).await?.expect_error(409, "sandbox_name_taken")?;
    ensure!(listed(&fixture, "").await? == [third.clone(), first.clone()]);
    fixture.api.remove(&third).await?;
    let made = fixture.ask("key", r#"{"name": "web"}"#).await?.expect(201)?.json();
    let again = fixture.ask("key", r#"{"labels": {}, "name": "web"}"#).await?.expect(201)?.json();
    ensure!(made["id"] == again["id"], "{made}, {again}");
    fixture.ask("key", "{}").await?.expect_error(409, "idempotency_request_mismatch")?;
    fixture.stop().await
}

pub(crate) async fn of_many_creates_at_once_one_gets_the_name(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 2, Limits::default()).await?;
    let other = fixture.serve().await?;
    let body = json!({"name": "web"});
    let creates = (0..16).map(|number| {
        let api = if number % 2 == 0 { &fixture.api } else { &other };
        api.post("/v1/sandboxes", &body)
    });
    let mut made = 0;
    for reply in join_all(creates).await {
        let reply = reply?;
        if reply.status == 201 {
            made += 1;
        } else {
            reply.expect_error(409, "sandbox_name_taken")?;
        }
    }
    ensure!(made == 1, "{made} were made");
    ensure!(fixture.value("SELECT count(*)::text FROM sandboxes").await? == "1", "records are left");
    // Nothing stays reserved for those that were refused.
    fixture.wait_value("SELECT sum(reserved_sandboxes)::text FROM hosts", "1").await?;
    fixture.stop().await
}

/// Every operation takes a name or the beginning of an id; several candidates are listed.
pub(crate) async fn sandboxes_are_found_by_name_and_beginning(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let web = create(&fixture, &json!({"name": "web"})).await?;
    let plain = fixture.create().await?;
    let get = async |reference: &str| fixture.api.get(&format!("/v1/sandboxes/{reference}")).await;
    for (reference, id) in [("web", &web), (&web[..26], &web), (&plain[..26], &plain), (&plain, &plain)] {
        let got = get(reference).await?.expect(200)?.json();
        ensure!(got["id"] == **id, "{reference}: {got}");
    }
    // Both were created within the same seconds.
    let told = get(&web[..6]).await?.expect_error(409, "ambiguous_id")?.json();
    let message = told["error"]["message"].as_str().unwrap_or_default();
    let all = [&web, &plain, "\"web\"", "running"];
    ensure!(all.iter().all(|part| message.contains(*part)), "{message}");
    for _ in 0..10 {
        fixture.create().await?;
    }
    let told = get(&web[..6]).await?.expect_error(409, "ambiguous_id")?.json();
    let message = told["error"]["message"].as_str().unwrap_or_default();
    ensure!(message.matches("(running)").count() == 8 && message.contains("and others"), "{message}");
    for missing in ["nobody", "sb", "sbzzzz", &web[..5], "1"] {
        get(missing).await?.expect_error(404, "not_found").with_context(|| missing.to_owned())?;
    }
    for wrong in ["Web", "a.b", "-a", &format!("{web}0").to_uppercase()] {
        get(wrong).await?.expect_error(400, "invalid_request").with_context(|| wrong.to_owned())?;
    }
    // A name goes before the beginnings of ids.
    let tricky = web[..6].to_owned();
    update(&fixture, &plain, &json!({"name": tricky})).await?.expect(200)?;
    ensure!(get(&tricky).await?.expect(200)?.json()["id"] == *plain);
    // Not only to look.
    fixture.pause("web").await?;
    fixture.api.post("/v1/sandboxes/web/resume", &json!({})).await?.expect(200)?;
    fixture.api.exec("web", &["true"]).await?;
    update(&fixture, "web", &json!({"timeout_sec": 600})).await?.expect(200)?;
    fixture.api.delete("/v1/sandboxes/web").await?.expect(204)?;
    fixture.wait_status(&web, "stopped").await?;
    get("web").await?.expect_error(404, "not_found")?;
    get(&web[..26]).await?.expect_error(404, "not_found")?;
    fixture.stop().await
}

pub(crate) async fn labels_are_added_changed_and_removed(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let id = create(&fixture, &json!({"labels": {"a": "1", "b": ""}})).await?;
    let changed =
        update(&fixture, &id, &json!({"labels": {"a": "2", "b": null, "c": "x, y", "none": null}})).await?;
    let changed = changed.expect(200)?.json();
    ensure!(changed["labels"] == json!({"a": "2", "c": "x, y"}), "{changed}");
    let same = update(&fixture, &id, &json!({"labels": {}, "auto_resume": true})).await?.expect(200)?.json();
    ensure!(same["labels"] == changed["labels"] && same["auto_resume"] == true, "{same}");
    let before = fixture.row(&id).await?;
    let many = |count: u32| {
        (0..count).map(|number| (format!("n{number}"), json!(""))).collect::<serde_json::Map<_, _>>()
    };
    for wrong in [
        json!({"": "x"}),
        json!({"a b": "x"}),
        json!({"a=b": "x"}),
        json!({"x".repeat(64): "x"}),
        json!({"a": "x".repeat(257)}),
        json!({"a": "x\ny"}),
        json!({"a": "\u{0}"}),
        json!({"a": 1}),
        json!(many(33)),
    ] {
        let body = json!({ "labels": wrong });
        update(&fixture, &id, &body)
            .await?
            .expect_error(400, "invalid_request")
            .with_context(|| body.to_string())?;
        fixture.api.post("/v1/sandboxes", &body).await?.expect_error(400, "invalid_request")?;
    }
    // Two labels, and 31 more.
    update(&fixture, &id, &json!({ "labels": many(31) })).await?.expect_error(400, "invalid_request")?;
    ensure!(fixture.row(&id).await? == before, "a refused change changed {before}");
    let most = update(&fixture, &id, &json!({ "labels": many(30) })).await?.expect(200)?.json();
    ensure!(most["labels"].as_object().is_some_and(|labels| labels.len() == 32), "{most}");
    // The event of the next change has them.
    let mut events = Events::open(&fixture.api, None).await?;
    fixture.pause(&id).await?;
    let (own, _) = events.until(&id, "sandbox.paused").await?;
    let labels = own.last().map(|event| event.data["sandbox"]["labels"]["c"].clone());
    ensure!(labels == Some(json!("x, y")), "{own:?}");
    fixture.stop().await
}

pub(crate) async fn lists_are_filtered(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let web = create(&fixture, &json!({"name": "web", "labels": {"branch": "main", "ci": ""}})).await?;
    let db = create(&fixture, &json!({"labels": {"branch": "main"}})).await?;
    let old = create(&fixture, &json!({"name": "old", "labels": {"branch": "old", "ci": "a=b"}})).await?;
    let gone = create(&fixture, &json!({"name": "gone", "labels": {"branch": "main"}})).await?;
    fixture.pause(&db).await?;
    fixture.api.remove(&gone).await?;
    let (web, db, old, gone) = (web.as_str(), db.as_str(), old.as_str(), gone.as_str());
    for (query, expected) in [
        ("", vec![old, db, web]),
        ("status=running", vec![old, web]),
        ("status=running&status=paused", vec![old, db, web]),
        ("status=stopped", vec![gone]),
        ("status=stopped&status=paused", vec![gone, db]),
        ("status=error", vec![]),
        ("label=branch=main", vec![db, web]),
        ("label=branch=main&label=ci", vec![web]),
        ("label=ci", vec![old, web]),
        ("label=ci=", vec![web]),
        ("label=ci=a=b", vec![old]),
        ("label=ci=&label=ci=a=b", vec![]),
        ("label=branch=main&status=stopped&status=running", vec![gone, web]),
        ("name=web", vec![web]),
        ("name=gone", vec![]),
        ("name=gone&status=stopped", vec![gone]),
        ("template=minimal&name=old", vec![old]),
        ("template=other", vec![]),
    ] {
        let found = listed(&fixture, query).await?;
        ensure!(found == expected, "{query}: {found:?} instead of {expected:?}");
    }
    for wrong in
        ["label=", "label==x", "name=Web", "name=a&name=b", "template=..", "status=flying", "labels=a"]
    {
        let reply = fixture.api.get(&format!("/v1/sandboxes?{wrong}")).await?;
        reply.expect_error(400, "invalid_request").with_context(|| wrong.to_owned())?;
    }
    fixture.stop().await
}

/// Pages of a filtered list have each sandbox once that was there all the time.
pub(crate) async fn pages_skip_nothing_while_sandboxes_come_and_go(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (mut kept, mut goes) = (Vec::new(), Vec::new());
    for number in 0..12 {
        let label = if number % 3 == 0 { "other" } else { "main" };
        let id = create(&fixture, &json!({"memory_mb": 128, "labels": {"branch": label}})).await?;
        match number % 4 {
            1 => goes.push(id),
            _ if label == "main" => kept.push(id),
            _ => {}
        }
    }
    kept.reverse();
    let (mut seen, mut query) = (Vec::new(), "limit=2&label=branch=main".to_owned());
    loop {
        let reply = fixture.api.request(Method::GET, &format!("/v1/sandboxes?{query}")).send().await?;
        ensure!(reply.status() == 200, "{query}: {}", reply.status());
        let next =
            reply.headers().get("x-next-cursor").and_then(|next| next.to_str().ok()).map(str::to_owned);
        let page: Value = reply.json().await?;
        let page: Vec<_> = page.as_array().context("no list")?.iter().map(id_of).collect::<Result<_>>()?;
        ensure!(page.len() <= 2, "{page:?}");
        seen.extend(page);
        // What comes is newer than the cursor; what goes may be what the cursor names.
        create(&fixture, &json!({"memory_mb": 128, "labels": {"branch": "main"}})).await?;
        if let Some(gone) = goes.pop() {
            fixture.api.remove(&gone).await?;
        }
        let Some(next) = next else { break };
        query = format!("limit=2&label=branch=main&cursor={next}");
    }
    let different: BTreeSet<_> = seen.iter().collect();
    ensure!(different.len() == seen.len(), "one came twice: {seen:?}");
    let stable: Vec<_> = seen.iter().filter(|id| kept.contains(id)).cloned().collect();
    ensure!(stable == kept, "{stable:?} instead of {kept:?}");
    fixture.stop().await
}

pub(crate) async fn events_are_filtered(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let web = create(&fixture, &json!({"name": "web"})).await?;
    let other = fixture.create().await?;
    for id in [&web, &other] {
        fixture.pause(id).await?;
    }
    fixture.api.remove(&other).await?;
    let mut all = Events::open(&fixture.api, Some("0")).await?;
    all.until(&other, "sandbox.stopped").await?;
    let since = "since=2026-01-31T09:30:00Z";
    for (query, count, is) in [
        (
            format!("{since}&sandbox=web"),
            4,
            vec![(&web, "starting"), (&web, "running"), (&web, "pausing"), (&web, "paused")],
        ),
        (format!("{since}&type=sandbox.running"), 2, vec![(&web, "running"), (&other, "running")]),
        (
            format!("{since}&sandbox={other}&type=sandbox.stopped&type=sandbox.starting"),
            2,
            vec![(&other, "starting"), (&other, "stopped")],
        ),
    ] {
        let mut events = Events::open_at(&fixture.api, &format!("/v1/events/stream?{query}"), None).await?;
        let mut got = Vec::new();
        for _ in 0..count {
            let event = events.next(SOON).await.with_context(|| format!("{query}: {got:?}"))?;
            let id = event.data["sandbox"]["id"].as_str().unwrap_or_default().to_owned();
            got.push((id, event.kind.trim_start_matches("sandbox.").to_owned()));
        }
        let expected: Vec<_> = is.iter().map(|(id, kind)| ((*id).clone(), (*kind).to_owned())).collect();
        ensure!(got == expected, "{query}: {got:?}");
    }
    for (query, status, code) in [
        ("sandbox=nobody", 404, "not_found"),
        ("sandbox=Web", 400, "invalid_request"),
        ("type=running", 400, "invalid_request"),
        ("since=yesterday", 400, "invalid_request"),
        ("until=2026-01-31T09:30:00Z", 400, "invalid_request"),
    ] {
        let reply = fixture.api.get(&format!("/v1/events/stream?{query}")).await?;
        reply.expect_error(status, code).with_context(|| query.to_owned())?;
    }
    fixture.stop().await
}

pub(crate) async fn what_is_idle_is_deleted_if_so_wished(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let body = json!({"timeout_sec": 3600, "on_timeout": "delete"});
    let deleted = create(&fixture, &body).await?;
    let paused = create(&fixture, &json!({"timeout_sec": 3600})).await?;
    let changed = create(&fixture, &body).await?;
    update(&fixture, &changed, &json!({"on_timeout": "pause"})).await?.expect(200)?;
    let used = create(&fixture, &json!({"on_timeout": "delete"})).await?;
    ensure!(fixture.record(&deleted).await?["on_timeout"] == "delete");
    ensure!(fixture.record(&paused).await?["on_timeout"] == "pause");
    fixture
        .api
        .post("/v1/sandboxes", &json!({"on_timeout": "keep"}))
        .await?
        .expect_error(400, "invalid_request")?;
    fixture.sql("UPDATE sandboxes SET last_active_at = now() - interval '2 hours'").await?;
    fixture.wait_status(&deleted, "stopped").await?;
    fixture.wait_status(&paused, "paused").await?;
    fixture.wait_status(&changed, "paused").await?;
    // Without a timeout nothing is ever idle.
    ensure!(fixture.record(&used).await?["status"] == "running");
    ensure!(fixture.agent().was_told_to_destroy(&deleted), "its host still has it");
    fixture.stop().await
}
