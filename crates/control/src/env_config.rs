// SPDX-License-Identifier: Apache-2.0
//! Configuration of a server from environment variables, for programs that have no configuration of their own.

use std::{env, path::PathBuf};

use anyhow::{Context, anyhow};
use wrenn_settings::Settings as _;

use crate::config::{AgentTls, Config, Settings};

/// Function that returns the value of a variable.
type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Config {
    /// Reads the configuration from the environment: the variables of the keys `server.*`, `DATABASE_URL`, `REDIS_URL`, and
    /// `WRENN_PKI_DIR` with the directory of `ca.pem`, `control.pem` and `control.key`, as `wrenn up` makes it. Fails if one of
    /// these three is missing, or a value is none that its key takes.
    pub fn from_env() -> anyhow::Result<Self> {
        Self::of(&|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn of(variables: Variables<'_>) -> anyhow::Result<Self> {
        let needed = |name: &str, what: &str| {
            variables(name).with_context(|| format!("{name} is not set: set it to {what}"))
        };
        let pki = PathBuf::from(needed("WRENN_PKI_DIR", "the directory of the certificates for the hosts")?);
        Ok(Self {
            settings: settings(variables)?,
            database_url: needed("DATABASE_URL", "the URL of a PostgreSQL database")?,
            redis_url: needed("REDIS_URL", "the URL of a Redis")?,
            agent_tls: AgentTls {
                ca: pki.join("ca.pem"),
                cert: pki.join("control.pem"),
                key: pki.join("control.key"),
            },
        })
    }
}

fn settings(variables: Variables<'_>) -> anyhow::Result<Settings> {
    let keys = Settings::keys();
    for key in &keys {
        let variable = key.variable();
        if let Some(value) = variables(&variable) {
            // The value may be a secret.
            key.check(&value).map_err(|error| anyhow!("{variable}: {error}"))?;
        }
    }
    let value =
        |name: &str| keys.iter().find(|key| key.name == name).and_then(|key| variables(&key.variable()));
    Ok(Settings::read(&value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> anyhow::Result<Config> {
        let value = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Config::of(&value)
    }

    #[test]
    fn a_server_is_configured_by_variables() {
        let needed =
            [("DATABASE_URL", "postgres://a"), ("REDIS_URL", "redis://a"), ("WRENN_PKI_DIR", "/pki")];
        let config = of(&needed).expect("a configuration");
        assert_eq!(config.settings.listen, Settings::default().listen);
        assert_eq!(config.agent_tls.key, PathBuf::from("/pki/control.key"));
        let more = [&needed[..], &[("WRENN_SERVER_LISTEN", "127.0.0.1:7")]].concat();
        assert_eq!(of(&more).expect("a configuration").settings.listen.port(), 7);
        for left_out in 0..needed.len() {
            let mut some = needed.to_vec();
            let (name, _) = some.remove(left_out);
            let error = of(&some).expect_err("one is missing");
            assert!(error.to_string().contains(name), "{error}");
        }
        let wrong = [&needed[..], &[("WRENN_SERVER_LISTEN", "nowhere")]].concat();
        let error = of(&wrong).expect_err("no address");
        assert!(error.to_string().starts_with("WRENN_SERVER_LISTEN: "), "{error}");
    }
}
