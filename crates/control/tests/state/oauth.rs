// SPDX-License-Identifier: Apache-2.0
//! Cases of sign-in by accounts at GitHub, at a provider on this machine.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::json;

use crate::{
    accounts::PASSWORD,
    browser::{BEGIN, Browser, Site},
    github::{ADA, Account},
    people::User,
    stores::Stores,
};

/// A browser that begins comes back to where it was, with a session; nothing of that works twice, or in another browser.
pub(crate) async fn a_provider_signs_up_and_in(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let site = Site::start(stores, name).await?;
    let mut browser = Browser::default();
    ensure!(browser.enter(&site, &ADA, BEGIN).await? == "/?oauth_error=no_account");
    let signup = format!("{BEGIN}?intent=signup&return_to=/settings%3Fa%3Db%23c");
    let back = browser.agree(&site, &ADA, &signup).await?;
    let mut again = browser.clone();
    ensure!(browser.sent(&site, &back).await? == "/settings?a=b#c");
    ensure!(browser.begun() == 0, "{browser:?}");
    let me = browser.me(&site).await?;
    ensure!(me["email"] == "ada@example.com" && me["name"] == "ada", "{me}");
    ensure!(me["providers"] == json!(["github"]) && me["has_password"] == false, "{me}");
    ensure!(me["role"] == "owner", "it has no team: {me}");

    // The same once more, also with the half of the browser.
    ensure!(again.sent(&site, &back).await? == "/?oauth_error=invalid_state");
    again.is_nobody(&site).await?;

    // What one browser has begun, another one cannot end, and does not spoil.
    let (mut victim, mut thief) = (Browser::default(), Browser::default());
    let back = victim.agree(&site, &ADA, BEGIN).await?;
    thief.agree(&site, &ADA, BEGIN).await?;
    ensure!(thief.sent(&site, &back).await? == "/?oauth_error=invalid_state");
    thief.is_nobody(&site).await?;
    ensure!(victim.sent(&site, &back).await? == "/");
    // If it makes up the cookie, nobody can end it after its try.
    let back = victim.agree(&site, &ADA, BEGIN).await?;
    thief.forge(&victim);
    ensure!(thief.sent(&site, &back).await? == "/?oauth_error=invalid_state");
    thief.is_nobody(&site).await?;
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
    let denied = other.refuse(&site, BEGIN).await?;
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

/// The address of an account with a password leads nobody into it; its user signs in by the password, connects the provider, and then
/// signs in by this, too.
pub(crate) async fn a_user_with_a_password_connects_a_provider(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let site = Site::start(stores, name).await?;
    let user = User::new(&site.fixture, "ada.taken", false).await?;
    user.post("/v1/me/password", &json!({"new_password": PASSWORD})).await?.expect(204)?;
    let account = Account { email: "Ada.Taken@wrenn.test", ..ADA };
    for (intent, refusal) in [("signup", "email_taken"), ("login", "no_account")] {
        let mut stranger = Browser::default();
        let went = stranger.enter(&site, &account, &format!("{BEGIN}?intent={intent}")).await?;
        ensure!(went == format!("/?oauth_error={refusal}"), "{intent}: {went}");
        stranger.is_nobody(&site).await?;
    }
    let mut browser = Browser::default();
    browser.log_in(&site, &user.email, PASSWORD).await?;
    ensure!(browser.connect(&site, &account).await? == "/settings?connected=github");
    let mut browser = Browser::default();
    ensure!(browser.enter(&site, &account, BEGIN).await? == "/");
    let me = browser.me(&site).await?;
    ensure!(me["email"] == user.email.as_str() && me["has_password"] == true, "{me}");
    ensure!(me["providers"] == json!(["github"]), "{me}");
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
    ada.ask(&site, Method::DELETE, path, None).await?.expect_error(409, "last_login_method")?;
    // As after the user has set a password.
    let password = "UPDATE users SET password_hash = 'x' WHERE email = 'ada@example.com'";
    site.fixture.sql(password).await?;
    ada.ask(&site, Method::DELETE, path, None).await?.expect(204)?;
    ada.ask(&site, Method::DELETE, path, None).await?.expect_error(404, "not_found")?;
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
    ensure!(ada.sent(&site, site.path(&to)?).await? == "/?oauth_error=session_ended");

    // An API key is nobody's account.
    let key = site.fixture.api.get(&format!("{path}/connect")).await?;
    key.expect_error(403, "forbidden")?;
    site.fixture.stop().await
}
