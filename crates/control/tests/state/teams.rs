// SPDX-License-Identifier: Apache-2.0
//! Cases of teams: invitations, roles, the end of a membership and of a team, and another owner.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;
use wrenn_control::Limits;
use wrenn_testkit::wait_until;

use crate::{
    agent::Agent,
    fixture::{Fixture, SOON},
    people::{User, told},
    stores::Stores,
};

/// An invitation is for its address only, and works once; a new one replaces it.
pub(crate) async fn an_invitation_is_accepted_once(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let (ada, grace, other) = (
        User::new(&fixture, "ada", false).await?,
        User::new(&fixture, "grace", false).await?,
        User::new(&fixture, "eve", false).await?,
    );
    let path = format!("/v1/teams/{}/invitations", ada.team);
    let invite =
        async |email: &str, role: &str| ada.post(&path, &json!({"email": email, "role": role})).await;
    let first = invite("Grace@Wrenn.test", "admin").await?.expect(201)?.json();
    // No server for mail is configured.
    ensure!(first["mailed"] == false && first["invitation"]["email"] == grace.email, "{first}");
    let second = invite(&grace.email, "member").await?.expect(201)?.json()["invitation"].clone();
    let listed = ada.get(&path).await?.expect(200)?.json();
    ensure!(listed == json!([second]), "{listed}");
    invite("nobody", "member").await?.expect_error(400, "invalid_request")?;
    invite(&grace.email, "owner").await?.expect_error(400, "invalid_request")?;
    invite(&ada.email, "member").await?.expect_error(409, "conflict")?;
    // Whether there is an account makes no difference.
    let nobodys = invite("nobody@wrenn.test", "member").await?.expect(201)?.json();
    ensure!(nobodys["mailed"] == first["mailed"], "{nobodys}");

    let accept = async |user: &User, body: Value| user.post("/v1/invitations/accept", &body).await;
    accept(&other, json!({"id": second["id"]})).await?.expect_error(404, "not_found")?;
    accept(&grace, json!({"id": first["invitation"]["id"]})).await?.expect_error(404, "not_found")?;
    accept(&grace, json!({"token": "x"})).await?.expect_error(400, "invalid_token")?;
    for body in [json!({}), json!({"id": second["id"], "token": "x"})] {
        accept(&grace, body).await?.expect_error(400, "invalid_request")?;
    }
    let mine = grace.get("/v1/me/invitations").await?.expect(200)?.json();
    ensure!(mine[0]["team_id"] == ada.team.as_str() && mine[0]["inviter"] == ada.email, "{mine}");
    ensure!(other.get("/v1/me/invitations").await?.expect(200)?.json() == json!([]));
    let team = accept(&grace, json!({"id": second["id"]})).await?.expect(200)?.json();
    ensure!(team["id"] == ada.team.as_str() && team["role"] == "member", "{team}");
    accept(&grace, json!({"id": second["id"]})).await?.expect_error(404, "not_found")?;
    ensure!(grace.get("/v1/me/invitations").await?.expect(200)?.json() == json!([]));
    // One that was withdrawn or is over works no more.
    let withdrawn = format!("{path}/{}", nobodys["invitation"]["id"].as_str().context("no id")?);
    ada.delete(&withdrawn).await?.expect(204)?;
    ada.delete(&withdrawn).await?.expect_error(404, "not_found")?;
    let late = invite(&other.email, "member").await?.expect(201)?.json()["invitation"]["id"].clone();
    fixture.sql("UPDATE invitations SET expires_at = now()").await?;
    accept(&other, json!({"id": late})).await?.expect_error(404, "not_found")?;

    let members = ada.get(&format!("/v1/teams/{}/members?limit=1", ada.team)).await?.expect(200)?;
    let next = members.headers.get("x-next-cursor").context("no second page")?.to_str()?.to_owned();
    let rest = ada.get(&format!("/v1/teams/{}/members?cursor={next}", ada.team)).await?.expect(200)?;
    let pages = [&members, &rest].map(|reply| reply.json()[0]["user_id"].clone());
    ensure!(
        pages == [json!(ada.id), json!(grace.id)] && !rest.headers.contains_key("x-next-cursor"),
        "{pages:?}"
    );
    let teams = grace.get("/v1/teams").await?.expect(200)?.json();
    ensure!(teams.as_array().is_some_and(|all| all.len() == 2), "{teams}");
    fixture.stop().await
}

/// A member does what the role says, in the team of the path; once removed, nothing, also on an open stream. What becomes of the
/// member's keys must be said.
pub(crate) async fn a_removed_member_sees_nothing(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (ada, grace) = (User::new(&fixture, "ada", false).await?, User::new(&fixture, "grace", false).await?);
    ada.let_in(&grace, "member").await?;
    let made = ada.post("/v1/sandboxes", &json!({"memory_mb": 256})).await?.expect(201)?.json()["id"].clone();
    let team = format!("/v1/teams/{}", ada.team);
    let (patch, rename) = (Method::PATCH, json!({"name": "Engines"}));
    grace.get(&team).await?.expect(200)?;
    grace.send(patch.clone(), &team, Some(&rename)).await?.expect_error(403, "forbidden")?;
    grace.delete(&team).await?.expect_error(403, "forbidden")?;
    grace.get(&format!("{team}/invitations")).await?.expect_error(403, "forbidden")?;
    let member = format!("{team}/members/{}", grace.id);
    let owner = format!("{team}/members/{}", ada.id);
    ada.send(patch.clone(), &member, Some(&json!({"role": "admin"}))).await?.expect(200)?;
    ada.send(patch.clone(), &owner, Some(&json!({"role": "admin"}))).await?.expect_error(409, "conflict")?;
    let renamed = grace.send(patch, &team, Some(&rename)).await?.expect(200)?.json();
    ensure!(renamed["name"] == "Engines" && renamed["role"] == "admin", "{renamed}");
    grace.delete(&owner).await?.expect_error(409, "conflict")?;

    grace.act_for(&ada.team).await?;
    ensure!(grace.get("/v1/sandboxes").await?.expect(200)?.json()[0]["id"] == made);
    let keys = [("ci", true), ("old", false), ("nightly", false)];
    let mut used = String::new();
    for (key, is_used) in keys {
        let made = grace.post("/v1/api-keys", &json!({"name": key})).await?.expect(201)?.json();
        if is_used {
            made["key"].as_str().context("no key")?.clone_into(&mut used);
        }
    }
    let key = fixture.api.with_key(&used);
    key.get("/v1/sandboxes").await?.expect(200)?;
    let mut stream = grace.events().await?;
    let refused = ada.delete(&member).await?.expect_error(409, "member_has_keys")?;
    for part in ["made 3 API keys", "\"ci\"", "last used 20", "\"old\"", "never used", "keys=revoke"] {
        ensure!(told(&refused).contains(part), "{part}: {}", told(&refused));
    }
    ada.delete(&format!("{member}?keys=burn")).await?.expect_error(400, "invalid_request")?;
    key.get("/v1/sandboxes").await?.expect(200)?;
    ada.delete(&format!("{member}?keys=revoke")).await?.expect(204)?;
    key.get("/v1/sandboxes").await?.expect_error(401, "unauthorized")?;
    grace.get(&team).await?.expect_error(404, "not_found")?;
    // The session acts for the own team again.
    ensure!(grace.get("/v1/sandboxes").await?.expect(200)?.json() == json!([]));
    let until_end = async { while stream.chunk().await.ok().flatten().is_some() {} };
    timeout(SOON, until_end).await.context("the stream goes on")?;
    ada.delete(&member).await?.expect_error(404, "not_found")?;
    fixture.stop().await
}

/// Who leaves can leave the keys to the team; the owner has to give the team to another one first.
pub(crate) async fn a_team_has_another_owner(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let (ada, grace) = (User::new(&fixture, "ada", false).await?, User::new(&fixture, "grace", false).await?);
    let made = ada.post("/v1/teams", &json!({"name": "Engines"})).await?.expect(201)?.json();
    let id = made["id"].as_str().context("no id")?.to_owned();
    ensure!(made["role"] == "owner" && made["slug"].as_str().is_some_and(|slug| slug.len() == 13), "{made}");
    for wrong in ["", " x", "a\nb"] {
        ada.post("/v1/teams", &json!({"name": wrong})).await?.expect_error(400, "invalid_request")?;
    }
    let team = format!("/v1/teams/{id}");
    let body = json!({"user_id": grace.id});
    ada.post(&format!("{team}/transfer"), &body).await?.expect_error(404, "not_found")?;
    let invited = json!({"email": grace.email, "role": "member"});
    let invited = ada.post(&format!("{team}/invitations"), &invited).await?.expect(201)?.json();
    grace.post("/v1/invitations/accept", &json!({"id": invited["invitation"]["id"]})).await?.expect(200)?;
    let leave = format!("{team}/leave");
    ada.send(Method::POST, &leave, None).await?.expect_error(409, "conflict")?;
    grace
        .post(&format!("{team}/transfer"), &json!({"user_id": grace.id}))
        .await?
        .expect_error(403, "forbidden")?;
    ada.post(&format!("{team}/transfer"), &body).await?.expect(204)?;
    ensure!(grace.get(&team).await?.expect(200)?.json()["role"] == "owner");
    ensure!(ada.get(&team).await?.expect(200)?.json()["role"] == "admin");
    ada.post(&format!("{team}/transfer"), &json!({"user_id": ada.id}))
        .await?
        .expect_error(403, "forbidden")?;
    ada.act_for(&id).await?;
    let key = ada.post("/v1/api-keys", &json!({"name": "ci"})).await?.expect(201)?.json();
    ada.send(Method::POST, &leave, None).await?.expect_error(409, "member_has_keys")?;
    ada.send(Method::POST, &format!("{leave}?keys=keep"), None).await?.expect(204)?;
    let key = fixture.api.with_key(key["key"].as_str().context("no key")?);
    let listed = key.get("/v1/teams").await?.expect(200)?.json();
    ensure!(listed[0]["id"] == id.as_str() && listed[0]["role"].is_null(), "{listed}");
    // No key leaves a team.
    key.send(key.request(Method::POST, &leave)).await?.expect_error(403, "forbidden")?;
    grace.delete(&team).await?.expect(204)?;
    key.get("/v1/teams").await?.expect_error(401, "unauthorized")?;
    grace.get(&team).await?.expect_error(404, "not_found")?;
    fixture.stop().await
}

/// Whatever a team has is removed from all hosts, from one that does not answer when it is back; another team keeps what it has.
pub(crate) async fn a_deleted_team_leaves_nothing(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.lease = Duration::from_secs(6);
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    let (ada, agent) = (User::new(&fixture, "ada", false).await?, fixture.agent());
    let mut ids = Vec::new();
    for _ in 0..3 {
        let made = ada.post("/v1/sandboxes", &json!({"memory_mb": 256})).await?.expect(201)?.json();
        ids.push(made["id"].as_str().context("no id")?.to_owned());
    }
    ada.send(Method::POST, &format!("/v1/sandboxes/{}/pause", ids[0]), None).await?.expect(200)?;
    ada.post("/v1/snapshots", &json!({"sandbox_id": ids[1], "name": "kept"})).await?.expect(201)?;
    let key = ada.post("/v1/api-keys", &json!({"name": "ci"})).await?.expect(201)?.json();
    let key = fixture.api.with_key(key["key"].as_str().context("no key")?);
    let other = fixture.create().await?;
    // The host is not where it was.
    fixture.sql("UPDATE hosts SET address = '127.0.0.1:1'").await?;
    ada.delete(&format!("/v1/teams/{}", ada.team)).await?.expect(204)?;
    key.get("/v1/sandboxes").await?.expect_error(401, "unauthorized")?;
    let told = ada.get("/v1/sandboxes").await?.expect_error(403, "forbidden")?.json();
    ensure!(told["error"]["message"].as_str().is_some_and(|told| told.contains("no team")), "{told}");
    let open = "SELECT string_agg(DISTINCT status, ' ') FROM sandboxes WHERE team_id = (SELECT id FROM teams
        WHERE deleted_at IS NOT NULL AND emptied_at IS NULL)";
    fixture.wait_value(open, "stopping").await?;
    fixture.sql(&format!("UPDATE hosts SET address = '{}'", agent.address)).await?;
    let emptied = "SELECT (emptied_at IS NOT NULL)::text FROM teams WHERE deleted_at IS NOT NULL";
    fixture.wait_value(emptied, "true").await?;
    let gone = async || {
        (agent.now().sandboxes.keys().eq([&other]) && agent.now().snapshots.is_empty()).then_some(())
    };
    wait_until("nothing of the team on its host", SOON, gone).await?;
    fixture.api.exec(&other, &["true"]).await?;
    fixture.stop().await
}

/// Lets only this host take sandboxes.
async fn place_on(fixture: &Fixture, agent: &Agent) -> Result<()> {
    let host = agent.id.uuid();
    let others = "now() + interval '1 hour'";
    fixture.sql(&format!("UPDATE hosts SET ejected_until = CASE WHEN id <> '{host}' THEN {others} END")).await
}

/// Lets a user have a running and a paused sandbox and a snapshot on a host, and another team a sandbox, whose id is returned.
async fn use_host(fixture: &Fixture, user: &User, agent: &Agent, name: &str) -> Result<String> {
    place_on(fixture, agent).await?;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let made = user.post("/v1/sandboxes", &json!({"memory_mb": 256})).await?.expect(201)?.json();
        ids.push(made["id"].as_str().context("no id")?.to_owned());
    }
    user.send(Method::POST, &format!("/v1/sandboxes/{}/pause", ids[0]), None).await?.expect(200)?;
    user.post("/v1/snapshots", &json!({"sandbox_id": ids[1], "name": name})).await?.expect(201)?;
    ids.push(fixture.create().await?);
    let there: Vec<String> = agent.now().sandboxes.keys().cloned().collect();
    ensure!(ids.iter().all(|id| there.contains(id)), "{ids:?} were made, the host has {there:?}");
    ids.pop().context("no sandbox")
}

/// Waits until nothing is on a host but a sandbox of another team.
async fn wait_emptied(agent: &Agent, other: &str) -> Result<()> {
    let mut left = String::new();
    let gone = async || {
        let now = agent.now();
        left = format!("{:?} and {:?}", now.sandboxes.keys(), now.snapshots);
        (now.sandboxes.keys().eq([other]) && now.snapshots.is_empty()).then_some(())
    };
    let emptied = wait_until("nothing of the team on its host", SOON, gone).await;
    emptied.with_context(|| format!("beside {other} there are {left}"))
}

/// What a team has on two hosts is removed from both: at once from the one that answers, and from the one that was away when it is back.
pub(crate) async fn a_deleted_team_leaves_nothing_on_any_host(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut limits = Limits::default();
    limits.lease = Duration::from_secs(6);
    let fixture = Fixture::start(stores, name, 2, limits).await?;
    let ada = User::new(&fixture, "ada", false).await?;
    let (near, away) = (fixture.agents[0].clone(), fixture.agents[1].clone());
    let beside = use_host(&fixture, &ada, &near, "near").await?;
    let beside_away = use_host(&fixture, &ada, &away, "away").await?;
    let host = away.id.uuid();
    fixture.sql(&format!("UPDATE hosts SET address = '127.0.0.1:1' WHERE id = '{host}'")).await?;
    ada.delete(&format!("/v1/teams/{}", ada.team)).await?.expect(204)?;

    wait_emptied(&near, &beside).await?;
    let emptied = "SELECT (emptied_at IS NOT NULL)::text FROM teams WHERE deleted_at IS NOT NULL";
    ensure!(fixture.value(emptied).await? == "false", "the host that is away does not count");
    let kept = {
        let now = away.now();
        (now.sandboxes.len(), now.snapshots.len())
    };
    ensure!(kept == (3, 1), "{kept:?} sandboxes and snapshots are on a host that nobody reached");

    fixture.sql(&format!("UPDATE hosts SET address = '{}' WHERE id = '{host}'", away.address)).await?;
    fixture.wait_value(emptied, "true").await?;
    wait_emptied(&away, &beside_away).await?;
    fixture.api.exec(&beside, &["true"]).await?;
    fixture.wait_status(&beside_away, "running").await?;
    fixture.api.exec(&beside_away, &["true"]).await?;
    fixture.stop().await
}
