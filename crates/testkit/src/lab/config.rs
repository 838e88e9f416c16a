// SPDX-License-Identifier: Apache-2.0
//! Configuration of a lab.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};

use super::{Subnet, files};

/// Configuration of a lab.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Name: letters, digits and dashes. Only one lab of a name can run at a time.
    pub name: String,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Number of CPUs. With more than one emulated CPU the lab's kernel sometimes crashes when guests run.
    pub cpus: u32,
    /// Subnet. Labs of one subnet in one network namespace can reach each other.
    pub subnet: Subnet,
    /// Files and directories to provide in the lab: local path and path in the lab.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Time limit for the start.
    pub start_limit: Duration,
    /// Time after its start when the lab is killed, even if commands are running.
    pub time_limit: Duration,
}

impl LabConfig {
    /// Creates a configuration with one CPU, 4 GiB and a time limit of ten minutes.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory_mb: 4096,
            cpus: 1,
            subnet: Subnet::default(),
            files: Vec::new(),
            start_limit: Duration::from_secs(120),
            time_limit: Duration::from_secs(600),
        }
    }

    /// Adds the guest kernel, initial RAM disk, templates and the built programs.
    #[must_use]
    pub fn with_product(mut self) -> Self {
        let root = files::repository();
        self.files.push((root.join("share/wrenn"), "/usr/local/share/wrenn".into()));
        self.files.push((root.join("target/debug/wrenn"), "/usr/local/bin/wrenn".into()));
        self.files.retain(|(local, _)| local.exists());
        self
    }

    /// Adds a file or directory.
    #[must_use]
    pub fn with_file(mut self, local: impl Into<PathBuf>, remote: impl Into<PathBuf>) -> Self {
        self.files.push((local.into(), remote.into()));
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            is_name(&self.name),
            "{:?} is not a valid lab name: use letters, digits and dashes",
            self.name
        );
        for (_, remote) in &self.files {
            ensure!(
                remote.is_absolute() && !remote.components().any(|part| part.as_os_str() == ".."),
                "{} is not an absolute path in the lab",
                remote.display()
            );
        }
        Ok(())
    }
}

/// Returns whether `name` is valid; it becomes a host name, a directory and part of a socket path.
pub(super) fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}
