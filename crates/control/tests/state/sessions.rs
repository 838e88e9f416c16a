// SPDX-License-Identifier: Apache-2.0
//! Case of sessions that end while their event streams are open.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Response};
use serde_json::json;
use tokio::time::timeout;
use wrenn_control::Limits;
use wrenn_testkit::{Api, MailServer};

use crate::{
    accounts::{PASSWORD, as_user, login, new_user, serve_with_mail, token_of},
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// Time within which streams end, long before they would be checked in any case.
const AT_ONCE: Duration = Duration::from_secs(20);
/// Time after which a stream has looked once whether its session goes on: what ends it later must be told to it.
const FIRST_LOOK: Duration = Duration::from_millis(1500);
const OTHER_PASSWORD: &str = "staple battery horse";

/// Opens an event stream of a session at each server.
async fn open(servers: &[Api], token: &str) -> Result<Vec<Response>> {
    let mut streams = Vec::new();
    for server in servers {
        let request = server.request(Method::GET, "/v1/events/stream").bearer_auth(token);
        let response = request.send().await?;
        ensure!(response.status() == 200, "status {}", response.status());
        streams.push(response);
    }
    Ok(streams)
}

/// Waits until streams end.
async fn end(streams: Vec<Response>, what: &str) -> Result<()> {
    for mut stream in streams {
        let until_end = async { while stream.chunk().await.ok().flatten().is_some() {} };
        timeout(AT_ONCE, until_end).await.with_context(|| format!("{what}: a stream goes on"))?;
    }
    Ok(())
}

/// Lets a session make a sandbox, and waits until its streams tell of it.
async fn go_on(streams: &mut [Response], api: &Api, token: &str, what: &str) -> Result<()> {
    let body = json!({"memory_mb": 256});
    let made = as_user(api, Method::POST, "/v1/sandboxes", token, Some(&body)).await?.expect(201)?.json();
    let id = made["id"].as_str().context("no id")?;
    for stream in streams {
        let mut told = String::new();
        while !told.contains(id) {
            let next = timeout(SOON, stream.chunk()).await;
            let chunk = next.with_context(|| format!("{what}: no event"))??;
            let chunk = chunk.with_context(|| format!("{what}: a stream of another session ended"))?;
            told.push_str(&String::from_utf8_lossy(&chunk));
        }
    }
    Ok(())
}

/// What ends a session ends its streams at once, on every server. Those of sessions that go on tell of what comes.
pub(crate) async fn what_ends_a_session_ends_its_streams(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let mail = MailServer::start().await?;
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let api = serve_with_mail(&mut fixture, &mail).await?;
    let servers = [api.clone(), fixture.api.with_key("")];
    let [ada, bob, carol, dave] =
        ["ada", "bob", "carol", "dave"].map(|user| format!("{user}.ends@example.com"));
    for email in [&ada, &bob, &carol, &dave] {
        new_user(&api, &mail, email).await?;
    }
    let sign_in = async |email: &str| -> Result<(String, Vec<Response>)> {
        let token = token_of(&login(&api, email, PASSWORD).await?.expect(200)?)?;
        let streams = open(&servers, &token).await?;
        Ok((token, streams))
    };
    let (of_ada, mut streams_of_ada) = sign_in(&ada).await?;
    let (of_bob, mut streams_of_bob) = sign_in(&bob).await?;
    let (signing_out, signed_out) = sign_in(&ada).await?;
    let (ending, ended) = sign_in(&ada).await?;
    let (_, of_old_password) = sign_in(&ada).await?;
    let (_, of_lost_password) = sign_in(&carol).await?;
    let (deleting, deleted) = sign_in(&dave).await?;
    let (_, also_deleted) = sign_in(&dave).await?;
    tokio::time::sleep(FIRST_LOOK).await;

    as_user(&api, Method::POST, "/v1/auth/logout", &signing_out, None).await?.expect(204)?;
    end(signed_out, "a sign-out").await?;
    go_on(&mut streams_of_ada, &api, &of_ada, "a sign-out").await?;

    let listed = as_user(&api, Method::GET, "/v1/me/sessions", &ending, None).await?.expect(200)?.json();
    let own = listed.as_array().and_then(|all| all.iter().find(|one| one["is_current"] == true));
    let id = own.and_then(|own| own["id"].as_str()).context("no session")?;
    as_user(&api, Method::DELETE, &format!("/v1/me/sessions/{id}"), &of_ada, None).await?.expect(204)?;
    end(ended, "an end by another session").await?;
    go_on(&mut streams_of_ada, &api, &of_ada, "an end by another session").await?;

    let change = json!({"current_password": PASSWORD, "new_password": OTHER_PASSWORD});
    as_user(&api, Method::POST, "/v1/me/password", &of_ada, Some(&change)).await?.expect(204)?;
    end(of_old_password, "another password").await?;
    go_on(&mut streams_of_ada, &api, &of_ada, "another password").await?;

    api.post("/v1/auth/password-reset", &json!({"email": carol})).await?.expect(204)?;
    let link = mail.wait(&carol, 2).await?.token()?;
    let confirm = json!({"token": link, "new_password": OTHER_PASSWORD});
    api.post("/v1/auth/password-reset/confirm", &confirm).await?.expect(204)?;
    end(of_lost_password, "a reset password").await?;

    let delete = json!({"confirmation": dave, "current_password": PASSWORD});
    as_user(&api, Method::DELETE, "/v1/me", &deleting, Some(&delete)).await?.expect(204)?;
    end(deleted, "a deletion").await?;
    end(also_deleted, "a deletion").await?;
    go_on(&mut streams_of_bob, &api, &of_bob, "what others ended").await?;
    fixture.stop().await
}
