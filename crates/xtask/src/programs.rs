// SPDX-License-Identifier: Apache-2.0
//! Test programs of the workspace: builds them, and says where cargo puts them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// A program of tests that cargo built: the unit tests of a library or a program, or an integration test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    /// Name of the directory of its package, such as `control`.
    pub(crate) package: String,
    /// Directory of its package, in which cargo would run it.
    pub(crate) directory: PathBuf,
    /// Name of its target, such as `e2e`; that of a library for its unit tests.
    pub(crate) target: String,
    /// The file to run.
    pub(crate) path: PathBuf,
    /// Whether it has the harness of Rust, and not one of its own.
    pub(crate) harness: bool,
}

impl Program {
    /// Returns `package/target`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.package, self.target)
    }
}

/// Root of the repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("/"))
}

/// Returns the cargo that runs this program, or that of `PATH`.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository());
    command
}

/// Packages and features of everything that is compiled for tests. Others would compile dependencies again.
pub(crate) const TESTED: &[&str] =
    &["--offline", "--locked", "--workspace", "--features", "wrenn-cli/fault-points"];

/// Builds all test programs of the workspace. In CI, where everything is already built, compiling again is an
/// error.
pub(crate) fn build() -> Result<Vec<Program>> {
    let output = cargo()
        .arg("test")
        .args(TESTED)
        .args(["--no-run", "--message-format=json"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "cannot build the test programs: {}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages: Vec<Value> = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let again = |message: &&Value| message["fresh"] == false;
    let again: Vec<_> = messages.iter().filter(again).map(|message| &message["target"]["name"]).collect();
    ensure!(
        again.is_empty() || std::env::var_os("CI").is_none(),
        "compiled once more, with other features than before: {again:?}"
    );
    messages.iter().filter_map(program).collect()
}

/// Returns the test program that a message of cargo announces.
fn program(message: &Value) -> Option<Result<Program>> {
    if message["profile"]["test"] != true {
        return None;
    }
    let path = message["executable"].as_str()?.into();
    let manifest = Path::new(message["manifest_path"].as_str()?);
    let directory = manifest.parent()?.to_owned();
    let package = directory.file_name()?.to_str()?.to_owned();
    let target = message["target"]["name"].as_str()?.to_owned();
    let text = fs::read_to_string(manifest).with_context(|| format!("cannot read {}", manifest.display()));
    Some(text.map(|text| Program { harness: has_harness(&text, &target), package, directory, target, path }))
}

/// Returns whether a manifest gives a test target the harness of Rust.
fn has_harness(manifest: &str, target: &str) -> bool {
    let mut tables = manifest.split("\n[");
    let name = format!("name = \"{target}\"");
    !tables.any(|table| {
        let has = |line: &str| table.lines().any(|other| other.trim() == line);
        table.starts_with("[test]]") && has(&name) && has("harness = false")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn programs_are_named_by_package_and_target() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("testkit").join("Cargo.toml");
        let message = |target: &str, test: bool| {
            json!({"reason": "compiler-artifact", "manifest_path": manifest,
                "target": {"name": target}, "profile": {"test": test}, "executable": "/t/e2e-1"})
        };
        let found = program(&message("e2e", true)).expect("a program").expect("its manifest");
        assert_eq!((found.name().as_str(), found.path.as_path()), ("testkit/e2e", Path::new("/t/e2e-1")));
        assert_eq!(found.directory, manifest.parent().expect("its directory"));
        assert!(
            !found.harness && program(&message("lab", true)).expect("one").expect("its manifest").harness
        );
        assert!(program(&message("e2e", false)).is_none());
        assert!(program(&json!({"reason": "build-finished"})).is_none());
    }
}
