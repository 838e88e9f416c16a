// SPDX-License-Identifier: Apache-2.0
//! File of the contexts: the servers that the client knows, and by what it signs in to each. It is beside the configuration
//! file, only its owner can read it, and only this program writes it.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use wrenn_api::Secret;

use crate::{client_config, config::same_url, failure::Failure};

/// Name of the file.
const NAME: &str = "contexts.toml";
/// Context of the configuration file: its URL is the file's, and `wrenn up` writes it.
pub(crate) const DEFAULT: &str = "default";
/// Maximum length of a name.
const NAME_MAX: usize = 63;

/// A server, and by what the client signs in to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    /// Address of the API.
    pub(crate) url: String,
    /// Address of the user who is signed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) email: Option<String>,
    /// End of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<DateTime<Utc>>,
    /// Token of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Secret>,
    /// API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) api_key: Option<Secret>,
}

impl Context {
    /// Creates a context of this URL that is not signed in.
    pub(crate) const fn new(url: String) -> Self {
        Self { url, email: None, expires_at: None, token: None, api_key: None }
    }
}

/// The contexts by name, and which one is used.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contexts {
    /// Name of the one that is used, if nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Path of the file beside this configuration file.
    pub(crate) fn path(config_file: &Path) -> PathBuf {
        config_file.with_file_name(NAME)
    }

    /// Reads the file beside this configuration file; empty if it does not exist.
    pub(crate) fn load(config_file: &Path) -> Result<Self> {
        let path = Self::path(config_file);
        match fs::metadata(&path) {
            Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
                let path = path.display();
                let message =
                    format!("{path} has secrets, and others may read or write it: chmod 600 {path}");
                return Err(Failure::new("invalid_configuration", message).into());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            // Reading it says why it cannot be read.
            _ => {}
        }
        // What does not parse is not quoted: it may be a secret.
        toml::from_str(&client_config::read(&path)?).map_err(|error: toml::de::Error| {
            let message = format!("{} is not valid: {}", path.display(), error.message());
            Failure::new("invalid_configuration", message).into()
        })
    }

    /// Writes the file beside this configuration file.
    pub(crate) fn save(&self, config_file: &Path) -> Result<()> {
        let is_special = fs::metadata(config_file).is_ok_and(|meta| !meta.is_file());
        ensure!(
            !is_special,
            "{} is no file, and contexts are kept beside it: set WRENN_CONFIG to a file, or unset it",
            config_file.display()
        );
        client_config::save(
            &Self::path(config_file),
            &toml::to_string(self).context("the contexts cannot be written")?,
        )
    }

    /// Finds a context by name.
    pub(crate) fn get(&self, name: &str) -> Option<&Context> {
        self.contexts.get(name)
    }

    /// Returns the name of the context of this URL: of the one that has it, else a new name.
    pub(crate) fn name_for(&self, url: &str, default_url: &str) -> String {
        if same_url(url, default_url) {
            return DEFAULT.to_owned();
        }
        let found =
            self.contexts.iter().find(|(name, context)| *name != DEFAULT && same_url(&context.url, url));
        if let Some((name, _)) = found {
            return name.clone();
        }
        let first = made_up(url);
        let free = |name: &String| name != DEFAULT && !self.contexts.contains_key(name);
        if free(&first) {
            return first;
        }
        // As many as there are contexts are not free; the next one is.
        let numbered = (2..).map(|number| format!("{first}-{number}"));
        let found = numbered.take(self.contexts.len() + 2).find(free);
        found.unwrap_or(first)
    }
}

/// Makes a name of host and port of a URL.
fn made_up(url: &str) -> String {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let name: String = host.trim_matches(['[', ']']).chars().map(plain).take(NAME_MAX - 4).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "server".to_owned() } else { name.to_owned() }
}

/// Parses the name of a context.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if begins && text.len() <= NAME_MAX && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "the name of a context has 1 to {NAME_MAX} lower-case letters, digits, -, _ and ., and begins with a letter or digit"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(url: &str) -> Context {
        Context::new(url.to_owned())
    }

    #[test]
    fn the_file_is_private_and_comes_back_as_it_was() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("wrenn/config.toml");
        assert_eq!(Contexts::load(&file)?, Contexts::default());
        let mut contexts = Contexts { current: Some("prod".to_owned()), ..Contexts::default() };
        let prod = Context {
            token: Some(Secret::from("tok\"en".to_owned())),
            email: Some("ada@example.com".to_owned()),
            expires_at: "2026-01-31T09:30:00Z".parse().ok(),
            ..context("https://wrenn.example")
        };
        contexts.contexts.insert("prod".to_owned(), prod);
        let ci = Context { api_key: Some(Secret::from("wrn_1".to_owned())), ..context("http://127.0.0.1:1") };
        contexts.contexts.insert("ci.1".to_owned(), ci);
        contexts.save(&file)?;
        assert_eq!(Contexts::load(&file)?, contexts);
        let path = Contexts::path(&file);
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
        assert!(!format!("{contexts:?}").contains("wrn_1"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        let told = Contexts::load(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(told.contains("chmod 600"), "{told}");
        Ok(())
    }

    #[test]
    fn what_is_not_valid_is_refused_without_its_secrets() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("config.toml");
        client_config::save(&Contexts::path(&file), "[contexts.a]\ntoken = hunter2\n")?;
        let told = Contexts::load(&file).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(told.contains("contexts.toml") && !told.contains("hunter2"), "{told}");
        Ok(())
    }

    #[test]
    fn a_device_is_not_replaced() {
        let told = Contexts::default().save(Path::new("/dev/null")).err().map(|error| error.to_string());
        assert!(
            told.is_some_and(|told| told.contains("WRENN_CONFIG"))
                && !Path::new("/dev/contexts.toml").exists()
        );
    }

    #[test]
    fn names_are_of_the_server() {
        let mut contexts = Contexts::default();
        let name_for = |contexts: &Contexts, url: &str| contexts.name_for(url, "http://127.0.0.1:9725");
        assert_eq!(name_for(&contexts, "http://127.0.0.1:9725/"), DEFAULT);
        assert_eq!(name_for(&contexts, "https://Wrenn.Example/x"), "wrenn.example");
        assert_eq!(name_for(&contexts, "http://[::1]:9725"), "1--9725");
        assert_eq!(name_for(&contexts, "http://default"), "default-2");
        for odd in ["http://", "http://..", "https://me@host:1/"] {
            assert!(name(&name_for(&contexts, odd)).is_ok(), "{odd}");
        }
        contexts.contexts.insert("prod".to_owned(), context("https://wrenn.example"));
        contexts.contexts.insert("other.example".to_owned(), context("https://other.example/a"));
        assert_eq!(name_for(&contexts, "https://wrenn.example/"), "prod");
        assert_eq!(name_for(&contexts, "https://other.example/b"), "other.example-2");
        for wrong in ["", "-a", "A", "a b", "a/b"] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }
}
