// SPDX-License-Identifier: Apache-2.0
//! Browsers of cases, and a server with a provider of accounts, to which they sign in.

use std::{fs, sync::Arc};

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
/// Where a sign-in begins.
pub(crate) const BEGIN: &str = "/auth/oauth/github";
/// Beginning of the names of cookies of sign-ins that have begun.
const BEGUN: &str = "wrenn_oauth_";

/// A server with a provider, behind a reverse proxy.
pub(crate) struct Site {
    pub(crate) fixture: Fixture,
    pub(crate) github: GitHub,
    /// URL of the server itself.
    url: String,
    /// URL at which browsers reach it, without a slash at its end.
    public_url: &'static str,
    _dir: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn start(stores: &Arc<Stores>, name: &str) -> Result<Self> {
        Self::start_at(stores, name, PUBLIC_URL).await
    }

    /// Starts a server that browsers reach at a URL, whose path the reverse proxy takes away.
    pub(crate) async fn start_at(stores: &Arc<Stores>, name: &str, public_url: &'static str) -> Result<Self> {
        let mut fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
        let (github, dir) = (GitHub::start().await?, tempfile::tempdir()?);
        let file = dir.path().join("secret");
        log_scan::look_for(CLIENT_SECRET);
        fs::write(&file, format!("{CLIENT_SECRET}\n"))?;
        fixture.mail.public_url = Some(public_url.to_owned());
        fixture.proxy.trusted = Some("127.0.0.0/8".to_owned());
        fixture.oauth.github_client_id = Some(CLIENT_ID.to_owned());
        fixture.oauth.github_client_secret_file = Some(file);
        fixture.oauth.github_url.clone_from(&github.url);
        fixture.oauth.github_api_url = format!("{}/api", github.url);
        let url = fixture.serve().await?.url().to_owned();
        Ok(Self { fixture, github, url, public_url, _dir: dir })
    }

    /// Path for the server of a URL for browsers.
    pub(crate) fn path<'a>(&self, url: &'a Url) -> Result<&'a str> {
        let path = url.as_str().strip_prefix(self.public_url).filter(|path| path.starts_with('/'));
        path.with_context(|| format!("the browser is sent to {url}, which is not below {}", self.public_url))
    }

    /// Path of the callback to which a provider sends a browser back.
    fn back(&self, to: &Url) -> Result<String> {
        let path = self.path(to)?;
        ensure!(path.starts_with("/auth/oauth/github/callback?code="), "{path}");
        Ok(path.to_owned())
    }
}

#[derive(Debug, Clone)]
struct Cookie {
    name: String,
    value: String,
    path: String,
}

/// A browser: it keeps cookies, sends them where they count, and goes where it is told to only when the case lets it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Browser {
    /// Those that were set first come first.
    cookies: Vec<Cookie>,
    /// Address of which the reverse proxy says that the browser has it, and that it comes by HTTPS.
    address: Option<&'static str>,
}

impl Browser {
    /// A browser on another machine, which reaches the server by HTTPS.
    pub(crate) fn at(address: &'static str) -> Self {
        Self { cookies: Vec::new(), address: Some(address) }
    }

    /// Sends a request for a path of the server, with JSON if there is any.
    pub(crate) async fn ask(
        &mut self,
        site: &Site,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Reply> {
        let http = Client::builder().redirect(Policy::none()).build()?;
        let asked: Url = format!("{}{path}", site.public_url).parse()?;
        let sent = self.cookies.iter().filter(|cookie| asked.path().starts_with(&cookie.path));
        let sent: Vec<_> = sent.map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect();
        let mut request = http.request(method.clone(), format!("{}{path}", site.url));
        request = request.header("Cookie", sent.join("; "));
        if let Some(address) = self.address {
            request = request.header("X-Forwarded-For", address).header("X-Forwarded-Proto", "https");
            // Nobody believes it: where browsers go is configured.
            request = request.header("X-Forwarded-Host", "elsewhere.test");
        }
        if method != Method::GET
            && let Some(token) = self.cookie("csrf")
        {
            request = request.header("X-CSRF-Token", token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let reply = site.fixture.api.send(request).await?;
        for cookie in reply.headers.get_all(SET_COOKIE) {
            self.keep(cookie.to_str()?)?;
        }
        Ok(reply)
    }

    fn keep(&mut self, text: &str) -> Result<()> {
        let (pair, attributes) = text.split_once(';').context("a cookie without attributes")?;
        let (name, value) = pair.split_once('=').context("a cookie without a value")?;
        let attributes: Vec<&str> = attributes.split(';').map(str::trim).collect();
        let path =
            attributes.iter().find_map(|one| one.strip_prefix("Path=")).context("a cookie without a path")?;
        ensure!(attributes.contains(&"SameSite=Lax"), "{name}: {attributes:?}");
        ensure!(attributes.contains(&"HttpOnly") != name.ends_with("wrenn_csrf"), "{name}: {attributes:?}");
        ensure!(attributes.contains(&"Secure") == self.address.is_some(), "{name}: {attributes:?}");
        let known = self.cookies.iter().position(|cookie| cookie.name == name && cookie.path == path);
        match known {
            Some(known) if attributes.contains(&"Max-Age=0") => drop(self.cookies.remove(known)),
            None if attributes.contains(&"Max-Age=0") => {}
            Some(known) => value.clone_into(&mut self.cookies[known].value),
            None => self.cookies.push(Cookie {
                name: name.to_owned(),
                value: value.to_owned(),
                path: path.to_owned(),
            }),
        }
        log_scan::look_for(value);
        Ok(())
    }

    /// Value of the cookie `wrenn_NAME`, also if it is that of HTTPS.
    pub(crate) fn cookie(&self, name: &str) -> Option<&str> {
        let is_one = |cookie: &&Cookie| {
            let own = cookie.name.strip_prefix("__Host-").unwrap_or(&cookie.name);
            own.strip_prefix("wrenn_") == Some(name)
        };
        self.cookies.iter().find(is_one).map(|cookie| cookie.value.as_str())
    }

    /// Number of sign-ins that have begun and not ended.
    pub(crate) fn begun(&self) -> usize {
        self.cookies.iter().filter(|cookie| cookie.name.starts_with(BEGUN)).count()
    }

    /// Takes over what another tab of the same browser was given.
    pub(crate) fn join(&mut self, tab: Self) {
        let is_new = |cookie: &Cookie| self.cookies.iter().all(|known| known.name != cookie.name);
        let new: Vec<Cookie> = tab.cookies.into_iter().filter(is_new).collect();
        self.cookies.extend(new);
    }

    /// Makes up cookies for the sign-ins that another browser has begun.
    pub(crate) fn forge(&mut self, other: &Self) {
        let begun = other.cookies.iter().filter(|cookie| cookie.name.starts_with(BEGUN));
        let forged = begun.map(|cookie| Cookie { value: "made-up-by-a-thief".to_owned(), ..cookie.clone() });
        self.cookies.extend(forged);
    }

    pub(crate) async fn get(&mut self, site: &Site, path: &str) -> Result<Reply> {
        self.ask(site, Method::GET, path, None).await
    }

    /// Follows a redirection to another place, without going there.
    pub(crate) async fn sent(&mut self, site: &Site, path: &str) -> Result<String> {
        let reply = self.get(site, path).await?.expect(303)?;
        Ok(reply.headers[LOCATION].to_str()?.to_owned())
    }

    /// Begins a sign-in, agrees to it as this account, and returns the path at which the browser comes back.
    pub(crate) async fn agree(&mut self, site: &Site, account: &Account, begin: &str) -> Result<String> {
        let to = self.sent(site, begin).await?;
        site.back(&site.github.agree(account, &to).await?)
    }

    /// Begins a sign-in, refuses it at the provider, and returns the path at which the browser comes back.
    pub(crate) async fn refuse(&mut self, site: &Site, begin: &str) -> Result<String> {
        let to: Url = self.sent(site, begin).await?.parse()?;
        let state = to.query_pairs().find(|(name, _)| name == "state").context("no state")?.1.into_owned();
        Ok(format!("{BEGIN}/callback?error=access_denied&error_description=x&state={state}"))
    }

    /// Signs in as this account, and returns where the browser goes on.
    pub(crate) async fn enter(&mut self, site: &Site, account: &Account, begin: &str) -> Result<String> {
        let back = self.agree(site, account, begin).await?;
        self.sent(site, &back).await
    }

    /// Signs in by a password.
    pub(crate) async fn log_in(&mut self, site: &Site, email: &str, password: &str) -> Result<()> {
        log_scan::look_for(password);
        let body = json!({"email": email, "password": password, "cookie": true});
        self.ask(site, Method::POST, "/v1/auth/login", Some(&body)).await?.expect(200).map(drop)
    }

    /// Connects this account, and returns where the browser goes on.
    pub(crate) async fn connect(&mut self, site: &Site, account: &Account) -> Result<String> {
        let path = "/v1/me/providers/github/connect?return_to=/settings";
        let url = self.get(site, path).await?.expect(200)?.json()["auth_url"].clone();
        let to = site.github.agree(account, url.as_str().context("no URL")?).await?;
        self.sent(site, &site.back(&to)?).await
    }

    pub(crate) async fn me(&mut self, site: &Site) -> Result<Value> {
        Ok(self.get(site, "/v1/me").await?.expect(200)?.json())
    }

    /// Fails if the browser is signed in.
    pub(crate) async fn is_nobody(&mut self, site: &Site) -> Result<()> {
        self.get(site, "/v1/me").await?.expect_error(401, "unauthorized").map(drop)
    }
}
