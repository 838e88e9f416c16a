// SPDX-License-Identifier: Apache-2.0
//! Cases of keys, tickets and cookies: what they allow changes at once on every server.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_tungstenite::{connect_async, tungstenite::Error};
use wrenn_control::{Admin, Limits};
use wrenn_testkit::{Api, Events, Reply, wait_until};

use crate::{
    fixture::{Fixture, SOON},
    lasting_uses::{COMMAND, Socket, TERMINAL, start_over},
    log_scan,
    stores::Stores,
};

/// Time within which a change acts on other servers.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Creates a key with the key of the fixture, and returns its id and itself.
async fn create(fixture: &Fixture, body: &Value) -> Result<(String, String)> {
    let made = fixture.api.post("/v1/api-keys", body).await?.expect(201)?.json();
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    Ok((text(&made["api_key"]["id"])?, text(&made["key"])?))
}

async fn send(api: &Api, method: Method, path: &str, body: &Value) -> Result<Reply> {
    api.send(api.request(method, path).json(body)).await
}

/// A revoked key is refused by all servers at once, and its streams end long before they would be checked.
pub(crate) async fn a_revocation_acts_on_every_server(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (id, key) = create(&fixture, &json!({"name": "ci"})).await?;
    let second = fixture.serve().await?.with_key(&key);
    second.get("/v1/sandboxes").await?.expect(200)?;
    let mut stream = Events::open(&second, None).await?;
    fixture.api.delete(&format!("/v1/api-keys/{id}")).await?.expect(204)?;
    fixture.api.with_key(&key).get("/v1/sandboxes").await?.expect_error(401, "unauthorized")?;
    let refused = async || second.get("/v1/sandboxes").await.ok().filter(|reply| reply.status == 401);
    wait_until("the other server refuses the key", AT_ONCE, refused).await?;
    let end = stream.next(Duration::from_secs(20)).await.err().context("an event after the revocation")?;
    ensure!(end.to_string().contains("stream ended"), "{end:#}");
    fixture.api.delete(&format!("/v1/api-keys/{id}")).await?.expect_error(404, "not_found")?;
    fixture.stop().await
}

/// A key does what its scopes say, in either form, and they change without a new secret.
pub(crate) async fn scopes_change_without_a_new_secret(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let (id, key) =
        create(&fixture, &json!({"name": "ci", "scopes": ["sandbox.read", "key.manage", "key.read"]}))
            .await?;
    let api = fixture.api.with_key(&key.replacen("wrn_", "e2b_", 1));
    api.get("/v1/sandboxes").await?.expect(200)?;
    let told = api.get("/v1/snapshots").await?.expect_error(403, "forbidden")?.json();
    ensure!(told["error"]["message"].as_str().is_some_and(|told| told.contains("snapshot.read")), "{told}");
    // It gives nothing that it does not have, neither to another key nor to itself.
    let more = json!({"name": "more", "scopes": ["snapshot.read"]});
    api.post("/v1/api-keys", &more).await?.expect_error(403, "forbidden")?;
    let path = format!("/v1/api-keys/{id}");
    let wider = json!({"scopes": ["sandbox.read", "snapshot.read"]});
    send(&api, Method::PATCH, &path, &wider).await?.expect_error(403, "forbidden")?;
    let plain = api.post("/v1/api-keys", &json!({"name": "plain"})).await?.expect(201)?.json();
    let scopes = plain["api_key"]["scopes"].as_array().context("it has all permissions")?.len();
    ensure!(scopes == 3, "{plain}");
    let changed = send(&fixture.api, Method::PATCH, &path, &wider).await?.expect(200)?.json();
    ensure!(changed["scopes"] == wider["scopes"] && changed["name"] == "ci", "{changed}");
    api.get("/v1/snapshots").await?.expect(200)?;
    api.get("/v1/api-keys").await?.expect_error(403, "forbidden")?;
    // The list has no secret.
    let listed = fixture.api.get("/v1/api-keys").await?.expect(200)?;
    ensure!(!String::from_utf8_lossy(&listed.bytes).contains(&key), "the list has the secret");
    let one = listed.json().as_array().and_then(|all| all.iter().find(|one| one["id"] == *id).cloned());
    ensure!(one.context("it is not listed")?["last_used_at"].is_string(), "its use was not noted");
    let ended = json!({"name": "ended", "expires_at": "2020-01-01T00:00:00Z"});
    fixture.api.post("/v1/api-keys", &ended).await?.expect_error(400, "invalid_request")?;
    fixture.stop().await
}

/// Makes a ticket for a path with the key of the fixture.
async fn ticket(fixture: &Fixture, path: &str) -> Result<String> {
    let body = json!({"method": "GET", "path": path});
    let made = fixture.api.post("/v1/tickets", &body).await?.expect(201)?.json();
    Ok(made["ticket"].as_str().context("no ticket")?.to_owned())
}

/// Opens a WebSocket with nothing but its URL; `None` if nobody knows who asks.
async fn open(api: &Api, path: &str) -> Result<Option<Socket>> {
    let url = format!("{}{path}", api.url().replace("http", "ws"));
    match connect_async(url).await {
        Ok((socket, _)) => Ok(Some(socket)),
        Err(Error::Http(response)) if response.status().as_u16() == 401 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A ticket is for one request of one path.
pub(crate) async fn a_ticket_opens_one_stream(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let ticket = async |path: &str| ticket(&fixture, path).await;
    let nobody = fixture.api.with_key("");
    let stream = format!("/v1/events/stream?ticket={}", ticket("/v1/events/stream").await?);
    let mut events = Events::open_at(&nobody, &stream, None).await?;
    nobody.get(&stream).await?.expect_error(401, "unauthorized").context("a second time")?;
    let id = fixture.create().await?;
    events.until(&id, "sandbox.running").await?;
    // At another path it is used up.
    let other = ticket("/v1/events/stream").await?;
    let path = format!("/v1/sandboxes/{id}/files/watch?ticket={other}");
    nobody.get(&path).await?.expect_error(401, "unauthorized").context("at another path")?;
    nobody.get(&format!("/v1/events/stream?ticket={other}")).await?.expect_error(401, "unauthorized")?;
    let of_list = ticket("/v1/sandboxes").await?;
    nobody.get(&format!("/v1/sandboxes?ticket={of_list}")).await?.expect_error(401, "unauthorized")?;
    let old = ticket("/v1/events/stream").await?;
    fixture.sql("UPDATE tickets SET expires_at = now()").await?;
    nobody.get(&format!("/v1/events/stream?ticket={old}")).await?.expect_error(401, "unauthorized")?;
    fixture.stop().await
}

/// A ticket opens one WebSocket, by the older path of sandboxes, too, whichever of both it was made for.
pub(crate) async fn a_ticket_opens_one_web_socket(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let id = fixture.create().await?;
    for (what, first) in [COMMAND, TERMINAL] {
        let path = format!("/v1/sandboxes/{id}/{what}");
        let older = format!("/v1/capsules/{id}/{what}");
        ensure!(open(&fixture.api, &path).await?.is_none(), "{what} is opened without a ticket");
        for (made_for, used_at) in [(&path, &path), (&older, &older), (&older, &path), (&path, &older)] {
            let url = format!("{used_at}?ticket={}", ticket(&fixture, made_for).await?);
            let opened = open(&fixture.api, &url).await?;
            let mut socket = opened.with_context(|| format!("{used_at} refuses one for {made_for}"))?;
            start_over(&mut socket, first).await.with_context(|| used_at.clone())?;
            ensure!(open(&fixture.api, &url).await?.is_none(), "{used_at} is opened a second time");
        }
        // At another path it is used up.
        let other = ticket(&fixture, "/v1/events/stream").await?;
        for _ in 0..2 {
            let opened = open(&fixture.api, &format!("{path}?ticket={other}")).await?;
            ensure!(opened.is_none(), "{what} is opened by another ticket");
        }
        let of_events = format!("/v1/events/stream?ticket={other}");
        let nobody = fixture.api.with_key("");
        nobody.get(&of_events).await?.expect_error(401, "unauthorized").context("it was tried elsewhere")?;
    }
    fixture.stop().await
}

/// A browser's cookie alone changes nothing, and opens no WebSocket for other sites.
pub(crate) async fn a_cookie_needs_its_token(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let id = fixture.create().await?;
    let link = Admin::new(&stores.database_url(name))?.create_user("ada@wrenn.test", "Ada", true).await?;
    let nobody = fixture.api.with_key("");
    let signed_in = nobody
        .post("/v1/auth/sign-in-link", &json!({"token": link.token().reveal(), "cookie": true}))
        .await?
        .expect(200)?;
    let cookies = signed_in.headers.get_all("set-cookie").iter().filter_map(|value| value.to_str().ok());
    let cookie =
        cookies.filter_map(|value| value.split(';').next()).find(|pair| pair.starts_with("wrenn_session="));
    let cookie = cookie.context("no cookie")?.to_owned();
    let csrf = signed_in.json()["csrf_token"].as_str().context("no token against other sites")?.to_owned();
    log_scan::look_for(link.token().reveal());
    log_scan::look_for(cookie.trim_start_matches("wrenn_session="));
    log_scan::look_for(&csrf);
    let with = |method: Method, path: &str, fields: &[(&str, &str)]| {
        let request = nobody.request(method, path).header("Cookie", cookie.as_str());
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        nobody.send(request)
    };
    // The first administrator has the team of the operator's key.
    let path = format!("/v1/sandboxes/{id}");
    with(Method::GET, &path, &[]).await?.expect(200)?;
    with(Method::DELETE, &path, &[]).await?.expect_error(403, "forbidden")?;
    with(Method::DELETE, &path, &[("X-CSRF-Token", "guessed")]).await?.expect_error(403, "forbidden")?;
    let upgrade = [("Connection", "upgrade"), ("Upgrade", "websocket"), ("Origin", "https://evil.example")];
    with(Method::GET, &format!("{path}/exec/stream"), &upgrade).await?.expect_error(403, "forbidden")?;
    // A key that is sent on purpose goes before it, and decides alone.
    with(Method::GET, &path, &[("X-API-Key", "garbage")]).await?.expect_error(401, "unauthorized")?;
    with(Method::DELETE, &path, &[("X-CSRF-Token", csrf.as_str())]).await?.expect(204)?;
    fixture.wait_status(&id, "stopped").await?;
    with(Method::POST, "/v1/auth/logout", &[("X-CSRF-Token", csrf.as_str())]).await?.expect(204)?;
    let over = async || with(Method::GET, &path, &[]).await.ok().filter(|reply| reply.status == 401);
    wait_until("the session is over", SOON, over).await?;
    fixture.stop().await
}

/// Who is taken out of a team, or shut out, sees nothing of it any more, and open streams end.
pub(crate) async fn a_membership_that_ends_ends_its_streams(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mut limits = Limits::default();
    limits.key_check = Duration::from_millis(100);
    let fixture = Fixture::start(stores, name, 1, limits).await?;
    let link = Admin::new(&stores.database_url(name))?.create_user("ada@wrenn.test", "Ada", true).await?;
    let nobody = fixture.api.with_key("");
    let signed_in =
        nobody.post("/v1/auth/sign-in-link", &json!({"token": link.token().reveal()})).await?.expect(200)?;
    let token = signed_in.json()["token"].as_str().context("no token")?.to_owned();
    let get = async |path: &str| nobody.send(nobody.request(Method::GET, path).bearer_auth(&token)).await;
    get("/v1/audit-logs").await?.expect(200)?;
    let mut stream = nobody.request(Method::GET, "/v1/events/stream").bearer_auth(&token).send().await?;
    ensure!(stream.status() == 200, "status {}", stream.status());
    // A lower role: what the stream needs is there still, but it began with more.
    fixture.sql("UPDATE team_members SET role = 'member'").await?;
    let until_end = async { while stream.chunk().await.ok().flatten().is_some() {} };
    tokio::time::timeout(SOON, until_end).await.context("the stream goes on")?;
    let refused = async || get("/v1/audit-logs").await.ok().filter(|reply| reply.status == 403);
    wait_until("the lower role", AT_ONCE, refused).await?;
    fixture.sql("DELETE FROM team_members").await?;
    let refused = async || get("/v1/sandboxes").await.ok().filter(|reply| reply.status == 403);
    wait_until("no team", AT_ONCE, refused).await?;
    get("/v1/me").await?.expect(200)?;
    fixture.sql("UPDATE users SET status = 'disabled'").await?;
    let refused = async || get("/v1/me").await.ok().filter(|reply| reply.status == 401);
    wait_until("shut out", AT_ONCE, refused).await?;
    fixture.stop().await
}
