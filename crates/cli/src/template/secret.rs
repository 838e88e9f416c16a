// SPDX-License-Identifier: Apache-2.0
//! `--secret` of `wrenn template build`: values of secrets from files or variables, and never from the command line, which process
//! lists show.

use std::{collections::BTreeMap, env, fs::File, io::Read as _, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use wrenn_api::BuildSecrets;

/// Maximum number of bytes that are read; the API takes less.
const VALUE_MAX: u64 = 1 << 20;

/// A secret and where its value is: `id=NAME[,src=FILE|,env=VAR]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Secret {
    id: String,
    from: From,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    File(PathBuf),
    Variable(String),
}

impl Secret {
    /// Parses the value of an option, as docker buildx has it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (mut id, mut from) = (None, None);
        for part in text.split(',') {
            // What stands there may be a value.
            let wrong = || "write id=NAME, and where the value is: src=FILE or env=VAR".to_owned();
            let (key, value) =
                part.split_once('=').filter(|(_, value)| !value.is_empty()).ok_or_else(wrong)?;
            let found = match key {
                "id" => {
                    if id.replace(value.to_owned()).is_some() {
                        return Err("it has two ids".to_owned());
                    }
                    continue;
                }
                "type" if value == "file" || value == "env" => continue,
                "src" | "source" => From::File(value.into()),
                "env" => From::Variable(value.to_owned()),
                _ => return Err(wrong()),
            };
            if from.replace(found).is_some() {
                return Err("it has two places for the value: give one of src and env".to_owned());
            }
        }
        let id = id.ok_or_else(|| "it has no id: write id=NAME".to_owned())?;
        let from = from.unwrap_or_else(|| From::Variable(id.clone()));
        Ok(Self { id, from })
    }

    fn value(&self) -> Result<String> {
        let id = &self.id;
        match &self.from {
            From::File(path) => {
                let shown = path.display();
                let mut value = String::new();
                let file = File::open(path)
                    .with_context(|| format!("the secret {id} cannot be read from {shown}"))?;
                let read = file.take(VALUE_MAX).read_to_string(&mut value);
                read.with_context(|| {
                    format!("the secret {id} cannot be read from {shown}: it must be UTF-8")
                })?;
                Ok(value)
            }
            From::Variable(name) => {
                let value = env::var_os(name);
                let value = value.with_context(|| {
                    format!(
                        "the secret {id} has no value: set the variable {name}, or name a file by src=FILE"
                    )
                })?;
                // The error must not quote it.
                let value = value.into_string().ok();
                value.with_context(|| {
                    format!("the secret {id} cannot be read from the variable {name}: it must be UTF-8")
                })
            }
        }
    }
}

/// Reads the values of secrets.
pub(super) fn values(secrets: &[Secret]) -> Result<BuildSecrets> {
    let mut values = BTreeMap::new();
    for secret in secrets {
        let value = secret.value()?;
        ensure!(!value.is_empty(), "the secret {} is empty", secret.id);
        if values.insert(secret.id.clone(), value).is_some() {
            bail!("the secret {} is given twice", secret.id);
        }
    }
    Ok(BuildSecrets(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_named_with_their_places() {
        let of = |text: &str| Secret::parse(text).map(|secret| (secret.id, secret.from));
        let file = |path: &str| From::File(path.into());
        let variable = |name: &str| From::Variable(name.to_owned());
        assert_eq!(of("id=npm,src=/home/me/.npmrc"), Ok(("npm".into(), file("/home/me/.npmrc"))));
        assert_eq!(of("type=env,id=npm,env=NPM_TOKEN"), Ok(("npm".into(), variable("NPM_TOKEN"))));
        assert_eq!(of("id=NPM_TOKEN"), Ok(("NPM_TOKEN".into(), variable("NPM_TOKEN"))));
        for text in
            ["", "npm", "id=", "src=a", "id=a,id=b", "id=a,src=b,env=C", "id=a,hunter2", "id=a,value=hunter2"]
        {
            let error = of(text).expect_err(text);
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn values_are_read_as_they_are() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("token");
        std::fs::write(&path, "s3cret\n")?;
        let secret = |id: &str| Secret { id: id.to_owned(), from: From::File(path.clone()) };
        let read = values(&[secret("a"), secret("b")])?;
        assert_eq!(read.0["b"], "s3cret\n");
        assert_eq!(format!("{read:?}"), r#"{"a", "b"}"#);
        assert!(values(&[secret("a"), secret("a")]).is_err());
        std::fs::write(&path, b"\xff")?;
        assert!(values(&[secret("a")]).is_err());
        std::fs::write(&path, "")?;
        assert!(values(&[secret("a")]).is_err());
        let absent = Secret { id: "a".to_owned(), from: From::Variable("WRENN_NO_SUCH_VARIABLE".to_owned()) };
        assert!(values(&[absent]).is_err());
        Ok(())
    }
}
