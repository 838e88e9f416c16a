// SPDX-License-Identifier: Apache-2.0
//! GitHub as a provider of accounts: a code is exchanged for a token, which is used for two questions and then forgotten.

use std::{fs, time::Duration};

use anyhow::{Context, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::{Client, Response, Url, header::ACCEPT, redirect};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{config::OAuthSettings, secrets::hash};

/// Name of the provider, in paths and in the database.
pub(crate) const NAME: &str = "github";
/// Time limits of a connection and of a request.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// Maximum length of a response in bytes.
const ANSWER_MAX: usize = 256 << 10;
/// Maximum length of a code in bytes.
const CODE_MAX: usize = 512;
/// Maximum length of a name in characters.
const NAME_MAX: usize = 100;
/// What the token is for: the addresses of the account.
const SCOPE: &str = "user:email";

/// Client of GitHub, or of a GitHub Enterprise server.
pub(crate) struct GitHub {
    client: Client,
    id: String,
    secret: String,
    authorize: Url,
    token: Url,
    user: Url,
    emails: Url,
    callback: String,
}

/// An account at GitHub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// GitHub's id of it; its name may get another owner.
    pub(crate) subject: String,
    pub(crate) name: String,
    /// Its primary address, in small letters, if GitHub has verified it.
    pub(crate) email: Option<String>,
}

impl GitHub {
    /// Creates the client; `None` if it is not configured. Fails if the settings do not fit together.
    pub(crate) fn new(settings: &OAuthSettings, public_url: Option<&str>) -> anyhow::Result<Option<Self>> {
        let (id, file) = match (&settings.github_client_id, &settings.github_client_secret_file) {
            (None, None) => return Ok(None),
            (Some(id), Some(file)) => (id.clone(), file),
            _ => anyhow::bail!(
                "sign-in by GitHub needs both server.github_client_id and server.github_client_secret_file"
            ),
        };
        let public_url = public_url.context(
            "sign-in by GitHub needs server.public_url, the URL at which browsers reach the server",
        )?;
        let secret = fs::read_to_string(file).with_context(|| {
            format!("the file {} of server.github_client_secret_file cannot be read", file.display())
        })?;
        let secret = secret.trim().to_owned();
        ensure!(
            !secret.is_empty(),
            "the file {} of server.github_client_secret_file is empty",
            file.display()
        );
        let client = Client::builder()
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .redirect(redirect::Policy::none())
            .user_agent("wrenn")
            .build()
            .context("no HTTP client for GitHub can be made")?;
        let of = |key: &str, base: &str, path: &str| {
            let url = Url::parse(&format!("{}{path}", base.trim_end_matches('/')));
            url.with_context(|| format!("{key} is {base:?}: it must be a URL such as https://github.com"))
        };
        let web = |path| of("server.github_url", &settings.github_url, path);
        let api = |path| of("server.github_api_url", &settings.github_api_url, path);
        Ok(Some(Self {
            client,
            id,
            secret,
            authorize: web("/login/oauth/authorize")?,
            token: web("/login/oauth/access_token")?,
            user: api("/user")?,
            emails: api("/user/emails")?,
            callback: format!("{}/auth/oauth/{NAME}/callback", public_url.trim_end_matches('/')),
        }))
    }

    /// URL to which the browser goes. The browser's own secret is the verifier of PKCE: a code is worth nothing without it.
    pub(crate) fn authorize_url(&self, state: &str, browser: &str) -> String {
        let challenge = URL_SAFE_NO_PAD.encode(hash(browser));
        let mut url = self.authorize.clone();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.id)
            .append_pair("redirect_uri", &self.callback)
            .append_pair("scope", SCOPE)
            .append_pair("state", state)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        url.into()
    }

    /// Returns the account for which GitHub gave a code to a browser. The error is for the log: it has neither code nor token.
    pub(crate) async fn account(&self, code: &str, browser: &str) -> Result<Account, String> {
        if code.is_empty() || code.len() > CODE_MAX {
            return Err("the code is too long, or empty".to_owned());
        }
        let token = self.exchange(code, browser).await?;
        let user: User = self.ask(&self.user, &token).await?;
        let emails: Vec<Email> = self.ask(&self.emails, &token).await?;
        Ok(account(&user, emails))
    }

    async fn exchange(&self, code: &str, browser: &str) -> Result<String, String> {
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", self.id.as_str()),
            ("client_secret", self.secret.as_str()),
            ("code", code),
            ("redirect_uri", self.callback.as_str()),
            ("code_verifier", browser),
        ];
        let request = self.client.post(self.token.clone()).header(ACCEPT, "application/json").form(&form);
        let answer: Token = read(request.send().await.map_err(trouble)?).await?;
        // GitHub's errors have the status 200, too.
        answer.access_token.ok_or_else(|| {
            let error: String = answer.error.unwrap_or_default().chars().take(64).collect();
            format!("it gave no token: {error:?}")
        })
    }

    async fn ask<T: DeserializeOwned>(&self, url: &Url, token: &str) -> Result<T, String> {
        let request = self.client.get(url.clone()).bearer_auth(token);
        read(request.header(ACCEPT, "application/vnd.github+json").send().await.map_err(trouble)?).await
    }
}

/// Answer to a code.
#[derive(Deserialize)]
struct Token {
    access_token: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct User {
    id: u64,
    login: String,
    name: Option<String>,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "as in its JSON")]
struct Email {
    email: String,
    primary: bool,
    verified: bool,
}

fn account(user: &User, emails: Vec<Email>) -> Account {
    let given = user.name.as_deref().map(str::trim).filter(|name| !name.is_empty());
    let name = given.unwrap_or(&user.login).chars().filter(|letter| !letter.is_control());
    let primary = emails.into_iter().find(|email| email.primary && email.verified);
    Account {
        subject: user.id.to_string(),
        name: name.take(NAME_MAX).collect(),
        email: primary.map(|email| email.email.trim().to_lowercase()),
    }
}

/// Reads JSON of a bounded length.
async fn read<T: DeserializeOwned>(mut response: Response) -> Result<T, String> {
    let status = response.status();
    if !status.is_success() {
        return Err(format!("it answered with the status {}", status.as_u16()));
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(trouble)? {
        if body.len() + piece.len() > ANSWER_MAX {
            return Err(format!("its answer is longer than {ANSWER_MAX} bytes"));
        }
        body.extend_from_slice(&piece);
    }
    serde_json::from_slice(&body)
        .map_err(|error| format!("its answer is not understood: {:?}", error.classify()))
}

/// Describes an error of a request, without its URL.
fn trouble(error: reqwest::Error) -> String {
    format!("it cannot be reached: {:#}", anyhow::Error::from(error.without_url()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: Option<&str>) -> User {
        User { id: 583_231, login: "octocat".to_owned(), name: name.map(str::to_owned) }
    }

    fn email(email: &str, primary: bool, verified: bool) -> Email {
        Email { email: email.to_owned(), primary, verified }
    }

    #[test]
    fn only_a_verified_primary_address_counts() {
        let of = |emails| account(&user(None), emails).email;
        let both = vec![email("a@example.com", false, true), email("B@Example.com", true, true)];
        assert_eq!(of(both).as_deref(), Some("b@example.com"));
        assert_eq!(of(vec![email("a@example.com", false, true), email("b@example.com", true, false)]), None);
        assert_eq!(of(Vec::new()), None);
    }

    #[test]
    fn who_has_no_name_is_called_by_the_login() {
        let name = |name| account(&user(name), Vec::new()).name;
        assert_eq!(name(Some(" Mona\u{7} Octocat ")), "Mona Octocat");
        assert_eq!((name(None), name(Some("  "))), ("octocat".to_owned(), "octocat".to_owned()));
        assert_eq!(name(Some(&"é".repeat(200))).chars().count(), NAME_MAX);
    }

    #[test]
    fn settings_that_do_not_fit_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("secret");
        fs::write(&file, "s3cret\n").expect("written");
        let settings = |id: Option<&str>, with_secret: bool| OAuthSettings {
            github_client_id: id.map(str::to_owned),
            github_client_secret_file: with_secret.then(|| file.clone()),
            ..OAuthSettings::default()
        };
        let url = Some("https://wrenn.example.com/");
        assert!(GitHub::new(&OAuthSettings::default(), None).is_ok_and(|none| none.is_none()));
        let told = |settings, url| match GitHub::new(&settings, url) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        assert!(told(settings(Some("id"), false), url).contains("server.github_client_secret_file"));
        assert!(told(settings(Some("id"), true), None).contains("server.public_url"));
        let bad = OAuthSettings { github_url: "github.com".to_owned(), ..settings(Some("id"), true) };
        assert!(told(bad, url).contains("server.github_url"));
        let github = GitHub::new(&settings(Some("id"), true), url).expect("valid").expect("configured");
        let begun = github.authorize_url("a state", "verifier");
        let begin = "https://github.com/login/oauth/authorize?response_type=code&client_id=id&";
        assert!(begun.starts_with(begin), "{begun}");
        assert!(
            begun
                .contains("redirect_uri=https%3A%2F%2Fwrenn.example.com%2Fauth%2Foauth%2Fgithub%2Fcallback&")
        );
        assert!(begun.contains("state=a+state&") && !begun.contains("=verifier"), "{begun}");
        assert!(!begun.contains("s3cret"), "{begun}");
        // RFC 7636: the hash of the verifier, and not the verifier.
        assert!(begun.contains("code_challenge=iMnq5o6zALKXGivsnlom_0F5_WYda32GHkxlV7mq7hQ&"), "{begun}");
    }
}
