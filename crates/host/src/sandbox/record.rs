// SPDX-License-Identifier: Apache-2.0
//! Record of a sandbox: what its journal says, and what exists but could not be written.

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    entry::Entry,
    journal::Journal,
    shared::Shared,
    spec::Spec,
    summary::{Summary, Undo},
};
use crate::{
    directory,
    error::{AgentError, of_files},
};

/// What operations work on: a sandbox, its record, and the agent's resources.
pub(crate) struct Sandbox {
    /// Id.
    pub(crate) id: String,
    /// Requested properties.
    pub(crate) spec: Arc<Spec>,
    /// Resources of the agent.
    pub(crate) shared: Arc<Shared>,
    /// Record.
    pub(crate) record: Record,
}

/// Record of a sandbox.
pub(crate) struct Record {
    log: Log,
    summary: Summary,
}

enum Log {
    /// The first write creates the sandbox's directory and the journal.
    New(PathBuf),
    Open(Journal),
    /// There is none that this agent may write.
    Closed,
}

impl Sandbox {
    /// Directory of the VMM's files.
    pub(super) fn run_dir(&self) -> PathBuf {
        directory::of_vmm(&self.shared.dir, &self.id)
    }

    /// File of the working set of the guest that runs.
    pub(crate) fn working_set(&self) -> PathBuf {
        directory::of(&self.shared.dir, &self.id).join("working_set")
    }

    /// Directory of captures, on the file system of the VMM's directory.
    pub(crate) fn captures(&self) -> PathBuf {
        directory::of(&self.shared.dir, &self.id).join("captures")
    }
}

impl Record {
    /// Record of a new sandbox; nothing is written yet.
    pub(crate) fn new(sandboxes: &Path, id: &str) -> Self {
        Self { log: Log::New(directory::of(sandboxes, id)), summary: Summary::default() }
    }

    /// Record in a journal of a former agent.
    pub(crate) fn open(journal: Journal) -> Self {
        let summary = journal.summary().clone();
        Self { log: Log::Open(journal), summary }
    }

    /// Record of a sandbox whose journal is not understood.
    pub(crate) fn presumed(summary: Summary) -> Self {
        Self { log: Log::Closed, summary }
    }

    /// Summary of what exists.
    pub(crate) fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Returns whether entries can be written.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.log, Log::Closed)
    }

    /// Closes the journal, before the sandbox's directory is removed.
    pub(super) fn close(&mut self) {
        self.log = Log::Closed;
    }

    /// Notes in memory only that something exists. The next write must have the same entry.
    pub(super) fn note(&mut self, entry: &Entry) {
        self.summary.add(entry);
    }

    /// Notes in memory only that a resource was released.
    pub(crate) fn forget(&mut self, done: &Undo) {
        self.summary.forget(done);
    }

    /// Writes entries to the journal, in one write. Runs on a blocking thread, because the file system may block.
    pub(crate) async fn write(&mut self, entries: Vec<Entry>) -> Result<(), AgentError> {
        if entries.is_empty() {
            return Ok(());
        }
        // Recorded in memory even if the write fails: the resources exist, and must be released.
        entries.iter().for_each(|entry| self.summary.add(entry));
        let log = std::mem::replace(&mut self.log, Log::Closed);
        let written = tokio::task::spawn_blocking(move || write(log, &entries));
        let failed =
            |error: &dyn std::fmt::Display| AgentError::fault("writing the sandbox's journal", error);
        let (log, result) = written.await.map_err(|error| failed(&error))?;
        self.log = log;
        result
    }
}

fn write(log: Log, entries: &[Entry]) -> (Log, Result<(), AgentError>) {
    match log {
        Log::New(dir) => {
            match make_directory(&dir, 0o711).and_then(|()| Ok(Journal::begin(&dir, entries)?)) {
                Ok(journal) => (Log::Open(journal), Ok(())),
                // The directory may have a part of the journal.
                Err(error) => (Log::Closed, Err(error)),
            }
        }
        Log::Open(mut journal) => {
            let result = journal.append(entries).map_err(AgentError::from);
            (Log::Open(journal), result)
        }
        Log::Closed => {
            (Log::Closed, Err(AgentError::fault("writing the sandbox's journal", &"it is not open")))
        }
    }
}

/// Creates a directory and its missing parents. Does nothing if it exists.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<(), AgentError> {
    let made = DirBuilder::new().mode(mode).recursive(true).create(path);
    made.map_err(|error| of_files("making the sandbox's directory", &error))
}
