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
    extract::{Query, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::{
    StatusCode, Url,
    header::{AUTHORIZATION, CONNECTION, HeaderMap, HeaderValue, LOCATION, USER_AGENT},
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

/// An account of most cases.
pub(crate) const ADA: Account =
    Account { id: 583_231, login: "ada", email: "Ada@Example.com", verified: true };

/// Path of the exchange of codes.
pub(crate) const EXCHANGE: &str = "/login/oauth/access_token";
/// Path of the question whose account it is.
pub(crate) const USER: &str = "/api/user";
/// Size to which an answer is padded that is too large.
const HUGE: usize = 8 << 20;

/// How the provider fails.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    /// It answers that something before it fails.
    Status,
    /// It answers with a page.
    Page,
    /// It answers rightly, and goes on with white space.
    Huge,
    /// It does not answer.
    Stalls,
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
    /// Path whose requests fail, and how.
    trouble: Option<(&'static str, Trouble)>,
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
        let asked_by_servers = Router::new()
            .route(EXCHANGE, post(exchange))
            .route(USER, get(user))
            .route("/api/user/emails", get(emails))
            .layer(middleware::from_fn_with_state(known.clone(), fail));
        let router = Router::new()
            .route("/login/oauth/authorize", get(authorize))
            .merge(asked_by_servers)
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

    /// Lets requests of a path fail from now on, or none any more.
    pub(crate) fn fail(&self, trouble: Option<(&'static str, Trouble)>) {
        lock(&self.known).trouble = trouble;
    }

    /// Ends it: nobody listens any more.
    pub(crate) async fn stop(&mut self) {
        self.serving.abort();
        // It says that it was aborted.
        let _ = (&mut self.serving).await;
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

/// Lets a request fail if it is its turn. No connection is used twice: one that is kept would outlive the provider.
async fn fail(State(known): State<Shared>, request: Request, next: Next) -> Response {
    let trouble = lock(&known).trouble.filter(|(path, _)| *path == request.uri().path());
    let mut response = match trouble.map(|(_, how)| how) {
        None => next.run(request).await,
        Some(Trouble::Status) => StatusCode::BAD_GATEWAY.into_response(),
        Some(Trouble::Page) => "<html>back in a moment</html>".into_response(),
        Some(Trouble::Huge) => {
            let answer = next.run(request).await.into_body();
            let mut padded = axum::body::to_bytes(answer, HUGE).await.unwrap_or_default().to_vec();
            padded.resize(HUGE, b' ');
            padded.into_response()
        }
        Some(Trouble::Stalls) => std::future::pending().await,
    };
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
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
