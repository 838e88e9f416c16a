// SPDX-License-Identifier: Apache-2.0
//! Configuration of an image: what it is made for, and how its program is started.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{digest::Digest, platform::Platform};

/// Maximum size of a configuration in bytes.
pub(crate) const CONFIG_MAX: u64 = 4 << 20;

/// Configuration of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// Platform that the image is made for.
    pub platform: Platform,
    /// User and group of its program: empty (root), or names or numbers, as [`resolve_user`](crate::resolve_user) reads them.
    pub user: String,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Directory in which its program starts, as it is written: empty, absolute, or relative to the root.
    pub working_dir: String,
    /// Program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or program and arguments if there is no entrypoint.
    pub cmd: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Digests of the uncompressed layers, the lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(flatten)]
    platform: Platform,
    config: Option<Process>,
    rootfs: Option<Root>,
}

/// Tools write `null` for what is empty.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    user: Option<String>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Root {
    diff_ids: Option<Vec<Digest>>,
}

impl ImageConfig {
    /// Parses a configuration in the format of OCI or Docker.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let process = wire.config.unwrap_or_default();
        let diff_ids = wire.rootfs.and_then(|root| root.diff_ids).unwrap_or_default();
        let env = process.env.unwrap_or_default();
        let config = Self {
            platform: wire.platform,
            user: process.user.unwrap_or_default(),
            env: env.iter().map(|line| variable(line)).collect::<Result<_, _>>()?,
            working_dir: process.working_dir.unwrap_or_default(),
            entrypoint: process.entrypoint.unwrap_or_default(),
            cmd: process.cmd.unwrap_or_default(),
            labels: process.labels.unwrap_or_default(),
            diff_ids,
        };
        let single = [&config.user, &config.working_dir];
        let has_nul = |text: &String| text.contains('\0');
        if single.into_iter().chain(&config.entrypoint).chain(&config.cmd).chain(&env).any(has_nul) {
            return Err("something in it has a NUL byte, which no program can be started with".to_owned());
        }
        Ok(config)
    }

    /// Returns program and arguments: the entrypoint, followed by the further arguments. Empty if the image has none.
    pub fn command(&self) -> Vec<String> {
        [&self.entrypoint[..], &self.cmd[..]].concat()
    }
}

/// Splits name and value of a variable. One without `=` is empty, as in Docker.
fn variable(line: &str) -> Result<(String, String), String> {
    match line.split_once('=').unwrap_or((line, "")) {
        ("", _) => Err("a variable of its environment has no name".to_owned()),
        (name, value) => Ok((name.to_owned(), value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(value: &Value) -> Result<ImageConfig, String> {
        ImageConfig::parse(value.to_string().as_bytes())
    }

    #[test]
    fn everything_is_taken() {
        let config = parse(&json!({
            "architecture": "arm64", "os": "linux", "variant": "v8", "created": "2026-01-01T00:00:00Z", "history": [],
            "config": {
                "User": "app:staff", "Env": ["PATH=/bin:/usr/bin", "EMPTY=", "BARE", "SUM=1=1"], "WorkingDir": "srv",
                "Entrypoint": ["/init"], "Cmd": ["serve", "--port=80"], "Labels": { "a": "b" }, "ExposedPorts": { "80/tcp": {} },
            },
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(b"1"), Digest::of(b"2")] },
        }))
        .unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64/v8");
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("app:staff", "srv"));
        let env: Vec<_> = config.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(env, [("PATH", "/bin:/usr/bin"), ("EMPTY", ""), ("BARE", ""), ("SUM", "1=1")]);
        assert_eq!(config.command(), ["/init", "serve", "--port=80"]);
        assert_eq!(config.labels["a"], "b");
        assert_eq!(config.diff_ids, [Digest::of(b"1"), Digest::of(b"2")]);
    }

    #[test]
    fn what_is_absent_or_null_is_empty() {
        let nulls = json!({ "os": "linux", "architecture": "amd64", "config": { "Env": null, "Cmd": null, "Labels": null, "Entrypoint": null }, "rootfs": { "diff_ids": null } });
        let config = parse(&nulls).unwrap();
        assert!(config.env.is_empty() && config.command().is_empty() && config.diff_ids.is_empty());
        assert_eq!(
            parse(&json!({ "os": "linux", "architecture": "amd64", "config": null, "rootfs": null })),
            Ok(config)
        );
    }

    #[test]
    fn what_no_program_can_be_started_with_is_refused() {
        for process in [
            json!({ "Env": ["=x"] }),
            json!({ "Cmd": ["a\0b"] }),
            json!({ "User": "a\0" }),
            json!({ "Env": ["A=\0"] }),
            json!({ "Cmd": "sh" }),
        ] {
            assert!(
                parse(&json!({ "os": "linux", "architecture": "amd64", "config": process })).is_err(),
                "{process}"
            );
        }
        assert!(parse(&json!({ "rootfs": { "diff_ids": ["x"] } })).is_err() && parse(&json!([])).is_err());
    }
}
