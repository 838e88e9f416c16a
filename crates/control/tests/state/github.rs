// SPDX-License-Identifier: Apache-2.0
//! A provider on this machine that speaks GitHub's API: it gives codes to whoever asks as one of its accounts, and checks what a
//! server exchanges them with as GitHub does.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use axum::{
    Json, Router,
    extract::{Query, State},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::{
    StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, LOCATION, USER_AGENT},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::log_scan;

/// Id and secret of the app that is registered there.
pub(crate) const CLIENT_ID: &str = "Iv1.8a61f9b3a7aba766";
pub(crate) const CLIENT_SECRET: &str = "provider-secret-8f2c";

/// An account.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) id: u64,
    pub(crate) login: &'static str,
    pub(crate) email: &'static str,
    pub(crate) verified: bool,
}

/// A code that was given for an account.
struct Code {
    account: Account,
    redirect_uri: String,
    challenge: String,
}

#[derive(Default)]
struct Known {
    codes: HashMap<String, Code>,
    tokens: HashMap<String, Account>,
    given: u32,
    /// Number of exchanges that were refused.
    refused: u32,
}

/// The provider.
pub(crate) struct GitHub {
    pub(crate) url: String,
    known: Shared,
    serving: JoinHandle<()>,
}

type Shared = Arc<Mutex<Known>>;

fn lock(known: &Shared) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GitHub {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let known = Shared::default();
        let router = Router::new()
            .route("/login/oauth/authorize", get(authorize))
            .route("/login/oauth/access_token", post(exchange))
            .route("/api/user", get(user))
            .route("/api/user/emails", get(emails))
            .with_state(known.clone());
        let serving = tokio::spawn(async move {
            // It is aborted at the end.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, known, serving })
    }

    /// Lets an account agree to what a browser was sent here for, and returns the URL to which the browser is sent back.
    pub(crate) async fn agree(&self, account: &Account, url: &str) -> Result<Url> {
        anyhow::ensure!(url.starts_with(&self.url), "the browser goes to {url}");
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        let asked = http.get(url).header("x-account", serde_json::to_string(&described(account))?);
        let response = asked.send().await?;
        anyhow::ensure!(response.status() == 302, "the provider answers {}", response.text().await?);
        Ok(response.headers()[LOCATION].to_str()?.parse()?)
    }

    /// Number of exchanges that were refused.
    pub(crate) fn refused(&self) -> u32 {
        lock(&self.known).refused
    }
}

impl Drop for GitHub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn described(account: &Account) -> Value {
    json!([account.id, account.login, account.email, account.verified])
}

fn account_of(headers: &HeaderMap) -> Option<Account> {
    let text = headers.get("x-account")?.to_str().ok()?;
    let (id, login, email, verified): (u64, String, String, bool) = serde_json::from_str(text).ok()?;
    Some(Account { id, login: login.leak(), email: email.leak(), verified })
}

async fn authorize(
    State(known): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let field = |name: &str| query.get(name).cloned().unwrap_or_default();
    let fits = field("client_id") == CLIENT_ID
        && field("response_type") == "code"
        && field("scope") == "user:email"
        && field("code_challenge_method") == "S256"
        && field("state").len() >= 43;
    let (true, Some(account)) = (fits, account_of(&headers)) else {
        return (StatusCode::BAD_REQUEST, format!("{query:?}")).into_response();
    };
    let (redirect_uri, state) = (field("redirect_uri"), field("state"));
    let code = {
        let mut known = lock(&known);
        known.given += 1;
        let code = format!("code-of-the-provider-{}", known.given);
        log_scan::look_for(&code);
        let given = Code { account, redirect_uri: redirect_uri.clone(), challenge: field("code_challenge") };
        known.codes.insert(code.clone(), given);
        code
    };
    let back = format!("{redirect_uri}?code={code}&state={state}");
    (StatusCode::FOUND, [(LOCATION, back)]).into_response()
}

async fn exchange(State(known): State<Shared>, body: String) -> Json<Value> {
    let form =
        Url::parse(&format!("http://form/?{body}")).map(|url| url.query_pairs().into_owned().collect());
    let form: HashMap<String, String> = form.unwrap_or_default();
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let mut known = lock(&known);
    let code = known.codes.remove(field("code")).filter(|code| {
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(field("code_verifier")));
        field("client_id") == CLIENT_ID
            && field("client_secret") == CLIENT_SECRET
            && field("redirect_uri") == code.redirect_uri
            && challenge == code.challenge
    });
    let Some(code) = code else {
        known.refused += 1;
        // With the status 200, as GitHub's.
        return Json(json!({"error": "bad_verification_code"}));
    };
    let token = format!("gho_of_the_provider_{}", known.given);
    log_scan::look_for(&token);
    known.tokens.insert(token.clone(), code.account);
    Json(json!({"access_token": token, "token_type": "bearer", "scope": "user:email"}))
}

fn owner(known: &Shared, headers: &HeaderMap) -> Result<Account, StatusCode> {
    if !headers.contains_key(USER_AGENT) {
        return Err(StatusCode::FORBIDDEN);
    }
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let account = token.and_then(|token| lock(known).tokens.get(token).cloned());
    account.ok_or(StatusCode::UNAUTHORIZED)
}

async fn user(State(known): State<Shared>, headers: HeaderMap) -> Result<Json<Value>, StatusCode> {
    let account = owner(&known, &headers)?;
    // The address of the profile may be any.
    Ok(Json(json!({"id": account.id, "login": account.login, "name": null, "email": "profile@example.com"})))
}

async fn emails(State(known): State<Shared>, headers: HeaderMap) -> Result<Json<Value>, StatusCode> {
    let account = owner(&known, &headers)?;
    Ok(Json(json!([
        {"email": "other@example.com", "primary": false, "verified": true, "visibility": null},
        {"email": account.email, "primary": true, "verified": account.verified, "visibility": "private"},
    ])))
}
