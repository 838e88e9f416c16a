// SPDX-License-Identifier: Apache-2.0
//! Environment of a sandbox's processes, kept for a boot after which envd does not know it any more. It may have
//! secrets, so it is in a file of its own, which only the agent reads.

use std::{collections::HashMap, fs, io, path::Path};

use wrenn_os::atomic_file;

use super::record::Sandbox;
use crate::{
    directory,
    error::{AgentError, of_files},
};

const FILE: &str = "environment.json";

/// Keeps the environment in the sandbox's directory, which exists.
pub(super) async fn keep(sandbox: &Sandbox, envs: &HashMap<String, String>) -> Result<(), AgentError> {
    if envs.is_empty() {
        return Ok(());
    }
    let (dir, envs) = (directory::of(&sandbox.shared.dir, &sandbox.id), envs.clone());
    let kept = tokio::task::spawn_blocking(move || write(&dir, &envs)).await;
    kept.unwrap_or_else(|error| Err(error.into()))
        .map_err(|error| of_files("keeping the sandbox's environment", &error))
}

/// Reads the environment; empty if there is none.
pub(super) async fn read(sandbox: &Sandbox) -> Result<HashMap<String, String>, AgentError> {
    let path = directory::of(&sandbox.shared.dir, &sandbox.id).join(FILE);
    let read = tokio::task::spawn_blocking(move || match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashMap::new()),
        read => Ok(serde_json::from_slice(&read?)?),
    });
    let read = read.await.unwrap_or_else(|error| Err(error.into()));
    read.map_err(|error: io::Error| of_files("reading the sandbox's environment", &error))
}

fn write(dir: &Path, envs: &HashMap<String, String>) -> io::Result<()> {
    atomic_file::write(&dir.join(FILE), &serde_json::to_vec(envs)?, 0o600, None)
}
