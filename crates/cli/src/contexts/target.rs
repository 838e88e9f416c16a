// SPDX-License-Identifier: Apache-2.0
//! Where the client goes and as whom: flags and the environment are stronger than the context that is used.

use anyhow::Result;
use wrenn_api::Secret;
use wrenn_client::Client;

use super::file::{Context, Contexts, DEFAULT};
use crate::{
    config::{Config, same_url},
    failure::Failure,
};

/// Where the client goes, and by what it signs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Name of the context.
    pub(crate) context: String,
    pub(crate) url: String,
    pub(crate) credential: Credential,
}

/// By what the client signs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// An API key.
    Key(Secret),
    /// The token of a user's session.
    Token(Secret),
}

impl Target {
    /// Finds it out.
    pub(crate) fn of(config: &Config) -> Result<Self> {
        Self::among(config, &Contexts::load(config.file())?)
    }

    fn among(config: &Config, contexts: &Contexts) -> Result<Self> {
        let (context, stored) = used(config, contexts)?;
        let url = match (config.given("url"), stored) {
            (Some(url), _) => url.to_owned(),
            (None, Some(stored)) if context != DEFAULT => stored.url.clone(),
            _ => config.url(),
        };
        let credential = credential(config, &context, stored, &url)?;
        Ok(Self { context, url, credential })
    }

    /// Creates the client.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(match &self.credential {
            Credential::Key(key) => Client::new(&self.url, Some(key.reveal()))?,
            Credential::Token(token) => Client::with_token(&self.url, token.reveal())?,
        })
    }
}

/// Returns the name of the context that is used, and what is known of it. Only the default one may be without.
pub(crate) fn used<'a>(config: &Config, contexts: &'a Contexts) -> Result<(String, Option<&'a Context>)> {
    let name = config.context().or_else(|| contexts.current.clone()).unwrap_or_else(|| DEFAULT.to_owned());
    let stored = contexts.get(&name);
    if stored.is_none() && name != DEFAULT {
        return Err(unknown(&name, contexts));
    }
    Ok((name, stored))
}

/// The error of a context that is not known.
pub(super) fn unknown(name: &str, contexts: &Contexts) -> anyhow::Error {
    let known = contexts.contexts.keys().map(String::as_str).filter(|name| *name != DEFAULT);
    let known: Vec<_> = [DEFAULT].into_iter().chain(known).collect();
    let message = format!(
        "there is no context {name:?}: there are {}; `wrenn login --url URL --use-context {name}` makes it",
        known.join(", ")
    );
    Failure::new("invalid_configuration", message).into()
}

/// Returns by what the client signs in to this URL. What is kept for a server is sent to no other one.
fn credential(config: &Config, context: &str, stored: Option<&Context>, url: &str) -> Result<Credential> {
    if let Some(key) = config.given("api_key") {
        return Ok(Credential::Key(Secret::from(key.to_owned())));
    }
    let of_another = |stored: &&Context| !same_url(&stored.url, url);
    let kept = stored.filter(|stored| !of_another(stored)).and_then(Context::credential);
    match kept {
        Some(credential) => Ok(credential),
        None if context == DEFAULT => Ok(Credential::Key(Secret::from(config.api_key_for(url)?.to_owned()))),
        None => {
            let why = match stored.filter(of_another) {
                Some(stored) => format!("what it has is for {} and is not sent to {url}", stored.url),
                None => format!("it is not signed in to {url}"),
            };
            let message = format!("context {context}: {why}: `wrenn login`, or set WRENN_API_KEY");
            Err(Failure::new("no_api_key", message).into())
        }
    }
}

impl Context {
    fn credential(&self) -> Option<Credential> {
        let token = self.token.clone().map(Credential::Token);
        token.or_else(|| self.api_key.clone().map(Credential::Key))
    }
}

/// The context that a sign-in is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) context: String,
    pub(crate) url: String,
}

impl Place {
    /// Returns the context that a sign-in is for: the one that is named; else that of the URL that is given, which may be new; else
    /// the one that is used.
    pub(crate) fn of(config: &Config, contexts: &Contexts, link: Option<&str>) -> Result<Self> {
        let given = config.given("url").or(link);
        let named = config.given("context").map(str::to_owned);
        let Some(url) = given else {
            let (context, stored) = used(config, contexts)?;
            let stored = stored.filter(|_| context != DEFAULT);
            let url = stored.map_or_else(|| config.url(), |stored| stored.url.clone());
            return Ok(Self { context, url });
        };
        let context = named.unwrap_or_else(|| contexts.name_for(url, &config.file_url()));
        if context == DEFAULT && !same_url(url, &config.file_url()) {
            let message = format!(
                "the context {DEFAULT} is that of {}, whose URL is {}: give another name by --use-context",
                config.file().display(),
                config.file_url()
            );
            return Err(Failure::new("invalid_configuration", message).into());
        }
        super::file::name(&context).map_err(|error| Failure::new("invalid_configuration", error))?;
        Ok(Self { context, url: url.trim_end_matches('/').to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: &str = "http://home:1";
    const PROD: &str = "https://prod.example";

    fn contexts(current: Option<&str>) -> Contexts {
        let context = |url: &str| Context::new(url.to_owned());
        let prod = Context { token: Some(Secret::from(format!("token of {PROD}"))), ..context(PROD) };
        let ci =
            Context { api_key: Some(Secret::from("key of ci".to_owned())), ..context("https://ci.example") };
        let all = [("prod", prod), ("ci", ci), ("empty", context("http://empty"))];
        let contexts = all.map(|(name, context)| (name.to_owned(), context)).into();
        Contexts { current: current.map(str::to_owned), contexts }
    }

    fn config(environment: &[(&str, &str)]) -> Result<Config> {
        Config::of_test("url = \"http://home:1\"\napi_key = \"file\"\n", environment)
    }

    fn found(current: Option<&str>, environment: &[(&str, &str)]) -> Result<(String, String, String)> {
        let target = Target::among(&config(environment)?, &contexts(current))?;
        let secret = match &target.credential {
            Credential::Key(secret) | Credential::Token(secret) => secret.reveal().to_owned(),
        };
        Ok((target.context, target.url, secret))
    }

    #[test]
    fn the_environment_is_stronger_than_the_context() -> Result<()> {
        for (current, environment, expected) in [
            (Some("prod"), &[("WRENN_CONTEXT", "ci")][..], ("ci", "https://ci.example", "key of ci")),
            (Some("prod"), &[], ("prod", PROD, "token of https://prod.example")),
            (None, &[], ("default", HOME, "file")),
            (Some("prod"), &[("WRENN_CONTEXT", "default")], ("default", HOME, "file")),
            (Some("prod"), &[("WRENN_API_KEY", "e")], ("prod", PROD, "e")),
            (Some("prod"), &[("WRENN_URL", "http://x"), ("WRENN_API_KEY", "e")], ("prod", "http://x", "e")),
        ] {
            let (context, url, secret) = found(current, environment)?;
            assert_eq!((context.as_str(), url.as_str(), secret.as_str()), expected, "{environment:?}");
        }
        Ok(())
    }

    #[test]
    fn what_is_kept_for_a_server_is_sent_to_no_other() {
        for (current, environment, told) in [
            (Some("prod"), &[("WRENN_URL", "http://x")][..], "is not sent to http://x"),
            (None, &[("WRENN_URL", "http://x")], "is not sent to http://x"),
            (Some("empty"), &[], "not signed in"),
            (Some("gone"), &[], "default, ci, empty, prod"),
        ] {
            let text = found(current, environment).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(text.contains(told), "{text}");
            assert!(!text.contains("token of"), "{text}");
        }
    }

    #[test]
    fn the_login_of_the_default_context_ends_with_its_url() -> Result<()> {
        let mut contexts = contexts(None);
        let token = contexts.contexts["prod"].token.clone();
        let login = Context { url: HOME.to_owned(), token, ..contexts.contexts["prod"].clone() };
        contexts.contexts.insert(DEFAULT.to_owned(), login);
        let target = |contexts: &Contexts| Target::among(&config(&[])?, contexts);
        assert!(matches!(target(&contexts)?.credential, Credential::Token(_)));
        contexts.contexts.get_mut(DEFAULT).expect("it").url = "http://home:2".to_owned();
        assert_eq!(target(&contexts)?.credential, Credential::Key(Secret::from("file".to_owned())));
        Ok(())
    }

    #[test]
    fn a_sign_in_is_for_a_context_of_its_url() -> Result<()> {
        let place = |environment: &[(&str, &str)], link: Option<&str>| {
            Place::of(&config(environment)?, &contexts(Some("prod")), link)
                .map(|place| (place.context, place.url))
        };
        let expected = |context: &str, url: &str| (context.to_owned(), url.to_owned());
        assert_eq!(place(&[], None)?, expected("prod", PROD));
        assert_eq!(place(&[], Some(HOME))?, expected("default", HOME));
        assert_eq!(place(&[], Some("https://new.example/"))?, expected("new.example", "https://new.example"));
        assert_eq!(
            place(&[("WRENN_URL", "https://ci.example/")], None)?,
            expected("ci", "https://ci.example")
        );
        let named = [("WRENN_CONTEXT", "mine"), ("WRENN_URL", "https://ci.example")];
        assert_eq!(place(&named, None)?, expected("mine", "https://ci.example"));
        assert!(place(&[("WRENN_CONTEXT", "default"), ("WRENN_URL", "http://x")], None).is_err());
        assert!(place(&[("WRENN_CONTEXT", "A B"), ("WRENN_URL", "http://x")], None).is_err());
        assert!(place(&[("WRENN_CONTEXT", "unknown")], None).is_err());
        Ok(())
    }
}
