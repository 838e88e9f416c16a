// SPDX-License-Identifier: Apache-2.0
//! Environment variables for a sandbox or a command: `--env` and `--env-file`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Options of environment variables.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Variables {
    /// Set a variable for the processes, or pass one on by its NAME alone; may be repeated
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE", value_parser = given)]
    envs: Vec<(String, String)>,
    /// Set the variables of this file, with lines of NAME=VALUE; those of --env are stronger; may be repeated
    #[arg(long = "env-file", value_name = "FILE")]
    env_files: Vec<PathBuf>,
}

impl Variables {
    /// Returns all variables. A later file is stronger than one before it.
    pub(crate) fn all(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for path in &self.env_files {
            all.extend(file(path)?);
        }
        all.extend(self.envs.iter().cloned());
        Ok(all)
    }
}

/// Reads the variables of a file.
pub(crate) fn file(path: &Path) -> Result<Vec<(String, String)>> {
    let unreadable = || format!("--env-file {} cannot be read", path.display());
    let entries = dotenvy::from_path_iter(path).with_context(unreadable)?;
    entries.collect::<Result<_, _>>().with_context(unreadable)
}

/// Parses `NAME=VALUE`.
pub(crate) fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// Parses `NAME=VALUE`, or `NAME` of a variable of this program.
fn given(text: &str) -> Result<(String, String), String> {
    if text.is_empty() || text.contains('=') {
        return assignment(text);
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(std::env::VarError::NotPresent) => Err(format!("{text} is not set here: write NAME=VALUE")),
        Err(std::env::VarError::NotUnicode(_)) => Err(format!("the value of {text} is no UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_need_a_name() {
        assert_eq!(assignment("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(assignment("=x").is_err() && assignment("A").is_err());
        assert_eq!(given("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(given("PATH").ok().map(|(_, value)| value), std::env::var("PATH").ok());
        assert!(given("WRENN_NOT_SET_ANYWHERE").is_err_and(|error| error.contains("is not set here")));
        assert!(given("").is_err() && given("=x").is_err());
    }

    #[test]
    fn options_are_stronger_than_files_and_later_files_than_earlier_ones() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        std::fs::write(&one, "# comment\nA=1\nB='two words'\nexport C=3\n")?;
        std::fs::write(&other, "B=4\n")?;
        let envs = vec![("C".to_owned(), "5".to_owned())];
        let all = Variables { envs, env_files: vec![one, other.clone()] }.all()?;
        let all: Vec<_> = all.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(all, [("A", "1"), ("B", "4"), ("C", "5")]);
        std::fs::write(&other, "no assignment\n")?;
        for path in [other, dir.path().join("none")] {
            let error = Variables { env_files: vec![path.clone()], ..Variables::default() }.all();
            assert!(error.is_err_and(|error| error.to_string().contains(&path.display().to_string())));
        }
        Ok(())
    }
}
