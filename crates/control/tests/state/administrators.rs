// SPDX-License-Identifier: Apache-2.0
//! Cases of administrators of the platform: what they see of all teams, and what they change at once.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_control::Limits;
use wrenn_testkit::Events;

use crate::{
    fixture::Fixture,
    people::{User, told},
    stores::Stores,
};

/// Who is shut out, made an administrator or deleted is that at once; nobody does it to themselves.
pub(crate) async fn administrators_decide_about_users(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let (ada, grace, eve) = (
        User::new(&fixture, "ada", true).await?,
        User::new(&fixture, "grace", false).await?,
        User::new(&fixture, "eve", false).await?,
    );
    let of = |user: &User, what: &str| format!("/v1/admin/users/{}{what}", user.id);
    let put = async |by: &User, path: &str, body: Value| by.send(Method::PUT, path, Some(&body)).await;
    let users = ada.get("/v1/admin/users?limit=2").await?.expect(200)?;
    ensure!(
        users.json()[0]["email"] == eve.email && users.headers.contains_key("x-next-cursor"),
        "{}",
        users.json()
    );
    let found = ada.get("/v1/admin/users?email=GRACE@wrenn.test&status=active").await?.expect(200)?.json();
    ensure!(found.as_array().is_some_and(|all| all.len() == 1) && found[0]["teams_owned"] == 1, "{found}");
    ada.get("/v1/admin/users?status=happy").await?.expect_error(400, "invalid_request")?;
    grace.get("/v1/admin/users").await?.expect_error(403, "forbidden")?;

    let made = put(&ada, &of(&grace, "/admin"), json!({"admin": true})).await?.expect(200)?.json();
    ensure!(made["is_admin"] == true, "{made}");
    grace.get("/v1/admin/users").await?.expect(200)?;
    put(&ada, &of(&ada, "/admin"), json!({"admin": false})).await?.expect_error(409, "conflict")?;
    put(&ada, &of(&ada, "/active"), json!({"active": false})).await?.expect_error(409, "conflict")?;
    put(&grace, &of(&grace, "/admin"), json!({"admin": true})).await?.expect(200)?;
    put(&ada, &of(&grace, "/admin"), json!({"admin": false})).await?.expect(200)?;
    grace.get("/v1/admin/users").await?.expect_error(403, "forbidden")?;

    let key = grace.post("/v1/api-keys", &json!({"name": "ci"})).await?.expect(201)?.json();
    let key = fixture.api.with_key(key["key"].as_str().context("no key")?);
    let mut stream = grace.events().await?;
    let active = of(&grace, "/active");
    let refused = put(&ada, &active, json!({"active": false})).await?.expect_error(409, "member_has_keys")?;
    ensure!(told(&refused).contains("\"ci\""), "{}", told(&refused));
    let disabled = put(&ada, &active, json!({"active": false, "keys": "revoke"})).await?.expect(200)?.json();
    ensure!(disabled["status"] == "disabled", "{disabled}");
    grace.get("/v1/me").await?.expect_error(401, "unauthorized")?;
    key.get("/v1/sandboxes").await?.expect_error(401, "unauthorized")?;
    let until_end = async { while stream.chunk().await.ok().flatten().is_some() {} };
    tokio::time::timeout(crate::fixture::SOON, until_end).await.context("the stream goes on")?;
    put(&ada, &active, json!({"active": true, "keys": "keep"}))
        .await?
        .expect_error(400, "invalid_request")?;
    let again = put(&ada, &active, json!({"active": true})).await?.expect(200)?.json();
    // The session stays ended.
    ensure!(again["status"] == "active", "{again}");
    grace.get("/v1/me").await?.expect_error(401, "unauthorized")?;

    ada.let_in(&eve, "member").await?;
    eve.delete(&of(&ada, "")).await?.expect_error(403, "forbidden")?;
    ada.delete(&of(&ada, "")).await?.expect_error(409, "conflict")?;
    put(&ada, &of(&eve, "/admin"), json!({"admin": true})).await?.expect(200)?;
    eve.delete(&of(&ada, "")).await?.expect_error(409, "owns_team_with_members")?;
    ada.delete(&of(&eve, "")).await?.expect(204)?;
    eve.get("/v1/me").await?.expect_error(401, "unauthorized")?;
    ada.delete(&of(&eve, "")).await?.expect_error(404, "not_found")?;
    let gone = ada.get("/v1/admin/teams?deleted=true").await?.expect(200)?.json();
    let of_eve = gone.as_array().and_then(|all| all.iter().find(|team| team["id"] == eve.team.as_str()));
    ensure!(of_eve.context("no team")?["deleted_at"].is_string(), "{gone}");
    fixture.stop().await
}

/// The only administrator who may sign in stays, whoever would take it away, and so does one of two who would go at once.
pub(crate) async fn one_administrator_stays(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    // The operator would give the team of the fixture's key to an administrator.
    let (ada, grace) = (User::new(&fixture, "ada", false).await?, User::new(&fixture, "grace", false).await?);
    let both = async || fixture.sql("UPDATE users SET is_admin = true, status = 'active'").await;
    let put = async |user: &User, what: &str, body: &str| {
        let path = format!("/v1/admin/users/{}/{what}", user.id);
        fixture.send_json(Method::PUT, &path, body).await
    };
    let demote = async |user: &User| put(user, "admin", r#"{"admin": false}"#).await;
    let disable = async |user: &User| put(user, "active", r#"{"active": false}"#).await;
    let delete = async |user: &User| fixture.api.delete(&format!("/v1/admin/users/{}", user.id)).await;
    let own = json!({"confirmation": ada.email});

    both().await?;
    demote(&grace).await?.expect(200)?;
    let refused = demote(&ada).await?.expect_error(409, "conflict")?;
    ensure!(told(&refused).contains("make another one first"), "{}", told(&refused));
    disable(&ada).await?.expect_error(409, "conflict")?;
    delete(&ada).await?.expect_error(409, "conflict")?;
    ada.send(Method::DELETE, "/v1/me", Some(&own)).await?.expect_error(409, "conflict")?;
    demote(&grace).await?.expect(200)?;

    // Who is shut out cannot be the one who stays.
    both().await?;
    disable(&grace).await?.expect(200)?;
    demote(&ada).await?.expect_error(409, "conflict")?;

    for _ in 0..5 {
        both().await?;
        let (first, second) = tokio::join!(demote(&ada), demote(&grace));
        let (first, second) = (first?, second?);
        let (done, refused) = if first.status == 200 { (first, second) } else { (second, first) };
        done.expect(200)?;
        refused.expect_error(409, "conflict")?;
    }
    both().await?;
    ada.send(Method::DELETE, "/v1/me", Some(&own)).await?.expect(204)?;
    delete(&grace).await?.expect_error(409, "conflict")?;
    fixture.stop().await
}

/// Teams, hosts, sandboxes and templates of everybody are listed; what is deleted is deleted as its team would do it.
pub(crate) async fn administrators_see_all_teams(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (api, grace) = (&fixture.api, User::new(&fixture, "grace", false).await?);
    let made = grace.post("/v1/sandboxes", &json!({"memory_mb": 256})).await?.expect(201)?.json();
    let (id, own) = (made["id"].as_str().context("no id")?, fixture.create().await?);
    let teams = api.get("/v1/admin/teams").await?.expect(200)?.json();
    let of_grace = teams.as_array().and_then(|all| all.iter().find(|team| team["id"] == grace.team.as_str()));
    let of_grace = of_grace.context("no team")?;
    ensure!(of_grace["owner_email"] == grace.email && of_grace["active_sandbox_count"] == 1, "{of_grace}");
    let path = format!("/v1/admin/teams/{}", grace.team);
    let byoc = fixture
        .send_json(Method::PUT, &format!("{path}/byoc"), r#"{"enabled": true}"#)
        .await?
        .expect(200)?
        .json();
    ensure!(byoc["is_byoc"] == true, "{byoc}");
    fixture.send_json(Method::PUT, &format!("{path}/byoc"), r#"{"enabled": false}"#).await?.expect(200)?;
    let limited = fixture
        .send_json(Method::PUT, &format!("{path}/quotas"), r#"{"vcpus": 7}"#)
        .await?
        .expect(200)?
        .json();
    ensure!(limited["quotas"] == json!({"vcpus": 7}), "{limited}");

    let hosts = api.get("/v1/admin/hosts").await?.expect(200)?.json();
    let host = fixture.agent().id.to_string();
    ensure!(
        hosts[0]["id"] == host && hosts[0]["status"] == "online" && hosts[0]["reserved_sandboxes"] == 2,
        "{hosts}"
    );
    let first = api.get("/v1/admin/sandboxes?limit=1").await?.expect(200)?;
    let next = first.headers.get("x-next-cursor").context("no second page")?.to_str()?.to_owned();
    ensure!(
        first.json()[0]["sandbox"]["id"] == own && first.json()[0]["host_id"] == host,
        "{}",
        first.json()
    );
    let second = api.get(&format!("/v1/admin/sandboxes?cursor={next}")).await?.expect(200)?.json();
    ensure!(second[0]["sandbox"]["id"] == id && second[0]["team_id"] == grace.team.as_str(), "{second}");
    let filtered = format!("/v1/admin/sandboxes?team={}&host={host}&status=running", grace.team);
    ensure!(api.get(&filtered).await?.expect(200)?.json()[0]["sandbox"]["id"] == id);
    let mut events = Events::open(&api.with_key(&key_of(&grace).await?), None).await?;
    let sandbox = format!("/v1/admin/sandboxes/{id}");
    grace.delete(&sandbox).await?.expect_error(403, "forbidden")?;
    api.delete(&sandbox).await?.expect(204)?;
    let (told, _) = events.until(id, "sandbox.stopped").await?;
    let last = told.last().context("no event")?;
    ensure!(last.data["cause"] == "admin", "{}", last.data);
    ensure!(
        api.get("/v1/admin/sandboxes?status=stopped").await?.expect(200)?.json()[0]["sandbox"]["id"] == id
    );

    crate::walk::owned(&fixture).await?;
    let templates = api.get("/v1/admin/templates").await?.expect(200)?.json();
    ensure!(templates[0]["name"] == "web" && templates[0]["kind"] == "base", "{templates}");
    api.get("/v1/admin/templates?cursor=x").await?.expect_error(400, "invalid_request")?;
    let platform = wrenn_api::TeamId::PLATFORM;
    api.delete(&format!("/v1/admin/teams/{platform}")).await?.expect_error(404, "not_found")?;
    api.delete(&path).await?.expect(204)?;
    api.delete(&path).await?.expect_error(404, "not_found")?;
    fixture.stop().await
}

async fn key_of(user: &User) -> Result<String> {
    let made = user.post("/v1/api-keys", &json!({"name": "events"})).await?.expect(201)?.json();
    Ok(made["key"].as_str().context("no key")?.to_owned())
}
