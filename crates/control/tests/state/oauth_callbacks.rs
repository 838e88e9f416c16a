// SPDX-License-Identifier: Apache-2.0
//! Cases of how browsers come back from a provider: below a path, in several tabs, again and again, and while the provider fails.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Url};
use serde_json::json;
use tokio::time::timeout;
use wrenn_control::Admin;
use wrenn_testkit::Reply;

use crate::{
    browser::{BEGIN, Browser, Site},
    fixture::SOON,
    github::{ADA, EXCHANGE, Trouble, USER},
    log_scan,
    stores::Stores,
};

/// URL of a server that a reverse proxy serves below a path.
const BELOW: &str = "https://wrenn.test/wrenn";
const INVALID: &str = "/?oauth_error=invalid_state";

/// Begin of a sign-up that goes on at this path.
fn signup(return_to: &str) -> String {
    format!("{BEGIN}?intent=signup&return_to={return_to}")
}

/// A reverse proxy may serve Wrenn below a path: the provider, redirections, cookies, links and pages have it, and come back.
pub(crate) async fn a_server_below_a_path_keeps_it(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let site = Site::start_at(stores, name, BELOW).await?;
    let mut browser = Browser::at("192.0.2.50");
    let to: Url = browser.sent(&site, BEGIN).await?.parse()?;
    let callback = to.query_pairs().find(|(name, _)| name == "redirect_uri").context("no redirect_uri")?.1;
    ensure!(callback == format!("{BELOW}{BEGIN}/callback"), "{callback}");
    let went = browser.enter(&site, &ADA, BEGIN).await?;
    ensure!(went == "/wrenn/?oauth_error=no_account", "{went}");
    let back = browser.agree(&site, &ADA, &signup("/settings%3Fa%3Db%23c")).await?;
    let went = browser.sent(&site, &back).await?;
    ensure!(went == "/wrenn/settings?a=b#c", "{went}");
    let went = browser.sent(&site, &back).await?;
    ensure!(went == format!("/wrenn{INVALID}"), "{went}");
    let me = browser.me(&site).await?;
    ensure!(me["email"] == "ada@example.com", "{me}");
    let went = browser.connect(&site, &ADA).await?;
    ensure!(went == "/wrenn/settings?connected=github", "{went}");

    // What `wrenn up` tells.
    let link = Admin::new(&stores.database_url(name))?.first_admin_link().await?.context("no link")?;
    log_scan::look_for(link.token().reveal());
    let url: Url = link.url(BELOW).parse()?;
    ensure!(site.path(&url)?.starts_with("/account/sign-in#token="), "another link");
    pages_are_there(&site, &mut browser).await?;
    site.fixture.stop().await
}

/// Fails unless what the pages for browsers ask for is below the path of the server, and there.
async fn pages_are_there(site: &Site, browser: &mut Browser) -> Result<()> {
    let to = browser.sent(site, "/docs").await?;
    let viewer: Url = format!("{BELOW}/docs").parse::<Url>()?.join(&to)?;
    ensure!(site.path(&viewer)? == "/docs/", "{viewer}");
    for page in ["/account/activate", "/account/invitation", "/docs/"] {
        let html = text(&browser.get(site, page).await?.expect(200)?);
        let asked = [quoted(&html, "src=\""), quoted(&html, "href=\"")].concat();
        ensure!(asked.len() >= 2, "{page} asks for {asked:?}");
        for part in asked {
            let url = format!("{BELOW}{page}").parse::<Url>()?.join(part)?;
            browser.get(site, site.path(&url)?).await?.expect(200).with_context(|| url.to_string())?;
        }
    }
    let script = text(&browser.get(site, "/account/page.js").await?.expect(200)?);
    let calls = quoted(&script, "path: \"");
    ensure!(calls.len() == 4, "{calls:?}");
    for call in calls {
        let url = format!("{BELOW}/account/activate").parse::<Url>()?.join(call)?;
        let reply = browser.ask(site, Method::POST, site.path(&url)?, Some(&json!({}))).await?;
        // There is such an operation, and it wants a token.
        reply.expect_error(400, "invalid_request").with_context(|| url.to_string())?;
    }
    let viewed = text(&browser.get(site, "/docs/swagger-initializer.js").await?.expect(200)?);
    ensure!(viewed.contains("\"../openapi.json\""), "{viewed}");
    let document = browser.get(site, "/openapi.json").await?.expect(200)?.json();
    ensure!(document["servers"][0]["url"] == "/wrenn", "{}", document["servers"]);
    Ok(())
}

fn text(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.bytes).into_owned()
}

/// Returns what stands in quotation marks after each of these beginnings.
fn quoted<'a>(text: &'a str, beginning: &str) -> Vec<&'a str> {
    text.split(beginning).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// Two tabs of a browser begin sign-ins at once: each ends its own, in any order, and none takes anything from the other.
pub(crate) async fn two_tabs_sign_in_at_once(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let site = Site::start(stores, name).await?;
    ensure!(Browser::default().enter(&site, &ADA, &signup("/")).await? == "/");
    let begin = |tab: &str| format!("{BEGIN}?return_to=/{tab}");
    let mut browser = Browser::default();
    // Neither has the cookie of the other when it begins.
    let mut tab = browser.clone();
    let first = browser.agree(&site, &ADA, &begin("first")).await?;
    let second = tab.agree(&site, &ADA, &begin("second")).await?;
    browser.join(tab);
    ensure!(browser.begun() == 2, "{browser:?}");
    for (back, expected) in [(first, "/first"), (second, "/second")] {
        let went = browser.sent(&site, &back).await?;
        ensure!(went == expected, "{expected}: {went}");
        browser.me(&site).await?;
    }
    ensure!(browser.begun() == 0, "{browser:?}");

    let mut browser = Browser::default();
    let first = browser.agree(&site, &ADA, &begin("first")).await?;
    let refused = browser.refuse(&site, &begin("second")).await?;
    let went = browser.sent(&site, &refused).await?;
    ensure!(went == "/second?oauth_error=access_denied", "{went}");
    let went = browser.sent(&site, &first).await?;
    ensure!(went == "/first", "{went}");

    // A browser keeps some, and the oldest one is told to be over.
    let mut backs = Vec::new();
    for number in 0..9 {
        backs.push((number, browser.agree(&site, &ADA, &begin(&number.to_string())).await?));
    }
    ensure!(browser.begun() == 8, "{browser:?}");
    for (number, back) in backs {
        let went = browser.sent(&site, &back).await?;
        let expected = if number == 0 { INVALID.to_owned() } else { format!("/{number}") };
        ensure!(went == expected, "{expected}: {went}");
    }
    site.fixture.stop().await
}

/// A callback that is loaded again, as by the button back, signs in no more, and the session goes on. However often that is, others with
/// the same address sign in. Of two that are loaded at once, one signs in.
pub(crate) async fn a_callback_that_is_loaded_again(stores: &Arc<Stores>, name: &str) -> Result<()> {
    const ADDRESS: &str = "192.0.2.51";
    let site = Site::start(stores, name).await?;
    let sessions = "SELECT count(*)::text FROM sessions";
    let mut browser = Browser::at(ADDRESS);
    let back = browser.agree(&site, &ADA, &signup("/")).await?;
    ensure!(browser.sent(&site, &back).await? == "/");
    let session = browser.cookie("session").context("no session")?.to_owned();
    // More often than links are used from one address.
    for _ in 0..70 {
        let went = browser.sent(&site, &back).await?;
        ensure!(went == INVALID, "{went}");
    }
    ensure!(browser.cookie("session") == Some(session.as_str()), "it has another session, or none");
    browser.me(&site).await?;
    let number = site.fixture.value(sessions).await?;
    ensure!(number == "1", "{number} sessions");

    let mut other = Browser::at(ADDRESS);
    ensure!(other.enter(&site, &ADA, BEGIN).await? == "/");
    let back = other.agree(&site, &ADA, BEGIN).await?;
    let mut again = other.clone();
    let (one, two) = tokio::join!(other.sent(&site, &back), again.sent(&site, &back));
    let mut went = [one?, two?];
    went.sort();
    ensure!(went == ["/", INVALID], "{went:?}");
    let number = site.fixture.value(sessions).await?;
    ensure!(number == "3", "{number} sessions");
    ensure!(site.github.refused() == 0, "a code was used twice");
    site.fixture.stop().await
}

/// A provider that fails, stalls or answers without end or sense costs a bounded time, and is told; nobody is signed in, and a later
/// sign-in succeeds.
pub(crate) async fn a_provider_that_fails_is_told(stores: &Arc<Stores>, name: &str) -> Result<()> {
    const FAILED: &str = "/a?oauth_error=exchange_failed";
    let mut site = Site::start(stores, name).await?;
    let mut before = Browser::default();
    ensure!(before.enter(&site, &ADA, &signup("/")).await? == "/");
    let begin = format!("{BEGIN}?return_to=/a");
    for (path, trouble) in [
        (EXCHANGE, Trouble::Status),
        (EXCHANGE, Trouble::Page),
        (EXCHANGE, Trouble::Huge),
        (USER, Trouble::Status),
        (USER, Trouble::Page),
        (USER, Trouble::Huge),
        (USER, Trouble::Stalls),
    ] {
        site.github.fail(Some((path, trouble)));
        let mut browser = Browser::default();
        let went = timeout(SOON, browser.enter(&site, &ADA, &begin)).await;
        let went = went.with_context(|| format!("{path}, {trouble:?}: no answer"))??;
        ensure!(went == FAILED, "{path}, {trouble:?}: {went}");
        ensure!(browser.begun() == 0, "{path}, {trouble:?}: {browser:?}");
        browser.is_nobody(&site).await?;
    }
    site.github.fail(None);
    let mut browser = Browser::default();
    ensure!(browser.enter(&site, &ADA, &begin).await? == "/a");
    let back = browser.agree(&site, &ADA, &begin).await?;
    site.github.stop().await;
    let went = browser.sent(&site, &back).await?;
    ensure!(went == FAILED, "without a provider: {went}");
    // Whoever is signed in stays so.
    browser.me(&site).await?;
    before.me(&site).await?;
    site.fixture.stop().await
}
