//! Test programs: which run in the lab, and where cargo puts them.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::repository;

/// A test target of a package.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// The package.
    pub(super) package: &'static str,
    /// The target.
    pub(super) test: &'static str,
    /// More variables of its environment.
    pub(super) env: &'static [&'static str],
    /// Which of its cases are run together, as the program's arguments. A lab that stands still costs those of one run.
    pub(super) runs: &'static [&'static [&'static str]],
}

/// What runs in the lab, the longest first: so the labs end at about the same time. These targets see `IN_LAB=1` there,
/// and then take what only a lab has.
pub(super) const TARGETS: &[Target] = &[
    // Its state directories are on a disk: the lab's temporary directory is memory. What shares a Wrenn is one run: its
    // start takes longer than most cases.
    Target {
        package: "wrenn-testkit",
        test: "e2e",
        env: &["WRENN_BIN=/usr/local/bin/wrenn", "TMPDIR=/var/lib/wrenn"],
        runs: &[
            &["hosts::"],
            &["--skip=hosts::", "--skip=network::", "--skip=faults::"],
            &["network::"],
            &["faults::"],
        ],
    },
    Target {
        package: "wrenn-vmm",
        test: "conformance",
        env: &[],
        runs: &[&["firecracker_jailed_linux::"], &["firecracker_jailed::"], &["firecracker_unjailed::"]],
    },
    Target { package: "wrenn-disk", test: "conformance", env: &[], runs: &[&[]] },
];

impl Target {
    /// Its name in the lab.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.package, self.test)
    }

    /// Builds it, and says where it is.
    pub(super) fn build(&self) -> Result<PathBuf> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .current_dir(repository())
            .args(["test", "--offline", "--no-run", "--message-format=json", "--package", self.package])
            .args(["--test", self.test])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        ensure!(output.status.success(), "cannot build {}: {}", self.name(), output.status);
        let messages = String::from_utf8_lossy(&output.stdout);
        messages
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["target"]["name"] == self.test && message["profile"]["test"] == true)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .with_context(|| format!("cargo names no executable for {}", self.name()))
    }
}
