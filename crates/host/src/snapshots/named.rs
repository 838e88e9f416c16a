// SPDX-License-Identifier: Apache-2.0
//! Named snapshots on this host: memory and disk of a sandbox at one instant, from which others are created.
//!
//! One exists when its record does, which is written when its memory and its disk would survive a power failure.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use wrenn_api::ErrorCode;
use wrenn_disk::Volumes;
use wrenn_memory::{BuildId, Part};
use wrenn_os::atomic_file;

use super::{Snapshots, templates::TemplateSnapshot};
use crate::error::{AgentError, of_files};

/// First part of the ids of the snapshots' volumes, and of the labels of their memory.
const PREFIX: &str = "snapshot.";
/// Ending of the files of records.
const RECORD: &str = ".json";

/// Record of a named snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamedSnapshot {
    /// Id that the control plane gave it.
    pub(crate) id: String,
    /// Generation with its memory.
    pub(crate) build: BuildId,
    /// Template of its sandbox.
    pub(crate) template: String,
    /// Number of virtual CPUs.
    pub(crate) vcpus: u32,
    /// Memory in MiB.
    pub(crate) memory_mb: u64,
    /// Size of the disk in MiB.
    pub(crate) disk_size_mb: u64,
    /// Default user of commands.
    pub(crate) default_user: String,
    /// Access token of envd in its memory, which a sandbox replaces by its own.
    pub(crate) access_token: String,
    /// Environment of the sandbox's processes.
    pub(crate) envs: BTreeMap<String, String>,
}

/// Named snapshots on this host.
pub(crate) struct NamedSnapshots {
    dir: PathBuf,
    snapshots: Arc<Snapshots>,
    volumes: Arc<dyn Volumes>,
    known: Mutex<Known>,
}

/// Snapshots that there are, and the last ones that were removed.
#[derive(Default)]
struct Known {
    all: HashMap<String, Arc<NamedSnapshot>>,
    /// Ids of snapshots that may still be being made. The latest is the last.
    removed: VecDeque<String>,
}

/// Number of removed snapshots that are remembered.
const REMOVED: usize = 1024;

/// Label of the memory of snapshot `id`.
pub(crate) fn label(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// Returns whether a generation with this label is one of a named snapshot.
pub(super) fn is_label(label: &str) -> bool {
    label.starts_with(PREFIX)
}

/// Id of the volume with the disk of a snapshot.
pub(crate) fn volume_of(build: BuildId) -> String {
    format!("{PREFIX}{build}")
}

/// Reads the records in this directory, which is created if it is missing.
pub(crate) fn read(dir: &Path) -> io::Result<Vec<NamedSnapshot>> {
    // Records have tokens and environments.
    fs::DirBuilder::new().mode(0o700).recursive(true).create(dir)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(RECORD) {
            found.push(serde_json::from_slice(&fs::read(path)?)?);
        }
    }
    Ok(found)
}

impl NamedSnapshots {
    /// Snapshots with these records in this directory.
    pub(crate) fn new(
        dir: &Path,
        records: Vec<NamedSnapshot>,
        snapshots: Arc<Snapshots>,
        volumes: Arc<dyn Volumes>,
    ) -> Self {
        let all = records.into_iter().map(|record| (record.id.clone(), Arc::new(record))).collect();
        let known = Mutex::new(Known { all, removed: VecDeque::new() });
        Self { dir: dir.to_owned(), snapshots, volumes, known }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}{RECORD}"))
    }

    /// Finds a snapshot.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<NamedSnapshot>, AgentError> {
        let none = || {
            let message = "the snapshot is not on its host any more: delete it, and make another one";
            AgentError::new(ErrorCode::SnapshotMissing, message)
        };
        self.known().all.get(id).cloned().ok_or_else(none)
    }

    /// What a sandbox goes on from.
    pub(crate) fn start(&self, snapshot: &NamedSnapshot) -> TemplateSnapshot {
        let path = |part| self.snapshots.generations.path(snapshot.build, part);
        let files = [Part::State, Part::Data].map(path);
        TemplateSnapshot::named(
            snapshot.build,
            snapshot.access_token.clone(),
            volume_of(snapshot.build),
            files,
        )
    }

    /// Keeps the record of a snapshot whose memory and disk are kept. Fails if it was removed while it was being made:
    /// the control plane has given it up then, and does not ask for it again.
    pub(crate) async fn keep(&self, snapshot: NamedSnapshot) -> Result<(), AgentError> {
        let (path, record) = (self.path(&snapshot.id), snapshot.clone());
        let written =
            spawn_blocking(move || atomic_file::write(&path, &serde_json::to_vec(&record)?, 0o600, None));
        let written = written.await.unwrap_or_else(|error| Err(error.into()));
        written.map_err(|error| of_files("keeping the snapshot", &error))?;
        let id = snapshot.id.clone();
        {
            let mut known = self.known();
            if !known.removed.contains(&id) {
                known.all.insert(id, Arc::new(snapshot));
                return Ok(());
            }
        }
        self.remove_record(&id).await?;
        Err(AgentError::new(ErrorCode::Conflict, "the snapshot was deleted while it was being made"))
    }

    async fn remove_record(&self, id: &str) -> Result<(), AgentError> {
        let path = self.path(id);
        let removed = spawn_blocking(move || match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        let removed = removed.await.unwrap_or_else(|error| Err(error.into()));
        removed.map_err(|error| of_files("removing the snapshot", &error))
    }

    /// Removes a snapshot with its memory and its disk. Does nothing if there is none. Sandboxes that were created from
    /// it do not need it.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), AgentError> {
        let removed = {
            let mut known = self.known();
            known.removed.push_back(id.to_owned());
            if known.removed.len() > REMOVED {
                known.removed.pop_front();
            }
            known.all.remove(id)
        };
        let Some(snapshot) = removed else { return Ok(()) };
        if let Err(error) = self.remove_record(id).await {
            self.known().all.insert(id.to_owned(), snapshot);
            return Err(error);
        }
        self.drop_parts(snapshot.build).await;
        Ok(())
    }

    /// Removes memory and disk of a snapshot without a record. The next start removes what cannot be removed now.
    pub(crate) async fn drop_parts(&self, build: BuildId) {
        self.snapshots.remove(build).await;
        if let Err(error) = self.volumes.remove(&volume_of(build)).await {
            tracing::warn!(%error, "cannot remove a snapshot's disk; the next start removes it");
        }
    }
}
