// SPDX-License-Identifier: Apache-2.0
//! Release of a sandbox's resources. Does nothing for resources that are already gone.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use wrenn_vmm::{ProcessId, process};

use super::{shared::Shared, summary::Undo};
use crate::{cgroup, directory, error::AgentError};

/// Removes the directory of a sandbox with its journal. Renames it first, so that a partly removed directory
/// is never read as a sandbox.
pub(crate) async fn directory(sandboxes: &Path, id: &str) -> Result<(), AgentError> {
    let (dir, gone) = (directory::of(sandboxes, id), directory::of_removed(sandboxes, id));
    let removed = tokio::task::spawn_blocking(move || {
        // The directory was already renamed if this is a second attempt.
        absent_is_fine(fs::rename(&dir, &gone))?;
        absent_is_fine(fs::remove_dir_all(&gone))
    });
    let result = removed.await.unwrap_or_else(|error| Err(error.into()));
    result.map_err(|error| AgentError::fault("removing the sandbox's directory", &error))
}

/// Removes a directory of a sandbox with all that is in it.
pub(crate) async fn files(dir: PathBuf) -> Result<(), AgentError> {
    let removed = tokio::task::spawn_blocking(move || absent_is_fine(fs::remove_dir_all(dir))).await;
    let result = removed.unwrap_or_else(|error| Err(error.into()));
    result.map_err(|error| AgentError::fault("removing the sandbox's files", &error))
}

fn absent_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Releases one resource. Does nothing if it is already gone.
pub(crate) async fn resource(shared: &Shared, id: &str, step: &Undo) -> Result<(), AgentError> {
    match step {
        Undo::Vmm(known) => end_vmm(&directory::of_vmm(&shared.dir, id), known.as_ref()).await,
        Undo::Volume => Ok(shared.volumes.remove(id).await?),
        Undo::Slot(index) => Ok(shared.slots.release(*index).await?),
    }
}

/// Kills the VMM with files in `run_dir`, all processes that it has started, and its page server.
pub(crate) async fn end_vmm(run_dir: &Path, known: Option<&ProcessId>) -> Result<(), AgentError> {
    /// Time limit of an exit: a killed process is gone after the kernel has freed its memory.
    const LIMIT: Duration = Duration::from_secs(15);
    /// Maximum number of processes; a VMM starts none, and may have a page server.
    const PROCESSES: usize = 16;
    let fault = |error: &dyn std::fmt::Display| AgentError::fault("ending the microVM", error);
    let (known, run_dir) = (known.cloned(), run_dir.to_owned());
    for count in 0.. {
        let (known, searched) = (known.clone(), run_dir.clone());
        let found = tokio::task::spawn_blocking(move || match process::of(&searched, known.as_ref())? {
            None => process::page_server(&searched),
            vmm => Ok(vmm),
        });
        let found = found.await.map_err(|error| fault(&error))?.map_err(|error| fault(&error))?;
        let Some(found) = found else { break };
        if count == PROCESSES {
            return Err(fault(&"it starts processes faster than they end"));
        }
        let Some(watched) = process::Watched::open(found).map_err(|error| fault(&error))? else { continue };
        watched.kill().map_err(|error| fault(&error))?;
        let gone = tokio::time::timeout(LIMIT, watched.exited()).await;
        gone.map_err(|_| fault(&"it does not end after SIGKILL"))?;
    }
    let removed = tokio::task::spawn_blocking(move || {
        let id =
            run_dir.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        cgroup::remove(&id)
    });
    removed.await.map_err(|error| fault(&error))?.map_err(|error| fault(&error))
}
