// SPDX-License-Identifier: Apache-2.0
//! Configuration keys of the client and of `wrenn up`, and the list of all keys. Those of a server and of an agent are
//! declared in `wrenn_control::Settings` and `wrenn_host::Settings`.

use std::{path::PathBuf, sync::LazyLock};

use wrenn_settings::{Key, Settings as _, choice, number, path, settings, text};

/// Memory limit of the control plane; also that of the agent, without what it has for each sandbox.
const MEMORY_MB: u64 = 2048;
/// Memory of the agent for each sandbox that it may have.
const MB_PER_SANDBOX: u64 = 2;

/// All keys.
pub(crate) static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    [
        Client::keys(),
        Machine::keys(),
        Memory::keys(),
        wrenn_control::Settings::keys(),
        wrenn_host::Settings::keys(),
    ]
    .concat()
});

settings! {
    /// Keys of clients, which servers and agents do not use.
    pub(crate) struct Client {
        /// Address of the API, for clients.
        pub(crate) url: Option<String> = text("url").or_none("`http://` and `server.listen`"),
        /// API key, for clients.
        pub(crate) api_key: Option<String> = text("api_key").or_none("none"),
        /// Context, for clients: a server that `wrenn login` has signed in to.
        pub(crate) context: Option<String> = text("context").or_none("the one of `wrenn context use`"),
    }
}

settings! {
    /// Keys of all processes of a machine.
    #[derive(Debug)]
    pub(crate) struct Machine {
        /// Directory of everything that Wrenn keeps.
        pub(crate) state_dir: PathBuf = path("state_dir").or("/var/lib/wrenn".into()),
        /// Directory of the guest kernel, the initial RAM disk and the templates.
        pub(crate) share_dir: Option<PathBuf> =
            path("share_dir").or_none("`../share/wrenn` beside the program"),
        /// URL of a PostgreSQL to be used instead of the private one.
        pub(crate) database_url: Option<String> =
            text("database_url").shared_variable("DATABASE_URL").or_none("a private one"),
        /// URL of a Redis to be used instead of the private one.
        pub(crate) redis_url: Option<String> =
            text("redis_url").shared_variable("REDIS_URL").or_none("a private one"),
        /// Filter of the log, in the syntax of `tracing`.
        pub(crate) log: String = text("log").or("info".to_owned()),
        /// Format of the log.
        pub(crate) log_format: LogFormat =
            choice("log_format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]).or(LogFormat::Text),
    }
}

settings! {
    /// Memory limits that `wrenn up` sets.
    #[derive(Debug)]
    pub(crate) struct Memory {
        /// Memory limit of the control plane in MiB; 0: none.
        pub(crate) server_mb: u64 = number("server.memory_mb", 0..=1 << 24).or(MEMORY_MB),
        /// Memory limit of the agent in MiB, without VMMs; 0: none.
        agent_mb: Option<u64> = number("agent.memory_mb", 0..=1 << 24)
            .or_none(format!("{MEMORY_MB}, and {MB_PER_SANDBOX} for each of `agent.max_sandboxes`")),
    }
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Memory {
    /// Memory limit of an agent for so many sandboxes, in MiB.
    pub(crate) fn agent_mb(&self, sandboxes: u32) -> u64 {
        self.agent_mb.unwrap_or(MEMORY_MB + u64::from(sandboxes) * MB_PER_SANDBOX)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    const BEGIN: &str = "<!-- keys: written by UPDATE_DOCS=1 cargo test -p wrenn-cli settings -->\n";
    const END: &str = "<!-- end of keys -->\n";

    fn document(name: &str) -> (PathBuf, String) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
        let text = fs::read_to_string(&path).expect("the document");
        (path, text)
    }

    #[test]
    fn operations_md_has_the_table_of_all_keys() {
        let (path, text) = document("docs/operations.md");
        let (before, rest) = text.split_once(BEGIN).expect("the first marker");
        let (_, after) = rest.split_once(END).expect("the last marker");
        let wanted = format!("{before}{BEGIN}{}{END}{after}", wrenn_settings::table(&KEYS));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&path, wanted).expect("written");
            return;
        }
        let told = "docs/operations.md has another table of keys than the code: UPDATE_DOCS=1 cargo test -p wrenn-cli \
                    settings";
        assert!(text == wanted, "{told}");
    }

    #[test]
    fn documents_name_only_keys_that_exist() {
        for name in ["SPECIFICATION.md", "docs/architecture.md"] {
            for word in document(name).1.split('`').skip(1).step_by(2) {
                let is_key = word.starts_with("server.") || word.starts_with("agent.");
                let is_key = is_key && !word.ends_with(".*");
                assert!(!is_key || KEYS.iter().any(|key| key.name == word), "{name}: {word} is no key");
            }
        }
    }

    #[test]
    fn names_and_variables_are_unique() {
        let names: BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
        let variables: BTreeSet<_> = KEYS.iter().map(Key::variable).collect();
        assert_eq!((names.len(), variables.len()), (KEYS.len(), KEYS.len()));
    }

    #[test]
    fn the_memory_limit_of_an_agent_grows_with_its_sandboxes() {
        assert_eq!(Memory::default().agent_mb(64), 2176);
        assert_eq!(Memory { agent_mb: Some(0), ..Memory::default() }.agent_mb(64), 0);
    }
}
