// SPDX-License-Identifier: Apache-2.0
//! Configuration: the values of all keys, read from flags, the environment, a file named by `--env-file` and a TOML
//! file, in this order. Nothing is read from the working directory. The keys are declared in `settings`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Error, Result, bail, ensure};
use wrenn_settings::{Key, Kind, Settings};

use crate::{
    failure::Failure,
    output::note,
    registry,
    settings::{Client, KEYS, Machine, Memory},
    variables,
};

/// Environment variables that are no keys: the path of the file, the password of a registry, and a variable of the tests.
const OTHER_VARIABLES: &[&str] = &["WRENN_CONFIG", registry::PASSWORD, "WRENN_BIN"];
/// Prefix of the fault points of test builds.
const FAULT_PREFIX: &str = "WRENN_FAULT_";
/// Keys that have a flag of their own; the others are set by `--set`.
const OWN_FLAGS: &[&str] = &["url", "api_key", "context", "state_dir", "share_dir"];
/// Variables that stand for what a context has. A context that a flag names is stronger than they are.
const OF_CONTEXT: [&str; 2] = ["WRENN_URL", "WRENN_API_KEY"];
/// Minimum similarity of two names for a suggestion, as in clap.
const SIMILAR: f64 = 0.8;

fn known(name: &str) -> Result<&'static Key> {
    KEYS.iter().find(|key| key.name == name).with_context(|| {
        let hint = similar(name, KEYS.iter().map(|key| key.name.to_owned()));
        format!("there is no configuration key {name:?}{hint}; docs/operations.md lists all keys")
    })
}

/// `: did you mean X?`, or nothing if no name is similar.
fn similar(name: &str, names: impl Iterator<Item = String>) -> String {
    // The common prefix of all variables does not count.
    let bare = |name: &str| name.trim_start_matches("WRENN_").to_owned();
    let score = |other: &String| strsim::jaro_winkler(&bare(name), &bare(other));
    let best = names.max_by(|a, b| score(a).total_cmp(&score(b))).filter(|best| score(best) > SIMILAR);
    best.map(|best| format!(": did you mean {best}?")).unwrap_or_default()
}

/// Source of a value, in ascending order of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    File,
    EnvFile,
    Environment,
    Flag,
}

#[derive(Debug, Clone)]
struct Value {
    text: String,
    origin: Origin,
}

/// Sources of the configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// Keys and values of flags.
    pub(crate) flags: Vec<(String, String)>,
    /// Path given by `--env-file`.
    pub(crate) env_file: Option<PathBuf>,
    /// Whether unknown `WRENN_` variables are rejected. Clients accept them: other software may use such
    /// names.
    pub(crate) strict: bool,
}

/// The effective values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Config {
    values: BTreeMap<&'static str, Value>,
    faults: BTreeMap<String, String>,
    request: Request,
    file: PathBuf,
    /// URL of the API by the file alone: only this API gets the file's key.
    file_url: String,
}

/// The content of all sources, in descending order of precedence.
#[derive(Debug, Default)]
struct Sources {
    flags: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    env_file: Vec<(String, String)>,
    toml: String,
    strict: bool,
}

impl Config {
    /// Reads all sources.
    pub(crate) fn load(request: Request) -> Result<Self> {
        Self::read(request).map_err(|error| invalid(format!("{error:#}")))
    }

    fn read(request: Request) -> Result<Self> {
        let file = crate::client_config::path()?;
        let toml = crate::client_config::read(&file)?;
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let env_file = request.env_file.as_deref().map_or_else(|| Ok(Vec::new()), variables::file)?;
        let flags = request.flags.clone();
        let sources = Sources { flags, environment, env_file, toml, strict: request.strict };
        let mut config = Self::resolve(&sources, &file, request.env_file.as_deref())?;
        (config.file, config.request) = (file, request);
        config.make_absolute()?;
        Ok(config)
    }

    fn resolve(sources: &Sources, file: &Path, env_file: Option<&Path>) -> Result<Self> {
        let mut config = Self::default();
        config.take_toml(&sources.toml).with_context(|| format!("{} is not valid", file.display()))?;
        config.file_url = config.url();
        if let Some(path) = env_file {
            let taken = config.take_variables(&sources.env_file, Origin::EnvFile, sources.strict);
            taken.with_context(|| format!("{} is not valid", path.display()))?;
        }
        // Who names a server must not get another one, or sign in there by another key, because of what a script has exported.
        let is_named = sources.flags.iter().any(|(name, value)| name == "context" && !value.is_empty());
        let counts = |variable: &str| !is_named || !OF_CONTEXT.contains(&variable);
        let environment: Vec<_> =
            sources.environment.iter().filter(|(name, _)| counts(name)).cloned().collect();
        config.take_variables(&environment, Origin::Environment, sources.strict)?;
        for (name, value) in &sources.flags {
            let flag = if OWN_FLAGS.contains(&name.as_str()) {
                format!("--{}", name.replace('_', "-"))
            } else {
                format!("--set {name}")
            };
            let key = known(name).with_context(|| flag.clone())?;
            config.set(key, value.clone(), Origin::Flag, &flag)?;
        }
        Ok(config)
    }

    fn take_toml(&mut self, text: &str) -> Result<()> {
        let table: toml::Table = text.parse().context("it is not TOML")?;
        for (name, value) in flatten("", &table)? {
            self.set(known(&name)?, value, Origin::File, &name)?;
        }
        Ok(())
    }

    fn take_variables(&mut self, variables: &[(String, String)], origin: Origin, strict: bool) -> Result<()> {
        for (name, value) in variables {
            if name.starts_with(FAULT_PREFIX) {
                self.faults.insert(name.clone(), value.clone());
            } else if let Some(key) = KEYS.iter().find(|key| key.variable() == *name) {
                ensure!(
                    origin == Origin::Environment || key.shared_variable.is_none(),
                    "{name} counts only in the environment itself: export it, or write {} to the configuration file",
                    key.name
                );
                self.set(key, value.clone(), origin, name)?;
            } else if name.starts_with("WRENN_") && !OTHER_VARIABLES.contains(&name.as_str()) {
                let hint = similar(name, KEYS.iter().map(Key::variable));
                let message = format!("there is no environment variable {name}{hint}");
                ensure!(!strict, "{message}; unset it, or use one of docs/operations.md");
                if !hint.is_empty() {
                    note(&format!("wrenn: ignored: {message}"));
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &'static Key, text: String, origin: Origin, by: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        key.check(&text).map_err(Error::msg).with_context(|| format!("{by}={text}"))?;
        self.values.insert(key.name, Value { text, origin });
        Ok(())
    }

    /// Makes paths absolute: children and detached processes run in other directories.
    fn make_absolute(&mut self) -> Result<()> {
        for key in KEYS.iter().filter(|key| matches!(key.kind, Kind::Path)) {
            if let Some(value) = self.values.get_mut(key.name) {
                let path = std::path::absolute(&value.text)
                    .with_context(|| format!("{} is {:?}", key.name, value.text))?;
                value.text = path.into_os_string().into_string().ok().context("a path is not UTF-8")?;
            }
        }
        Ok(())
    }

    fn settings<S: Settings>(&self) -> S {
        S::read(&|name| self.values.get(name).map(|value| value.text.clone()))
    }

    /// Keys of all processes of a machine.
    pub(crate) fn machine(&self) -> Machine {
        self.settings()
    }

    /// Memory limits that `wrenn up` sets.
    pub(crate) fn memory(&self) -> Memory {
        self.settings()
    }

    /// Keys of a server.
    pub(crate) fn server(&self) -> wrenn_control::Settings {
        self.settings()
    }

    /// Keys of an agent.
    pub(crate) fn agent(&self) -> wrenn_host::Settings {
        self.settings()
    }

    /// The configured API key.
    pub(crate) fn api_key(&self) -> Option<String> {
        self.settings::<Client>().api_key
    }

    /// Directory of the kernel, the initial RAM disk and the templates.
    pub(crate) fn share_dir(&self) -> Result<PathBuf> {
        if let Some(path) = self.machine().share_dir {
            return Ok(path);
        }
        let program =
            std::env::current_exe().context("cannot tell where this program is: set WRENN_SHARE_DIR")?;
        let prefix = program.parent().and_then(Path::parent).context("this program is in no directory")?;
        Ok(prefix.join("share/wrenn"))
    }

    /// URL of the API of this machine's server.
    pub(crate) fn local_url(&self) -> String {
        let mut address = self.server().listen;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("http://{address}")
    }

    /// URL of the API for clients.
    pub(crate) fn url(&self) -> String {
        self.settings::<Client>().url.unwrap_or_else(|| self.local_url())
    }

    /// URL of the API by the configuration file alone.
    pub(crate) fn file_url(&self) -> String {
        self.file_url.clone()
    }

    /// Value of a key that is given by a flag or in the environment, and not by the configuration file.
    pub(crate) fn given(&self, name: &str) -> Option<&str> {
        let value = self.values.get(name).filter(|value| value.origin > Origin::File)?;
        Some(&value.text)
    }

    /// The configured context of clients.
    pub(crate) fn context(&self) -> Option<String> {
        self.settings::<Client>().context
    }

    /// Returns the API key for the API at `url`. A key of the configuration file is only sent to the file's
    /// API.
    pub(crate) fn api_key_for(&self, url: &str) -> Result<&str> {
        let Some(key) = self.values.get("api_key") else {
            let file = self.file.display();
            let message = format!(
                "no API key: sign in by `wrenn login`, or set WRENN_API_KEY. Who runs Wrenn on this machine makes one by \
                 `wrenn key create --local`; `wrenn up` writes one to {file} of the user who starts it"
            );
            return Err(Failure::new("no_api_key", message).into());
        };
        if key.origin == Origin::File && !same_url(url, &self.file_url) {
            let message = format!(
                "the API key in {} is for {} and is not sent to {url}: give the key for {url} in WRENN_API_KEY, or by \
                 --api-key",
                self.file.display(),
                self.file_url
            );
            return Err(invalid(message));
        }
        Ok(&key.text)
    }

    /// Path of the configuration file; it need not exist.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Reads the configuration again.
    pub(crate) fn reload(&self) -> Result<Self> {
        Self::load(self.request.clone())
    }

    /// Environment of a server or agent with this configuration, which then reads no file.
    pub(crate) fn for_child(&self) -> Vec<(String, String)> {
        let mut variables = vec![("WRENN_CONFIG".to_owned(), "/dev/null".to_owned())];
        let of_clients = Client::keys();
        for key in KEYS.iter().filter(|key| of_clients.iter().all(|other| other.name != key.name)) {
            variables.extend(self.values.get(key.name).map(|value| (key.variable(), value.text.clone())));
        }
        variables.extend(self.faults.clone());
        variables
    }
}

/// Whether two URLs are of one server.
pub(crate) fn same_url(one: &str, other: &str) -> bool {
    one.trim_end_matches('/').eq_ignore_ascii_case(other.trim_end_matches('/'))
}

fn invalid(message: String) -> anyhow::Error {
    Failure::new("invalid_configuration", message).into()
}

fn flatten(prefix: &str, table: &toml::Table) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for (name, value) in table {
        let name = format!("{prefix}{name}");
        match value {
            toml::Value::Table(inner) => all.extend(flatten(&format!("{name}."), inner)?),
            toml::Value::String(text) => all.push((name, text.clone())),
            toml::Value::Integer(number) => all.push((name, number.to_string())),
            toml::Value::Boolean(value) => all.push((name, value.to_string())),
            other => bail!("{name} is a TOML {}: write a text or a number", other.type_str()),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn resolve(sources: &Sources) -> Result<Config> {
        Config::resolve(sources, Path::new("/x/config.toml"), Some(Path::new("/x/file.env")))
    }

    #[test]
    fn the_stronger_source_wins() -> Result<()> {
        let mut sources = Sources::default();
        let listen =
            |sources: &Sources| -> Result<String> { Ok(resolve(sources)?.server().listen.to_string()) };
        assert_eq!(listen(&sources)?, "127.0.0.1:9725");
        sources.toml = "[server]\nlisten = \"127.0.0.1:1\"\n".to_owned();
        assert_eq!(listen(&sources)?, "127.0.0.1:1");
        sources.env_file = pairs(&[("WRENN_SERVER_LISTEN", "127.0.0.1:2"), ("OTHER", "x")]);
        assert_eq!(listen(&sources)?, "127.0.0.1:2");
        sources.environment = pairs(&[("WRENN_SERVER_LISTEN", "127.0.0.1:3"), ("HOME", "/root")]);
        assert_eq!(listen(&sources)?, "127.0.0.1:3");
        sources.flags = pairs(&[("server.listen", "127.0.0.1:4")]);
        assert_eq!(listen(&sources)?, "127.0.0.1:4");
        Ok(())
    }

    impl Config {
        /// Configuration of this file and this environment, for tests of other modules.
        pub(crate) fn of_test(toml: &str, environment: &[(&str, &str)]) -> Result<Self> {
            resolve(&Sources { toml: toml.to_owned(), environment: pairs(environment), ..Sources::default() })
        }
    }

    fn refusal(sources: &Sources) -> String {
        resolve(sources).err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[test]
    fn unknown_names_are_refused_by_name_and_the_right_one_is_suggested() {
        let toml = Sources { toml: "[server]\nlissten = 1\n".to_owned(), ..Sources::default() };
        let flags = Sources { flags: pairs(&[("server.lissten", "z")]), ..Sources::default() };
        let environment = pairs(&[("WRENN_STATEDIR", "x")]);
        let environment = Sources { environment, strict: true, ..Sources::default() };
        for (sources, told) in [
            (&toml, ["/x/config.toml", "\"server.lissten\"", "mean server.listen?"]),
            (&flags, ["--set server.lissten", "docs/operations.md", "mean server.listen?"]),
            (&environment, ["WRENN_STATEDIR", "docs/operations.md", "mean WRENN_STATE_DIR?"]),
        ] {
            let text = refusal(sources);
            assert!(told.iter().all(|part| text.contains(part)) && text.len() < 300, "{text}");
        }
        let unlike = Sources { flags: pairs(&[("x.y", "z")]), ..Sources::default() };
        assert!(!refusal(&unlike).contains("did you mean"), "{}", refusal(&unlike));
    }

    #[test]
    fn unknown_variables_break_no_client() {
        let environment = pairs(&[("WRENN_FOO", "1"), ("WRENN_STATEDIR", "x")]);
        assert_eq!(refusal(&Sources { environment, ..Sources::default() }), "");
    }

    #[test]
    fn bad_values_name_where_they_were_given_and_what_is_possible() {
        for (name, value) in [
            ("WRENN_AGENT_DRIVER", "xen"),
            ("WRENN_SERVER_LISTEN", "9725"),
            ("WRENN_AGENT_WARM_SLOTS", "-1"),
            ("WRENN_AGENT_EXEC_OUTPUT", "33554432"),
        ] {
            let sources = Sources { environment: pairs(&[(name, value)]), ..Sources::default() };
            let text = refusal(&sources);
            assert!(text.contains(name) && text.contains("not ") && !text.contains("config.toml"), "{text}");
        }
        let flags = Sources { flags: pairs(&[("agent.driver", "kvmm")]), ..Sources::default() };
        let text = refusal(&flags);
        assert!(
            text.starts_with("--set agent.driver=kvmm: not one of auto") && !text.contains("toml"),
            "{text}"
        );
    }

    #[test]
    fn the_stores_of_another_program_are_not_taken_from_a_file() {
        let env_file = pairs(&[("DATABASE_URL", "postgres://shop@db/shop")]);
        let text = refusal(&Sources { env_file, ..Sources::default() });
        assert!(text.contains("/x/file.env") && text.contains("DATABASE_URL"), "{text}");
        assert!(!text.contains("shop@db"), "{text}");
    }

    fn key_for(url: &str, sources: &Sources) -> Result<String> {
        Ok(resolve(sources)?.api_key_for(url)?.to_owned())
    }

    #[test]
    fn a_key_of_the_file_goes_only_to_the_url_of_the_file() -> Result<()> {
        let toml = "url = \"http://home:1/\"\napi_key = \"k\"\n".to_owned();
        let mut sources = Sources { toml, ..Sources::default() };
        assert_eq!(key_for("http://home:1", &sources)?, "k");
        for elsewhere in ["http://home:2", "https://home:1", "http://127.0.0.1:9725", "http://home:1.evil"] {
            let text = key_for(elsewhere, &sources).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(text.contains(elsewhere) && text.contains("http://home:1/"), "{text}");
        }
        sources.environment = pairs(&[("WRENN_API_KEY", "e"), ("WRENN_URL", "http://away:1")]);
        assert_eq!(key_for("http://away:1", &sources)?, "e");
        // A file without a URL stands for the server of its own settings.
        let toml = "api_key = \"k\"\n[server]\nlisten = \"127.0.0.1:3\"\n".to_owned();
        let environment = pairs(&[("WRENN_SERVER_LISTEN", "127.0.0.1:4")]);
        let sources = Sources { environment, toml, ..Sources::default() };
        assert_eq!(key_for("http://127.0.0.1:3", &sources)?, "k");
        assert!(key_for("http://127.0.0.1:4", &sources).is_err());
        assert!(key_for("http://127.0.0.1:3", &Sources::default()).is_err());
        Ok(())
    }

    #[test]
    fn a_context_that_a_flag_names_is_stronger_than_the_environment() -> Result<()> {
        let environment =
            pairs(&[("WRENN_URL", "http://away:1"), ("WRENN_API_KEY", "e"), ("WRENN_CONTEXT", "x")]);
        let toml = "url = \"http://home:1\"\napi_key = \"k\"\n".to_owned();
        let mut sources = Sources { environment, toml, ..Sources::default() };
        let read = |sources: &Sources| -> Result<(String, String, Option<String>)> {
            let config = resolve(sources)?;
            let url = config.url();
            let key = config.api_key_for(&url)?.to_owned();
            Ok((url, key, config.context()))
        };
        let expected =
            |url: &str, key: &str, context: &str| (url.to_owned(), key.to_owned(), Some(context.to_owned()));
        assert_eq!(read(&sources)?, expected("http://away:1", "e", "x"));
        sources.flags = pairs(&[("context", "default")]);
        assert_eq!(read(&sources)?, expected("http://home:1", "k", "default"));
        sources.flags = pairs(&[("url", "http://flag:1"), ("api_key", "f"), ("context", "default")]);
        assert_eq!(read(&sources)?, expected("http://flag:1", "f", "default"));
        Ok(())
    }

    #[test]
    fn a_child_reads_what_its_parent_read_and_no_secrets_of_the_client() -> Result<()> {
        let environment = pairs(&[
            ("WRENN_AGENT_DRIVER", "tcg"),
            ("WRENN_API_KEY", "secret"),
            ("DATABASE_URL", "postgres://x"),
            ("WRENN_FAULT_AGENT", "boot"),
            ("WRENN_BIN", "/x"),
        ]);
        let child = resolve(&Sources { environment, strict: true, ..Sources::default() })?.for_child();
        assert!(!child.iter().any(|(_, value)| value == "secret"));
        assert!(child.contains(&("WRENN_FAULT_AGENT".to_owned(), "boot".to_owned())));
        let again = resolve(&Sources { environment: child, strict: true, ..Sources::default() })?;
        assert_eq!(again.agent().driver, wrenn_host::Driver::Tcg);
        assert_eq!(again.machine().database_url.as_deref(), Some("postgres://x"));
        Ok(())
    }
}
