// SPDX-License-Identifier: Apache-2.0
//! Configuration: one table of keys, read from flags, the environment, a file named by `--env-file` and a TOML file, in
//! this order. Nothing is read from the working directory.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{failure::Failure, output::note};

/// Type of a value.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Path,
    Address,
    Number(u64, u64),
    OneOf(&'static [&'static str]),
}

/// A configuration key. Its environment variable follows from its name, see [`Key::env`].
#[derive(Debug)]
struct Key {
    name: &'static str,
    kind: Kind,
    default: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { name, kind, default }
}

/// All keys. With an empty default, the reader of the key has a default or needs none.
const KEYS: &[Key] = &[
    key("url", Kind::Text, ""),
    key("api_key", Kind::Text, ""),
    key("state_dir", Kind::Path, "/var/lib/wrenn"),
    key("share_dir", Kind::Path, ""),
    key("database_url", Kind::Text, ""),
    key("redis_url", Kind::Text, ""),
    key("log", Kind::Text, "info"),
    key("log_format", Kind::OneOf(&["text", "json"]), "text"),
    key("server.listen", Kind::Address, "127.0.0.1:9725"),
    key("server.concurrent_requests", Kind::Number(1, 65_536), ""),
    key("server.concurrent_deletes", Kind::Number(1, 65_536), ""),
    key("server.long_commands", Kind::Number(1, 65_536), ""),
    key("server.memory", Kind::Number(8 << 20, 1 << 31), ""),
    key("server.connections", Kind::Number(16, 1 << 20), ""),
    key("server.connections_per_address", Kind::Number(1, 1 << 20), ""),
    key("server.key_check_sec", Kind::Number(1, 3600), ""),
    key("server.json_body", Kind::Number(1024, 1 << 30), ""),
    key("server.upload_body", Kind::Number(1024, 1 << 40), ""),
    key("server.sandboxes_per_team", Kind::Number(1, 1_000_000), ""),
    key("server.event_streams", Kind::Number(1, 65_536), ""),
    key("server.lease_sec", Kind::Number(1, 3600), ""),
    key("server.create_timeout_sec", Kind::Number(1, 3600), ""),
    key("server.memory_mb", Kind::Number(0, 1 << 24), ""),
    key("server.stray_grace_sec", Kind::Number(1, 31_536_000), ""),
    key("server.record_retention_sec", Kind::Number(60, 3_153_600_000), ""),
    key("server.database_timeout_sec", Kind::Number(1, 3600), ""),
    key("agent.listen", Kind::Address, "127.0.0.1:9726"),
    key("agent.driver", Kind::OneOf(&["auto", "firecracker", "kvm", "tcg"]), "auto"),
    key("agent.firecracker", Kind::Path, ""),
    key("agent.unjailed", Kind::OneOf(&["true", "false"]), "false"),
    key("agent.require_security_boundary", Kind::OneOf(&["auto", "true", "false"]), "auto"),
    key("agent.egress", Kind::OneOf(&["internet", "none"]), "internet"),
    key("agent.network_rate", Kind::Number(1 << 16, 10_000_000_000), ""),
    key("agent.disk_rate", Kind::Number(1 << 16, 100_000_000_000), ""),
    key("agent.warm_slots", Kind::Number(0, 1024), "4"),
    key("agent.store_size_mb", Kind::Number(1024, 1 << 30), "65536"),
    key("agent.vmm_uid_base", Kind::Number(1000, 4_000_000_000), ""),
    key("agent.max_sandboxes", Kind::Number(1, 32_767), ""),
    key("agent.max_vcpus", Kind::Number(1, 64), ""),
    key("agent.max_memory_mb", Kind::Number(128, 1_048_576), ""),
    key("agent.max_disk_size_mb", Kind::Number(512, 1 << 30), ""),
    key("agent.exec_output", Kind::Number(1024, wrenn_host::EXEC_OUTPUT_MAX as u64), ""),
    key("agent.output_memory", Kind::Number(64 << 20, 1 << 40), ""),
    key("agent.memory_mb", Kind::Number(0, 1 << 24), ""),
    key("agent.boot_timeout_sec", Kind::Number(1, 3600), ""),
];

/// Environment variables that are no keys: the path of the file, and a variable of the tests.
const OTHER_VARIABLES: &[&str] = &["WRENN_CONFIG", "WRENN_BIN"];
/// Prefix of the fault points of test builds.
const FAULT_PREFIX: &str = "WRENN_FAULT_";
/// Keys that servers and agents do not use.
const CLIENT_KEYS: &[&str] = &["url", "api_key"];
/// Keys whose variables other programs use too: they are only read from the environment itself.
const SHARED_NAMES: &[&str] = &["database_url", "redis_url"];
/// Keys that have a flag of their own; the others are set by `--set`.
const OWN_FLAGS: &[&str] = &["url", "api_key", "state_dir", "share_dir"];
/// Minimum similarity of two names for a suggestion, as in clap.
const SIMILAR: f64 = 0.8;

impl Key {
    /// Name of the environment variable: `WRENN_A_B` for `a.b`; the two URLs have their common names.
    fn env(&self) -> String {
        match self.name {
            "database_url" => "DATABASE_URL".to_owned(),
            "redis_url" => "REDIS_URL".to_owned(),
            name => format!("WRENN_{}", name.to_ascii_uppercase().replace('.', "_")),
        }
    }

    fn check(&self, value: &str) -> Result<()> {
        match self.kind {
            Kind::Text | Kind::Path => {}
            Kind::Address => {
                value
                    .parse::<SocketAddr>()
                    .ok()
                    .context("not an address with a port, such as 127.0.0.1:9725")?;
            }
            Kind::Number(min, max) => {
                let valid = value.parse::<u64>().is_ok_and(|number| (min..=max).contains(&number));
                ensure!(valid, "not a number from {min} to {max}");
            }
            Kind::OneOf(values) => ensure!(values.contains(&value), "not one of {}", values.join(", ")),
        }
        Ok(())
    }
}

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Default,
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
        let env_file = request.env_file.as_deref().map_or_else(|| Ok(Vec::new()), env_file)?;
        let flags = request.flags.clone();
        let sources = Sources { flags, environment, env_file, toml, strict: request.strict };
        let mut config = Self::resolve(&sources, &file, request.env_file.as_deref())?;
        (config.file, config.request) = (file, request);
        config.make_absolute()?;
        Ok(config)
    }

    fn resolve(sources: &Sources, file: &Path, env_file: Option<&Path>) -> Result<Self> {
        let mut config = Self::default();
        for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
            let value = Value { text: key.default.to_owned(), origin: Origin::Default };
            config.values.insert(key.name, value);
        }
        config.take_toml(&sources.toml).with_context(|| format!("{} is not valid", file.display()))?;
        config.file_url = config.url()?;
        if let Some(path) = env_file {
            let taken = config.take_variables(&sources.env_file, Origin::EnvFile, sources.strict);
            taken.with_context(|| format!("{} is not valid", path.display()))?;
        }
        config.take_variables(&sources.environment, Origin::Environment, sources.strict)?;
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
            } else if let Some(key) = KEYS.iter().find(|key| key.env() == *name) {
                ensure!(
                    origin == Origin::Environment || !SHARED_NAMES.contains(&key.name),
                    "{name} counts only in the environment itself: export it, or write {} to the configuration file",
                    key.name
                );
                self.set(key, value.clone(), origin, name)?;
            } else if name.starts_with("WRENN_") && !OTHER_VARIABLES.contains(&name.as_str()) {
                let hint = similar(name, KEYS.iter().map(Key::env));
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
        key.check(&text).with_context(|| format!("{by}={text}"))?;
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

    /// Returns the value of a key.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|value| value.text.as_str())
    }

    /// Returns the value of a key, which was checked when it was read, or the default.
    pub(crate) fn or<T: FromStr>(&self, name: &str, default: T) -> T {
        self.get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// Returns an address.
    pub(crate) fn address(&self, name: &str) -> Result<SocketAddr> {
        self.get(name).and_then(|value| value.parse().ok()).with_context(|| format!("{name} is not set"))
    }

    /// The state directory.
    pub(crate) fn state_dir(&self) -> &Path {
        Path::new(self.get("state_dir").unwrap_or("/var/lib/wrenn"))
    }

    /// Directory of the kernel, the initial RAM disk and the templates.
    pub(crate) fn share_dir(&self) -> Result<PathBuf> {
        if let Some(path) = self.get("share_dir") {
            return Ok(path.into());
        }
        let program =
            std::env::current_exe().context("cannot tell where this program is: set WRENN_SHARE_DIR")?;
        let prefix = program.parent().and_then(Path::parent).context("this program is in no directory")?;
        Ok(prefix.join("share/wrenn"))
    }

    /// URL of the API of this machine's server.
    pub(crate) fn local_url(&self) -> Result<String> {
        let mut address = self.address("server.listen")?;
        if address.ip().is_unspecified() {
            let loopback = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
            address.set_ip(loopback.parse().context("loopback")?);
        }
        Ok(format!("http://{address}"))
    }

    /// URL of the API for clients.
    pub(crate) fn url(&self) -> Result<String> {
        self.get("url").map_or_else(|| self.local_url(), |url| Ok(url.to_owned()))
    }

    /// Returns the API key for the API at `url`. A key of the configuration file is only sent to the file's
    /// API.
    pub(crate) fn api_key_for(&self, url: &str) -> Result<&str> {
        let Some(key) = self.values.get("api_key") else {
            let file = self.file.display();
            let message = format!(
                "no API key: set WRENN_API_KEY, or write `url` and `api_key` to {file} (`wrenn up` does that for the user \
                 who starts it)"
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
        for key in KEYS.iter().filter(|key| !CLIENT_KEYS.contains(&key.name)) {
            variables.extend(self.get(key.name).map(|value| (key.env(), value.to_owned())));
        }
        variables.extend(self.faults.clone());
        variables
    }
}

fn env_file(path: &Path) -> Result<Vec<(String, String)>> {
    let unreadable = || format!("--env-file {} cannot be read", path.display());
    let entries = dotenvy::from_path_iter(path).with_context(unreadable)?;
    entries.collect::<Result<_, _>>().with_context(unreadable)
}

fn invalid(message: String) -> anyhow::Error {
    Failure::new("invalid_configuration", message).into()
}

fn same_url(one: &str, other: &str) -> bool {
    one.trim_end_matches('/').eq_ignore_ascii_case(other.trim_end_matches('/'))
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
        let listen = |sources: &Sources| -> Result<String> {
            Ok(resolve(sources)?.get("server.listen").unwrap_or_default().to_owned())
        };
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
        assert_eq!(again.get("agent.driver"), Some("tcg"));
        assert_eq!(again.get("database_url"), Some("postgres://x"));
        Ok(())
    }
}
