//! Configuration: one table of keys, read from flags, environment, `.env` and a TOML file, in this order.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, bail, ensure};

/// What a value must look like.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Path,
    Address,
    Number(u64, u64),
    OneOf(&'static [&'static str]),
}

/// One key. Its environment variable follows from its name, see [`Key::env`].
#[derive(Debug)]
struct Key {
    name: &'static str,
    kind: Kind,
    default: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { name, kind, default }
}

/// Every key. An empty default means that the reader of the key has one, or does without.
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
    key("server.json_body", Kind::Number(1024, 1 << 30), ""),
    key("server.upload_body", Kind::Number(1024, 1 << 40), ""),
    key("server.sandboxes_per_team", Kind::Number(1, 1_000_000), ""),
    key("server.event_streams", Kind::Number(1, 65_536), ""),
    key("server.create_timeout_sec", Kind::Number(1, 3600), ""),
    key("agent.listen", Kind::Address, "127.0.0.1:9726"),
    key("agent.driver", Kind::OneOf(&["auto", "firecracker", "kvm", "tcg"]), "auto"),
    key("agent.firecracker", Kind::Path, ""),
    key("agent.unjailed", Kind::OneOf(&["true", "false"]), "false"),
    key("agent.egress", Kind::OneOf(&["internet", "none"]), "internet"),
    key("agent.network_rate", Kind::Number(1 << 16, 10_000_000_000), ""),
    key("agent.disk_rate", Kind::Number(1 << 16, 100_000_000_000), ""),
    key("agent.warm_slots", Kind::Number(0, 1024), "4"),
    key("agent.store_size_mb", Kind::Number(1024, 1 << 30), "65536"),
    key("agent.vmm_uid_base", Kind::Number(1000, 4_000_000_000), "210000"),
    key("agent.max_sandboxes", Kind::Number(1, 32_767), ""),
    key("agent.max_vcpus", Kind::Number(1, 64), ""),
    key("agent.max_memory_mb", Kind::Number(128, 1_048_576), ""),
    key("agent.max_disk_size_mb", Kind::Number(512, 1 << 30), ""),
    key("agent.exec_output", Kind::Number(1024, wrenn_host::EXEC_OUTPUT_MAX as u64), ""),
    key("agent.output_memory", Kind::Number(64 << 20, 1 << 40), ""),
    key("agent.boot_timeout_sec", Kind::Number(1, 3600), ""),
];

/// Variables that are ours and no keys: the file itself, and what tests use.
const OTHER_VARIABLES: &[&str] = &["WRENN_CONFIG", "WRENN_BIN"];
/// Fault points of test builds.
const FAULT_PREFIX: &str = "WRENN_FAULT_";
/// Keys that a server or agent has no use for.
const CLIENT_KEYS: &[&str] = &["url", "api_key"];

impl Key {
    /// `a.b` is `WRENN_A_B`; the two URLs have the names that everybody uses.
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
        let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        format!("there is no configuration key {name:?}; the keys are {}", names.join(", "))
    })
}

/// The values in force.
#[derive(Debug, Clone, Default)]
pub(crate) struct Config {
    values: BTreeMap<&'static str, String>,
    faults: BTreeMap<String, String>,
    flags: Vec<(String, String)>,
    file: PathBuf,
}

/// Where values come from, the strongest first.
#[derive(Debug, Default)]
struct Sources {
    flags: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    dotenv: Vec<(String, String)>,
    toml: String,
}

impl Config {
    /// Reads everything; `flags` are pairs of key and value.
    pub(crate) fn load(flags: Vec<(String, String)>) -> Result<Self> {
        let file = crate::client_config::path()?;
        let toml = crate::client_config::read(&file)?;
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let sources = Sources { flags, environment, dotenv: dotenv(Path::new(".env"))?, toml };
        let mut config = Self::resolve(&sources)
            .with_context(|| format!("the configuration is not valid (its file is {})", file.display()))?;
        (config.file, config.flags) = (file, sources.flags);
        config.make_absolute()?;
        Ok(config)
    }

    fn resolve(sources: &Sources) -> Result<Self> {
        let mut config = Self::default();
        for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
            config.values.insert(key.name, key.default.to_owned());
        }
        let table: toml::Table = sources.toml.parse().context("it is not TOML")?;
        for (name, value) in flatten("", &table)? {
            config.set(known(&name)?, value, &name)?;
        }
        config.take_variables(&sources.dotenv)?;
        config.take_variables(&sources.environment)?;
        for (name, value) in &sources.flags {
            config.set(known(name)?, value.clone(), name)?;
        }
        Ok(config)
    }

    fn take_variables(&mut self, variables: &[(String, String)]) -> Result<()> {
        for (name, value) in variables {
            if name.starts_with(FAULT_PREFIX) {
                self.faults.insert(name.clone(), value.clone());
            } else if let Some(key) = KEYS.iter().find(|key| key.env() == *name) {
                self.set(key, value.clone(), name)?;
            } else if name.starts_with("WRENN_") && !OTHER_VARIABLES.contains(&name.as_str()) {
                let names: Vec<String> = KEYS.iter().map(Key::env).collect();
                bail!(
                    "there is no environment variable {name}; unset it, or use one of {}",
                    names.join(", ")
                );
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &'static Key, value: String, origin: &str) -> Result<()> {
        if value.is_empty() {
            return Ok(());
        }
        key.check(&value).with_context(|| format!("{origin} is {value:?}"))?;
        self.values.insert(key.name, value);
        Ok(())
    }

    /// Children and detached processes run elsewhere.
    fn make_absolute(&mut self) -> Result<()> {
        for key in KEYS.iter().filter(|key| matches!(key.kind, Kind::Path)) {
            if let Some(value) = self.values.get_mut(key.name) {
                let path =
                    std::path::absolute(&*value).with_context(|| format!("{} is {value:?}", key.name))?;
                *value = path.into_os_string().into_string().ok().context("a path is not UTF-8")?;
            }
        }
        Ok(())
    }

    /// The value of a key of the table.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The value of a key that was checked when it was read, or the given default.
    pub(crate) fn or<T: FromStr>(&self, name: &str, default: T) -> T {
        self.get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// An address.
    pub(crate) fn address(&self, name: &str) -> Result<SocketAddr> {
        self.get(name).and_then(|value| value.parse().ok()).with_context(|| format!("{name} is not set"))
    }

    /// Where Wrenn keeps everything.
    pub(crate) fn state_dir(&self) -> &Path {
        Path::new(self.get("state_dir").unwrap_or("/var/lib/wrenn"))
    }

    /// Kernel, initial RAM disk and templates.
    pub(crate) fn share_dir(&self) -> Result<PathBuf> {
        if let Some(path) = self.get("share_dir") {
            return Ok(path.into());
        }
        let program =
            std::env::current_exe().context("cannot tell where this program is: set WRENN_SHARE_DIR")?;
        let prefix = program.parent().and_then(Path::parent).context("this program is in no directory")?;
        Ok(prefix.join("share/wrenn"))
    }

    /// Where the API of this machine's server is.
    pub(crate) fn local_url(&self) -> Result<String> {
        let mut address = self.address("server.listen")?;
        if address.ip().is_unspecified() {
            let loopback = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
            address.set_ip(loopback.parse().context("loopback")?);
        }
        Ok(format!("http://{address}"))
    }

    /// Where the client finds the API.
    pub(crate) fn url(&self) -> Result<String> {
        self.get("url").map_or_else(|| self.local_url(), |url| Ok(url.to_owned()))
    }

    /// The file that this was read from; it need not exist.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// The same, read again.
    pub(crate) fn reload(&self) -> Result<Self> {
        Self::load(self.flags.clone())
    }

    /// The environment for a server or agent with this configuration: it reads no file.
    pub(crate) fn for_child(&self) -> Vec<(String, String)> {
        let mut variables = vec![("WRENN_CONFIG".to_owned(), "/dev/null".to_owned())];
        for key in KEYS.iter().filter(|key| !CLIENT_KEYS.contains(&key.name)) {
            variables.extend(self.get(key.name).map(|value| (key.env(), value.to_owned())));
        }
        variables.extend(self.faults.clone());
        variables
    }
}

fn dotenv(path: &Path) -> Result<Vec<(String, String)>> {
    match dotenvy::from_path_iter(path) {
        Ok(entries) => entries.collect::<Result<_, _>>().context(".env in this directory cannot be read"),
        Err(dotenvy::Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context(".env in this directory cannot be read"),
    }
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

    #[test]
    fn the_stronger_source_wins() -> Result<()> {
        let mut sources = Sources::default();
        let listen = |sources: &Sources| -> Result<String> {
            Ok(Config::resolve(sources)?.get("server.listen").unwrap_or_default().to_owned())
        };
        assert_eq!(listen(&sources)?, "127.0.0.1:9725");
        sources.toml = "[server]\nlisten = \"127.0.0.1:1\"\n".to_owned();
        assert_eq!(listen(&sources)?, "127.0.0.1:1");
        sources.dotenv = pairs(&[("WRENN_SERVER_LISTEN", "127.0.0.1:2"), ("OTHER", "x")]);
        assert_eq!(listen(&sources)?, "127.0.0.1:2");
        sources.environment = pairs(&[("WRENN_SERVER_LISTEN", "127.0.0.1:3"), ("HOME", "/root")]);
        assert_eq!(listen(&sources)?, "127.0.0.1:3");
        sources.flags = pairs(&[("server.listen", "127.0.0.1:4")]);
        assert_eq!(listen(&sources)?, "127.0.0.1:4");
        Ok(())
    }

    fn refusal(sources: &Sources) -> String {
        Config::resolve(sources).err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        let toml = Sources { toml: "[server]\nlissten = 1\n".to_owned(), ..Sources::default() };
        assert!(refusal(&toml).contains("\"server.lissten\""), "{}", refusal(&toml));
        let environment = Sources { environment: pairs(&[("WRENN_STATEDIR", "x")]), ..Sources::default() };
        assert!(refusal(&environment).contains("WRENN_STATEDIR"), "{}", refusal(&environment));
        let flags = Sources { flags: pairs(&[("x.y", "z")]), ..Sources::default() };
        assert!(refusal(&flags).contains("\"x.y\""), "{}", refusal(&flags));
    }

    #[test]
    fn bad_values_name_their_key_and_what_is_possible() {
        for (name, value) in [
            ("WRENN_AGENT_DRIVER", "xen"),
            ("WRENN_SERVER_LISTEN", "9725"),
            ("WRENN_AGENT_WARM_SLOTS", "-1"),
            ("WRENN_AGENT_EXEC_OUTPUT", "33554432"),
        ] {
            let sources = Sources { environment: pairs(&[(name, value)]), ..Sources::default() };
            let text = refusal(&sources);
            assert!(text.contains(name) && text.contains("not "), "{text}");
        }
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
        let child = Config::resolve(&Sources { environment, ..Sources::default() })?.for_child();
        assert!(!child.iter().any(|(_, value)| value == "secret"));
        assert!(child.contains(&("WRENN_FAULT_AGENT".to_owned(), "boot".to_owned())));
        let again = Config::resolve(&Sources { environment: child, ..Sources::default() })?;
        assert_eq!(again.get("agent.driver"), Some("tcg"));
        assert_eq!(again.get("database_url"), Some("postgres://x"));
        Ok(())
    }
}
