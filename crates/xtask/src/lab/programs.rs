// SPDX-License-Identifier: Apache-2.0
//! Test programs of the lab: which cases run there, in which order, and where cargo puts the programs.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::repository;

/// Test target of a package.
#[derive(Debug)]
pub(super) struct Target {
    /// Package name.
    package: &'static str,
    /// Target name.
    test: &'static str,
    /// Additional environment variables.
    pub(super) env: &'static [&'static str],
}

/// Cases of a test program that run together. If the lab hangs, all cases of the run are repeated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) target: &'static Target,
    /// Arguments of the program that select the cases; empty for all.
    pub(super) cases: &'static [&'static str],
    /// Whether the cases also run outside of a lab on machines with a usable `/dev/kvm`.
    pub(super) outside_too: bool,
}

/// End-to-end cases. Their state directories are on a disk, because the lab's temporary directory is in
/// memory.
const E2E: Target = Target {
    package: "wrenn-testkit",
    test: "e2e",
    env: &["WRENN_BIN=/usr/local/bin/wrenn", "TMPDIR=/var/lib/wrenn"],
};
const VMM: Target = Target { package: "wrenn-vmm", test: "conformance", env: &[] };
const DISK: Target = Target { package: "wrenn-disk", test: "conformance", env: &[] };

const fn run(target: &'static Target, cases: &'static [&'static str]) -> Run {
    Run { target, cases, outside_too: false }
}

/// Runs of the lab, the longest first, so that concurrent labs end at about the same time. With `IN_LAB=1`
/// the targets select what only a lab has. Cases that share a Wrenn are one run, because starting it takes
/// longer than most cases.
pub(super) const RUNS: &[Run] = &[
    run(&VMM, &["firecracker_jailed_linux::"]),
    run(&E2E, &["--skip=hosts::", "--skip=network::", "--skip=faults::"]),
    run(&E2E, &["network::"]),
    run(&DISK, &[]),
    run(&E2E, &["hosts::"]),
    run(&E2E, &["faults::"]),
    Run { outside_too: true, ..run(&VMM, &["firecracker_jailed::"]) },
    Run { outside_too: true, ..run(&VMM, &["firecracker_unjailed::"]) },
];

impl Target {
    /// File name of the program in the lab.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.package, self.test)
    }
}

/// Builds the test programs and returns their paths by target name.
///
/// Selects the whole workspace, as `make test` does: other packages would have other features, and their
/// dependencies would be compiled again. In CI, where everything is already built, compiling again is an
/// error.
pub(super) fn build() -> Result<BTreeMap<String, PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(repository())
        .args(["test", "--offline", "--locked", "--workspace", "--features", "wrenn-cli/fault-points"])
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
    let targets = [&E2E, &VMM, &DISK].into_iter().map(|target| {
        let is_it = |message: &&Value| {
            let id = message["package_id"].as_str().unwrap_or_default();
            message["target"]["name"] == target.test
                && message["profile"]["test"] == true
                && id.contains(&format!("/{}#", target.package.trim_start_matches("wrenn-")))
        };
        let found = messages.iter().find(is_it).and_then(|message| message["executable"].as_str());
        let path = found.with_context(|| format!("cargo names no executable for {}", target.name()))?;
        Ok((target.name(), PathBuf::from(path)))
    });
    targets.collect()
}
