// SPDX-License-Identifier: Apache-2.0
//! Cases of sign-in by accounts at GitHub, at a provider on this machine.

use std::{collections::BTreeMap, fs, sync::Arc};

use anyhow::{Context, Result, ensure};
use reqwest::{
    Client, Method, Url,
    header::{LOCATION, SET_COOKIE},
    redirect::Policy,
};
use serde_json::{Value, json};
use wrenn_control::Limits;
use wrenn_testkit::Reply;

use crate::{
    fixture::Fixture,
    github::{Account, CLIENT_ID, CLIENT_SECRET, GitHub},
    log_scan,
    stores::Stores,
};

const PUBLIC_URL: &str = "https://wrenn.test";
const BEGIN: &str = "/auth/oauth/github";
const ADA: Account = Account { id: 583_231, login: "ada", email: "Ada@Example.com", verified: true };

/// A server with a provider.
struct Site {
    fixture: Fixture,
    github: GitHub,
    url: String,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn start(stores: &Arc<Stores>, name: &str) -> Result<Self> {
        let mut fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
        let (github, dir) = (GitHub::start().await?, tempfile::tempdir()?);
        let file = dir.path().join("secret");
        log_scan::look_for(CLIENT_SECRET);
        fs::write(&file, format!("{CLIENT_SECRET}\n"))?;
        fixture.mail.public_url = Some(PUBLIC_URL.to_owned());
        fixture.oauth.github_client_id = Some(CLIENT_ID.to_owned());
        fixture.oauth.github_client_secret_file = Some(file);
        fixture.oauth.github_url.clone_from(&github.url);
        fixture.oauth.github_api_url = format!("{}/api", github.url);
        let url = fixture.serve().await?.url().to_owned();
        Ok(Self { fixture, github, url, _dir: dir })
    }
}

/// A browser: it keeps cookies, and goes where it is told to only when the test lets it.
#[derive(Default)]
struct Browser {
    cookies: BTreeMap<String, String>,
}

impl Browser {
    async fn ask(&mut self, site: &Site, method: Method, path: &str) -> Result<Reply> {
        let http = Client::builder().redirect(Policy::none()).build()?;
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut request = http.request(method.clone(), format!("{}{path}", site.url));
        request = request.header("Cookie", cookies.join("; "));
        if method != Method::GET
            && let Some(token) = self.cookies.get("wrenn_csrf")
        {
            request = request.header("X-CSRF-Token", token);
        }
        let reply = site.fixture.api.send(request).await?;
        for cookie in reply.headers.get_all(SET_COOKIE) {
            let (pair, attributes) =
                cookie.to_str()?.split_once(';').context("a cookie without attributes")?;
            let (name, value) = pair.split_once('=').context("a cookie without a value")?;
            ensure!(attributes.contains("SameSite=Lax"), "{name}:{attributes}");
            ensure!(attributes.contains("HttpOnly") != (name == "wrenn_csrf"), "{name}:{attributes}");
            if attributes.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                log_scan::look_for(value);
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(reply)
    }

    async fn get(&mut self, site: &Site, path: &str) -> Result<Reply> {
        self.ask(site, Method::GET, path).await
    }

    /// Follows a redirection to another place, without going there.
    async fn sent(&mut self, site: &Site, path: &str) -> Result<String> {
        let reply = self.get(site, path).await?.expect(303)?;
        Ok(reply.headers[LOCATION].to_str()?.to_owned())
    }

    /// Begins a sign-in, agrees to it as this account, and returns the path at which the browser comes back.
    async fn agree(&mut self, site: &Site, account: &Account, begin: &str) -> Result<String> {
        let to = self.sent(site, begin).await?;
        back(&site.github.agree(account, &to).await?)
    }

    /// Signs in as this account, and returns where the browser goes on.
    async fn enter(&mut self, site: &Site, account: &Account, begin: &str) -> Result<String> {
        let back = self.agree(site, account, begin).await?;
        self.sent(site, &back).await
    }

    /// Connects this account, and returns where the browser goes on.
    async fn connect(&mut self, site: &Site, account: &Account) -> Result<String> {
        let path = "/v1/me/providers/github/connect?return_to=/settings";
        let url = self.get(site, path).await?.expect(200)?.json()["auth_url"].clone();
        let to = site.github.agree(account, url.as_str().context("no URL")?).await?;
        self.sent(site, &back(&to)?).await
    }

    async fn me(&mut self, site: &Site) -> Result<Value> {
        Ok(self.get(site, "/v1/me").await?.expect(200)?.json())
    }
}

/// Path of the callback to which a provider sends a browser back.
fn back(to: &Url) -> Result<String> {
    let path = to.as_str().strip_prefix(PUBLIC_URL).context("the browser is sent elsewhere")?;
    ensure!(path.starts_with("/auth/oauth/github/callback?code="), "{path}");
    Ok(path.to_owned())
}

/// A browser that begins comes back to where it was, with a session; nothing of that works twice, or in another browser.
pub(crate) async fn a_provider_signs_up_and_in(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let site = Site::start(stores, name).await?;
    let mut browser = Browser::default();
    ensure!(browser.enter(&site, &ADA, BEGIN).await? == "/?oauth_error=no_account");
    let signup = format!("{BEGIN}?intent=signup&return_to=/settings%3Fa%3Db%23c");
    let back = browser.agree(&site, &ADA, &signup).await?;
    let begun = browser.cookies.clone();
    ensure!(browser.sent(&site, &back).await? == "/settings?a=b#c");
    ensure!(!browser.cookies.contains_key("wrenn_oauth"), "{:?}", browser.cookies);
    let me = browser.me(&site).await?;
    ensure!(me["email"] == "ada@example.com" && me["name"] == "ada", "{me}");
    ensure!(me["providers"] == json!(["github"]) && me["has_password"] == false, "{me}");
    ensure!(me["role"] == "owner", "it has no team: {me}");

    // The same once more, also with the half of the browser.
    let mut again = Browser { cookies: begun };
    ensure!(again.sent(&site, &back).await? == "/?oauth_error=invalid_state");
    again.get(&site, "/v1/me").await?.expect_error(401, "unauthorized")?;

    // What one browser has begun, another one cannot end; after its try nobody can.
    let (mut victim, mut thief) = (Browser::default(), Browser::default());
    let back = victim.agree(&site, &ADA, BEGIN).await?;
    thief.agree(&site, &ADA, BEGIN).await?;
    ensure!(thief.sent(&site, &back).await? == "/?oauth_error=invalid_state");
    ensure!(victim.sent(&site, &back).await? == "/?oauth_error=invalid_state");
    // Nor does a browser end what it has not begun.
    let back = thief.agree(&site, &ADA, BEGIN).await?;
    ensure!(Browser::default().sent(&site, &back).await? == "/?oauth_error=invalid_state");
    ensure!(thief.sent(&site, &back).await? == "/");
    ensure!(site.github.refused() == 0, "a code was tried that belongs to another browser");

    // A code of another sign-in is worth nothing without the verifier that it was given for.
    let mut other = Browser::default();
    let (first, second) = (other.agree(&site, &ADA, BEGIN).await?, other.agree(&site, &ADA, BEGIN).await?);
    let code = |path: &str| path.split(['=', '&']).nth(1).map(str::to_owned).context("no code");
    let mixed = second.replace(&code(&second)?, &code(&first)?);
    ensure!(other.sent(&site, &mixed).await? == "/?oauth_error=exchange_failed");
    ensure!(site.github.refused() == 1, "{}", site.github.refused());

    // Who refuses, comes back without a code.
    let to: Url = other.sent(&site, BEGIN).await?.parse()?;
    let state = to.query_pairs().find(|(name, _)| name == "state").context("no state")?.1.into_owned();
    let denied = format!("{BEGIN}/callback?error=access_denied&error_description=x&state={state}");
    ensure!(other.sent(&site, &denied).await? == "/?oauth_error=access_denied");

    for wrong in ["?return_to=//example.com", "?return_to=https://example.com", "?intent=x", "?next=/"] {
        other.get(&site, &format!("{BEGIN}{wrong}")).await?.expect_error(400, "invalid_request")?;
    }
    other.get(&site, "/auth/oauth/gitlab").await?.expect_error(404, "not_found")?;
    let old = "SELECT count(*)::text FROM oauth_states WHERE is_signup";
    ensure!(site.fixture.value(old).await? == "0");
    site.fixture.stop().await
}

/// Nobody gets an account by an address that the provider has not verified, or that is somebody else's here.
pub(crate) async fn a_provider_takes_nobodys_account(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let site = Site::start(stores, name).await?;
    let signup = format!("{BEGIN}?intent=signup");
    let enter = async |account: &Account| Browser::default().enter(&site, account, &signup).await;
    let unverified = Account { verified: false, ..ADA };
    ensure!(enter(&unverified).await? == "/?oauth_error=email_not_verified");
    ensure!(enter(&ADA).await? == "/");
    let same_address = Account { id: 1, login: "eve", email: "ada@example.com", verified: true };
    ensure!(enter(&same_address).await? == "/?oauth_error=email_taken");
    // It is the account that counts, not its address.
    let moved = Account { email: "ada@example.org", ..ADA };
    let mut browser = Browser::default();
    ensure!(browser.enter(&site, &moved, &signup).await? == "/");
    ensure!(browser.me(&site).await?["email"] == "ada@example.com");
    site.fixture.sql("UPDATE users SET status = 'disabled'").await?;
    ensure!(enter(&ADA).await? == "/?oauth_error=account_disabled");
    let users = site.fixture.value("SELECT count(*)::text FROM users").await?;
    ensure!(users == "1", "{users} users");
    // Refusals are in the log of the platform, too.
    let refused =
        "SELECT count(*)::text FROM audit_log WHERE action = 'account.log_in' AND outcome = 'refused'";
    site.fixture.wait_value(refused, "3").await?;
    site.fixture.stop().await
}

/// Users connect and disconnect accounts, and cannot shut themselves out.
pub(crate) async fn accounts_are_connected_and_disconnected(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let site = Site::start(stores, name).await?;
    let signup = format!("{BEGIN}?intent=signup");
    let (mut ada, mut grace) = (Browser::default(), Browser::default());
    let of_grace = Account { id: 2, login: "grace", email: "grace@example.com", verified: true };
    ensure!(ada.enter(&site, &ADA, &signup).await? == "/");
    ensure!(grace.enter(&site, &of_grace, &signup).await? == "/");
    let path = "/v1/me/providers/github";
    ada.ask(&site, Method::DELETE, path).await?.expect_error(409, "last_login_method")?;
    // As after the user has set a password.
    let password = "UPDATE users SET password_hash = 'x' WHERE email = 'ada@example.com'";
    site.fixture.sql(password).await?;
    ada.ask(&site, Method::DELETE, path).await?.expect(204)?;
    ada.ask(&site, Method::DELETE, path).await?.expect_error(404, "not_found")?;
    ensure!(ada.me(&site).await?["providers"] == json!([]));
    ensure!(Browser::default().enter(&site, &ADA, BEGIN).await? == "/?oauth_error=no_account");

    ensure!(ada.connect(&site, &of_grace).await? == "/settings?oauth_error=already_connected");
    ensure!(ada.connect(&site, &ADA).await? == "/settings?connected=github");
    ensure!(ada.connect(&site, &ADA).await? == "/settings?connected=github", "it is not repeated");
    let second = Account { id: 3, ..ADA };
    ensure!(ada.connect(&site, &second).await? == "/settings?oauth_error=already_connected");
    ensure!(Browser::default().enter(&site, &ADA, BEGIN).await? == "/");

    // A session that ends in between connects nothing.
    let url = ada.get(&site, &format!("{path}/connect")).await?.expect(200)?.json()["auth_url"].clone();
    let to = site.github.agree(&second, url.as_str().context("no URL")?).await?;
    site.fixture.sql("UPDATE sessions SET revoked_at = now()").await?;
    ensure!(ada.sent(&site, &back(&to)?).await? == "/?oauth_error=session_ended");

    // An API key is nobody's account.
    let key = site.fixture.api.get(&format!("{path}/connect")).await?;
    key.expect_error(403, "forbidden")?;
    site.fixture.stop().await
}
