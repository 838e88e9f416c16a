// SPDX-License-Identifier: Apache-2.0
//! Users of cases: made by the operator, signed in by a link, and calling with their tokens.

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_control::Admin;
use wrenn_testkit::{Api, Reply};

use crate::{fixture::Fixture, log_scan};

/// A user who has signed in.
pub(crate) struct User {
    api: Api,
    token: String,
    pub(crate) id: String,
    pub(crate) email: String,
    /// The user's own team.
    pub(crate) team: String,
}

impl User {
    /// Makes a user `NAME@wrenn.test` and signs them in.
    pub(crate) async fn new(fixture: &Fixture, name: &str, is_admin: bool) -> Result<Self> {
        let email = format!("{name}@wrenn.test");
        let admin = Admin::new(&fixture.stores.database_url(&fixture.database))?;
        let link = admin.create_user(&email, name, is_admin).await?;
        let api = fixture.api.with_key("");
        log_scan::look_for(link.token().reveal());
        let body = json!({"token": link.token().reveal()});
        let signed_in = api.post("/v1/auth/sign-in-link", &body).await?.expect(200)?.json();
        let text =
            |field: &str| signed_in[field].as_str().map(str::to_owned).with_context(|| format!("no {field}"));
        let token = text("token")?;
        log_scan::look_for(&token);
        Ok(Self { token, id: text("user_id")?, team: text("team_id")?, email, api })
    }

    /// Sends a request, with a JSON body if there is one.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Reply> {
        let request = self.api.request(method, path).bearer_auth(&self.token);
        self.api
            .send(match body {
                Some(body) => request.json(body),
                None => request,
            })
            .await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Reply> {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        self.send(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Reply> {
        self.send(Method::DELETE, path, None).await
    }

    /// Lets the session act for a team.
    pub(crate) async fn act_for(&self, team: &str) -> Result<()> {
        self.post("/v1/auth/switch-team", &json!({"team_id": team})).await?.expect(200).map(drop)
    }

    /// Opens the event stream, and returns the response.
    pub(crate) async fn events(&self) -> Result<reqwest::Response> {
        let request = self.api.request(Method::GET, "/v1/events/stream").bearer_auth(&self.token);
        let response = request.send().await?;
        ensure!(response.status() == 200, "status {}", response.status());
        Ok(response)
    }

    /// Makes another user a member of the user's own team.
    pub(crate) async fn let_in(&self, other: &Self, role: &str) -> Result<()> {
        let body = json!({"email": other.email, "role": role});
        let path = format!("/v1/teams/{}/invitations", self.team);
        let made = self.post(&path, &body).await?.expect(201)?.json();
        other
            .post("/v1/invitations/accept", &json!({"id": made["invitation"]["id"]}))
            .await?
            .expect(200)
            .map(drop)
    }
}

/// Message of an error.
pub(crate) fn told(reply: &Reply) -> String {
    reply.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
}
