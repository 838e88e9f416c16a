// SPDX-License-Identifier: Apache-2.0
//! Cases of what the platform itself has: administrators let their sessions act for it, what they make there is seen by nobody else
//! but as templates, and who administers the platform no more has lost it at once.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_api::TeamId;
use wrenn_control::Limits;
use wrenn_testkit::{Events, Reply, wait_until};

use crate::{
    builds::{self, ask, statuses, wait},
    fixture::{Fixture, SOON},
    people::{User, told},
    stores::Stores,
};

const SWITCH: &str = "/v1/auth/switch-team";
const STREAM: &str = "/v1/events/stream";

/// Path of the platform's team, and the body of a switch to it.
fn platform() -> (String, Value) {
    let team = TeamId::PLATFORM;
    (format!("/v1/teams/{team}"), json!({"team_id": team.to_string()}))
}

/// Creates a sandbox, and returns its id.
async fn create(user: &User, body: &Value) -> Result<String> {
    let made = user.post("/v1/sandboxes", body).await?.expect(201)?.json();
    Ok(made["id"].as_str().context("no id")?.to_owned())
}

/// Makes a named snapshot of a sandbox.
async fn snapshot(user: &User, sandbox: &str, name: &str) -> Result<Reply> {
    user.post("/v1/snapshots", &json!({"sandbox_id": sandbox, "name": name})).await
}

/// Returns the path of an event stream with a ticket of a user.
async fn stream_by_ticket(user: &User) -> Result<String> {
    let made = user.post("/v1/tickets", &json!({"method": "GET", "path": STREAM})).await?.expect(201)?.json();
    Ok(format!("{STREAM}?ticket={}", made["ticket"].as_str().context("no ticket")?))
}

/// Returns the snapshot that the host was asked to create a sandbox from; empty if it was none.
fn snapshot_of(fixture: &Fixture, sandbox: &str) -> Result<String> {
    let now = fixture.agent().now();
    let asked = now.creates.iter().find(|asked| asked.sandbox_id == sandbox);
    Ok(asked.context("the host was not asked")?.snapshot_id.clone())
}

/// An administrator's session acts for the platform as for any team. Others, also with keys of administrators, neither act for it nor
/// see what it has.
pub(crate) async fn administrators_act_for_the_platform(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (ada, grace) = (User::new(&fixture, "ada", true).await?, User::new(&fixture, "grace", false).await?);
    let (team, switch) = platform();
    grace.post(SWITCH, &switch).await?.expect_error(404, "not_found")?;
    fixture.api.post(SWITCH, &switch).await?.expect_error(403, "forbidden")?;
    grace.get(&team).await?.expect_error(404, "not_found")?;
    fixture.api.get(&team).await?.expect_error(404, "not_found")?;
    let me = ada.post(SWITCH, &switch).await?.expect(200)?.json();
    ensure!(me["team_id"] == switch["team_id"] && me["is_admin"] == true && me["role"].is_null(), "{me}");

    let stream = stream_by_ticket(&ada).await?;
    let mut events = Events::open_at(&fixture.api.with_key(""), &stream, None).await?;
    let id = create(&ada, &json!({"memory_mb": 256})).await?;
    let (told, _) = events.until(&id, "sandbox.running").await?;
    let is_by_ada = |cause: &Value, actor: &Value| *cause == "admin" && *actor == ada.id.as_str();
    ensure!(told.iter().all(|event| is_by_ada(&event.data["cause"], &event.data["actor"]["id"])), "{told:?}");
    let path = format!("/v1/sandboxes/{id}");
    let (exec, command) = (format!("{path}/exec"), json!({"cmd": "true"}));
    let listed = ada.get("/v1/sandboxes").await?.expect(200)?.json();
    ensure!(listed[0]["id"] == id.as_str() && listed[1].is_null(), "{listed}");
    ada.post(&exec, &command).await?.expect(200)?;
    ada.send(Method::POST, &format!("{path}/pause"), None).await?.expect(200)?;
    ada.post(&format!("{path}/resume"), &json!({})).await?.expect(200)?;
    // The reconciler finds nothing to do.
    fixture.rounds(fixture.agent(), 2).await?;
    ensure!(ada.get(&path).await?.expect(200)?.json()["status"] == "running");
    let quotas = ada.get(&format!("{team}/quotas")).await?.expect(200)?.json();
    let of_sandboxes = quotas.as_array().and_then(|all| all.iter().find(|one| one["name"] == "sandboxes"));
    ensure!(of_sandboxes.is_some_and(|one| one["used"] == 1), "{quotas}");

    for reply in [grace.get(&path).await?, fixture.api.get(&path).await?] {
        reply.expect_error(404, "not_found")?;
    }
    grace.post(&exec, &command).await?.expect_error(404, "not_found")?;
    grace.delete(&path).await?.expect_error(404, "not_found")?;
    for reply in [grace.get("/v1/sandboxes").await?, fixture.api.get("/v1/sandboxes").await?] {
        let listed = reply.expect(200)?.json();
        ensure!(listed == json!([]), "another team sees {listed}");
    }
    let log = ada.get("/v1/audit-logs?limit=200").await?.expect(200)?.json();
    for action in ["team.switch", "sandbox.create", "sandbox.pause"] {
        let mut records = log.as_array().into_iter().flatten();
        let found = records.any(|one| one["action"] == action && one["actor"]["id"] == ada.id.as_str());
        ensure!(found, "the platform's log has no {action}: {log}");
    }
    ada.act_for(&ada.team).await?;
    ada.get(&path).await?.expect_error(404, "not_found")?;
    let log = ada.get("/v1/audit-logs?action=sandbox.create").await?.expect(200)?.json();
    ensure!(log == json!([]), "a team's log has {log}");
    fixture.stop().await
}

/// What the platform has not, such as keys, members and another name, is refused with the reason, and its team stays as it is.
pub(crate) async fn what_the_platform_has_not_is_refused(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let (ada, grace) = (User::new(&fixture, "ada", true).await?, User::new(&fixture, "grace", false).await?);
    let (team, switch) = platform();
    ada.post(SWITCH, &switch).await?.expect(200)?;
    let of_team = |rest: &str| format!("{team}{rest}");
    let member = of_team(&format!("/members/{}", grace.id));
    let invitation = json!({"email": grace.email, "role": "member"});
    for (method, path, body) in [
        (Method::POST, "/v1/api-keys".to_owned(), json!({"name": "ci"})),
        (Method::POST, "/v1/channels".to_owned(), json!({})),
        (Method::POST, "/v1/channels/test".to_owned(), json!({})),
        (Method::PATCH, team.clone(), json!({"name": "ours"})),
        (Method::DELETE, team.clone(), Value::Null),
        (Method::POST, of_team("/invitations"), invitation),
        (Method::GET, of_team("/invitations"), Value::Null),
        (Method::PATCH, member.clone(), json!({"role": "admin"})),
        (Method::DELETE, member, Value::Null),
        (Method::POST, of_team("/transfer"), json!({"user_id": grace.id})),
    ] {
        let what = format!("{method} {path}");
        let body = (!body.is_null()).then_some(&body);
        let refused = ada.send(method, &path, body).await?.expect_error(403, "forbidden");
        let told = told(&refused.with_context(|| what.clone())?);
        ensure!(told.contains("nobody has for the platform"), "{what}: {told}");
    }
    ada.send(Method::POST, &of_team("/leave"), None).await?.expect_error(409, "conflict")?;
    for path in ["/v1/api-keys", "/v1/channels", of_team("/members").as_str()] {
        ensure!(ada.get(path).await?.expect(200)?.json() == json!([]), "{path} lists something");
    }
    let named = ada.get(&team).await?.expect(200)?.json();
    ensure!(named["id"] == switch["team_id"] && named["role"].is_null(), "{named}");
    // For the list of teams and what changes teams it is not there.
    let admin = format!("/v1/admin/teams/{}", TeamId::PLATFORM);
    for (what, body) in [("quotas", json!({"running": 1})), ("byoc", json!({"enabled": true}))] {
        let reply = ada.send(Method::PUT, &format!("{admin}/{what}"), Some(&body)).await?;
        reply.expect_error(404, "not_found").context(what)?;
    }
    ada.delete(&admin).await?.expect_error(404, "not_found")?;
    let teams = ada.get("/v1/admin/teams?deleted=true").await?.expect(200)?.json();
    let is_platform = |one: &Value| one["id"] == switch["team_id"];
    ensure!(teams.as_array().is_some_and(|all| !all.iter().any(is_platform)), "{teams}");
    let unchanged = format!(
        "SELECT count(*)::text FROM teams WHERE id = '{}' AND name = 'platform' AND deleted_at IS NULL AND quotas IS NULL
             AND NOT is_byoc",
        TeamId::PLATFORM.uuid()
    );
    ensure!(fixture.value(&unchanged).await? == "1", "the platform's team was changed");
    // Own teams are made and listed in any session.
    let own = ada.post("/v1/teams", &json!({"name": "Engines"})).await?.expect(201)?.json();
    let listed = ada.get("/v1/teams").await?.expect(200)?.json();
    ensure!(
        listed.as_array().is_some_and(|all| all.contains(&own) && !all.iter().any(is_platform)),
        "{listed}"
    );
    fixture.stop().await
}

/// A snapshot of the platform is a template of all teams, by a name that no team can take; a team's own goes before it.
pub(crate) async fn all_teams_use_a_snapshot_of_the_platform(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = builds::start(stores, name, 1, Limits::default()).await?;
    let (ada, grace) = (User::new(&fixture, "ada", true).await?, User::new(&fixture, "grace", false).await?);
    let small = json!({"memory_mb": 256});
    let of_grace = create(&grace, &small).await?;
    snapshot(&grace, &of_grace, "mine").await?.expect(201)?;
    ada.post(SWITCH, &platform().1).await?.expect(200)?;
    let id = create(&ada, &small).await?;
    for name in ["tools", "mine"] {
        snapshot(&ada, &id, name).await?.expect(201)?;
    }
    snapshot(&ada, &id, "tools").await?.expect_error(409, "template_name_taken")?;
    snapshot(&ada, &id, "minimal").await?.expect_error(409, "name_reserved")?;

    let from = |template: &str| json!({"template": template});
    let by_ada = snapshot_of(&fixture, &create(&ada, &from("tools")).await?)?;
    let by_grace = create(&grace, &from("tools")).await?;
    ensure!(!by_ada.is_empty() && snapshot_of(&fixture, &by_grace)? == by_ada, "another one than {by_ada}");
    let own = snapshot_of(&fixture, &create(&grace, &from("mine")).await?)?;
    ensure!(own != snapshot_of(&fixture, &create(&ada, &from("mine")).await?)?, "the platform's goes first");
    grace.post("/v1/sandboxes", &from("tools:v1")).await?.expect_error(404, "not_found")?;
    for (user, name, expected) in [(&grace, "tools", true), (&ada, "tools", true), (&grace, "mine", false)] {
        let all = user.get("/v1/templates").await?.expect(200)?.json();
        let named = all.as_array().into_iter().flatten().filter(|one| one["name"] == name);
        let named: Vec<_> = named.collect();
        let is_platform = named.first().is_some_and(|one| one["platform"] == true);
        ensure!(
            named.len() == 1 && named[0]["kind"] == "snapshot" && is_platform == expected,
            "{name}: {all}"
        );
    }
    // It is built on, and is nobody's to take or to delete.
    let on_it = ask(&fixture, &json!({"name": "on-it", "recipe": "FROM tools\nRUN two\n"})).await?;
    let on_it = wait(&fixture, &on_it, "succeeded").await?;
    ensure!(statuses(&on_it) == ["succeeded"; 2], "{on_it}");
    let body = json!({"name": "tools", "recipe": "FROM minimal\nRUN one\n"});
    grace.post(builds::PATH, &body).await?.expect_error(409, "name_reserved")?;
    snapshot(&grace, &of_grace, "tools").await?.expect_error(409, "name_reserved")?;
    for path in ["/v1/snapshots/tools", "/v1/templates/tools"] {
        grace.delete(path).await?.expect_error(403, "forbidden").context(path)?;
    }
    let listed = grace.get("/v1/snapshots").await?.expect(200)?.json();
    ensure!(listed[0]["name"] == "mine" && listed[1].is_null(), "{listed}");
    ada.delete("/v1/snapshots/tools").await?.expect(204)?;
    grace.post("/v1/sandboxes", &from("tools")).await?.expect_error(404, "not_found")?;
    ensure!(
        grace.get(&format!("/v1/sandboxes/{by_grace}")).await?.expect(200)?.json()["status"] == "running"
    );
    snapshot(&grace, &of_grace, "tools").await?.expect(201)?;
    fixture.stop().await
}

/// Who administers the platform no more is refused at once, with a stream and a ticket, too. What the platform has goes on, for the
/// others who administer it.
pub(crate) async fn who_administers_no_more_has_lost_the_platform(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (ada, grace) = (User::new(&fixture, "ada", true).await?, User::new(&fixture, "grace", true).await?);
    let (team, switch) = platform();
    ada.post(SWITCH, &switch).await?.expect(200)?;
    let id = create(&ada, &json!({"memory_mb": 256})).await?;
    let path = format!("/v1/sandboxes/{id}");
    let mut stream = ada.events().await?;
    let by_ticket = stream_by_ticket(&ada).await?;

    let demotion = format!("/v1/admin/users/{}/admin", ada.id);
    grace.send(Method::PUT, &demotion, Some(&json!({"admin": false}))).await?.expect(200)?;
    ada.get(&path).await?.expect_error(404, "not_found")?;
    ada.delete(&path).await?.expect_error(404, "not_found")?;
    ada.get(&team).await?.expect_error(404, "not_found")?;
    ada.post(SWITCH, &switch).await?.expect_error(404, "not_found")?;
    fixture.api.with_key("").get(&by_ticket).await?.expect_error(401, "unauthorized")?;
    let until_end = async { while stream.chunk().await.ok().flatten().is_some() {} };
    tokio::time::timeout(SOON, until_end).await.context("the stream goes on")?;
    // The session acts for the own team again.
    let me = ada.get("/v1/me").await?.expect(200)?.json();
    ensure!(me["team_id"] == ada.team.as_str() && me["role"] == "owner", "{me}");

    grace.post(SWITCH, &switch).await?.expect(200)?;
    ensure!(grace.get(&path).await?.expect(200)?.json()["status"] == "running");
    // Also if no server tells it.
    fixture.sql(&format!("UPDATE users SET is_admin = false WHERE email = '{}'", grace.email)).await?;
    let refused = async || grace.get(&path).await.ok().filter(|reply| reply.status == 403);
    let refused = wait_until("who administers no more is refused", SOON, refused).await?;
    ensure!(told(&refused).contains("you are in no team"), "{}", told(&refused));
    fixture.stop().await
}
