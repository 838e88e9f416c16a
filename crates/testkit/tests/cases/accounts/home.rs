// SPDX-License-Identifier: Apache-2.0
//! Home directory of a person who is not on the server's machine: what `wrenn` keeps there is all that it knows.

use std::{
    ffi::OsString,
    fs,
    path::PathBuf,
    process::{Command, Output},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::Value;
use tempfile::TempDir;
use wrenn_testkit::{Reply, Stack};

use crate::cases::{
    cli::{output_of, stderr},
    people::{as_user, told},
};

/// Context of the session of [`signed_in`].
pub(super) const WORK: &str = "work";

/// A key that nobody has.
pub(super) const NO_KEY: &str = "wrn_0000000000000000000000000000000000000000";

/// A home directory.
pub(super) struct Home {
    stack: Arc<Stack>,
    dir: TempDir,
}

impl Home {
    /// Makes one, in which nothing is.
    pub(super) fn new(stack: &Arc<Stack>) -> Result<Self> {
        Ok(Self { stack: stack.clone(), dir: tempfile::tempdir()? })
    }

    /// Returns `wrenn ARGS` of the person, without the variables of the server's machine.
    pub(super) fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.stack.command(args)?;
        let of_server: Vec<OsString> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
        for name in of_server.iter().filter(|name| name.to_string_lossy().starts_with("WRENN_")) {
            command.env_remove(name);
        }
        command.env("HOME", self.dir.path());
        Ok(command)
    }

    /// Runs `wrenn`.
    pub(super) async fn run(&self, args: &[&str], input: Option<&str>) -> Result<Output> {
        output_of(self.command(args)?, input).await
    }

    /// Runs `wrenn`, which succeeds; returns its output.
    pub(super) async fn told(&self, args: &[&str], input: Option<&str>) -> Result<String> {
        let output = self.run(args, input).await?;
        ensure!(output.status.success(), "wrenn {}: {}", args.join(" "), stderr(&output));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Runs `wrenn --json`, which succeeds; returns its output.
    pub(super) async fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.told(&[&["--json"][..], args].concat(), None).await?;
        serde_json::from_str(&text).with_context(|| format!("wrenn --json {}: {text}", args.join(" ")))
    }

    /// Runs `wrenn`, which must fail, print nothing, and say all these texts.
    pub(super) async fn refused(&self, args: &[&str], input: Option<&str>, says: &[&str]) -> Result<()> {
        let output = self.run(args, input).await?;
        let text = stderr(&output);
        ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{args:?}: {output:?}");
        ensure!(says.iter().all(|part| text.contains(*part)), "{args:?}: {text:?} has not all of {says:?}");
        Ok(())
    }

    /// Runs `wrenn` with a wrong command line, which it must say.
    pub(super) async fn misused(&self, args: &[&str], says: &str) -> Result<()> {
        let output = self.run(args, None).await?;
        let text = stderr(&output);
        ensure!(output.status.code() == Some(2) && text.contains(says), "{args:?}: {output:?}");
        Ok(())
    }

    /// Path of the file of contexts.
    pub(super) fn file(&self) -> PathBuf {
        self.dir.path().join(".config/wrenn/contexts.toml")
    }

    /// Token of the only session that is kept.
    pub(super) fn token(&self) -> Result<String> {
        let text = fs::read_to_string(self.file())?;
        let token = text.lines().find_map(|line| line.strip_prefix("token = "));
        Ok(token.with_context(|| format!("no session is kept: {text}"))?.trim_matches('"').to_owned())
    }

    /// Sends a GET request by the only session that is kept.
    pub(super) async fn get(&self, path: &str) -> Result<Reply> {
        as_user(&self.stack, Method::GET, path, &self.token()?, &Value::Null).await
    }
}

/// Makes a user, as who runs the server may, and signs them in at a home of their own.
pub(super) async fn signed_in(stack: &Arc<Stack>, email: &str, name: &str) -> Result<Home> {
    let home = Home::new(stack)?;
    let link = told(stack, &["user", "create", email, "--name", name], None).await?;
    home.told(&["login", "--link", "--stdin", "--use-context", WORK], Some(&link)).await?;
    Ok(home)
}

/// Returns a text of a JSON object.
pub(super) fn text(value: &Value, name: &str) -> Result<String> {
    let text = value[name].as_str().map(str::to_owned);
    text.with_context(|| format!("{value} has no {name}"))
}

/// Returns the object of a list that has this value.
pub(super) fn with<'a>(list: &'a Value, name: &str, value: &str) -> Result<&'a Value> {
    let found = list.as_array().into_iter().flatten().find(|one| one[name] == value);
    found.with_context(|| format!("nothing has the {name} {value}: {list}"))
}
