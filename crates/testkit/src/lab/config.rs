//! What a lab is made of.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};

use super::{Subnet, files};

/// What a lab is made of.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Its name: letters, digits and dashes. One lab of a name runs at a time.
    pub name: String,
    /// Its memory.
    pub memory_mb: u32,
    /// Its processors. Emulated ones side by side, each with guests of its own, now and then lose their way.
    pub cpus: u32,
    /// Its network; labs of one subnet in one network namespace reach each other.
    pub subnet: Subnet,
    /// Files and directories it finds at its start: where they are here, and the path there.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// How long it may take to start.
    pub start_limit: Duration,
    /// When it is ended, whatever goes on in it, counted from its start.
    pub time_limit: Duration,
}

impl LabConfig {
    /// The usual lab: one processor, 4 GiB, ended after ten minutes.
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

    /// With the guest's kernel, its initial RAM disk and templates, and with the programs that are built.
    #[must_use]
    pub fn with_product(mut self) -> Self {
        let root = files::repository();
        self.files.push((root.join("share/wrenn"), "/usr/local/share/wrenn".into()));
        self.files.push((root.join("target/debug/wrenn"), "/usr/local/bin/wrenn".into()));
        self.files.retain(|(local, _)| local.exists());
        self
    }

    /// With one more file or directory.
    #[must_use]
    pub fn with_file(mut self, local: impl Into<PathBuf>, remote: impl Into<PathBuf>) -> Self {
        self.files.push((local.into(), remote.into()));
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(is_name(&self.name), "{:?} is no name for a lab: use letters, digits and dashes", self.name);
        for (_, remote) in &self.files {
            ensure!(
                remote.is_absolute() && !remote.components().any(|part| part.as_os_str() == ".."),
                "{} is no absolute path in a lab",
                remote.display()
            );
        }
        Ok(())
    }
}

/// It becomes a host name, a directory and a part of a socket's path.
pub(super) fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}
