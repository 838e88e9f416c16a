// SPDX-License-Identifier: Apache-2.0
//! Named snapshots on this host: memory and disk of a sandbox at one instant, or its disk alone, from which others are created.
//!
//! One exists when its record does, which is written when its memory and its disk would survive a power failure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use wrenn_api::ErrorCode;
use wrenn_disk::{DiskError, Volumes};
use wrenn_memory::{BuildId, Part};

use super::{Snapshots, templates::TemplateSnapshot};
use crate::{
    error::{AgentError, of_files},
    records,
};

/// First part of the ids of the snapshots' volumes, and of the labels of their memory.
const PREFIX: &str = "snapshot.";

/// Record of a named snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamedSnapshot {
    /// Id that the control plane gave it.
    pub(crate) id: String,
    /// Generation with its memory; the disk is named after it.
    pub(crate) build: BuildId,
    /// Whether it has a disk alone, from which sandboxes boot: there is no such generation then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) without_memory: bool,
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
    /// Directory of commands that name none; empty for the user's home.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) default_workdir: String,
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
    /// Images of removed snapshots on which disks of sandboxes still depend.
    left: Mutex<BTreeSet<String>>,
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

/// Build whose disk this image is the content of, if it is one of a snapshot that came from another host. It has the
/// name of the volume.
fn build_of(image: &str) -> Option<BuildId> {
    image.strip_prefix(PREFIX)?.parse().ok()
}

/// Error for a snapshot that is not on this host.
pub(crate) fn missing() -> AgentError {
    let message = "the snapshot is not on its host any more: delete it, and make another one";
    AgentError::new(ErrorCode::SnapshotMissing, message)
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
        Self { dir: dir.to_owned(), snapshots, volumes, known, left: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a snapshot.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<NamedSnapshot>, AgentError> {
        self.known().all.get(id).cloned().ok_or_else(missing)
    }

    /// What a sandbox goes on from.
    pub(crate) fn start(&self, snapshot: &NamedSnapshot) -> TemplateSnapshot {
        let path = |part| self.snapshots.generations.path(snapshot.build, part);
        let files = [Part::State, Part::Data].map(path);
        let mut named = TemplateSnapshot::named(
            snapshot.build,
            snapshot.access_token.clone(),
            volume_of(snapshot.build),
            files,
        );
        named.has_memory = !snapshot.without_memory;
        named
    }

    /// Keeps the record of a snapshot whose memory and disk are kept. Fails if it was removed while it was being made:
    /// the control plane has given it up then, and does not ask for it again.
    pub(crate) async fn keep(&self, snapshot: NamedSnapshot) -> Result<(), AgentError> {
        let written = records::write(&self.dir, &snapshot.id, &snapshot).await;
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
        let removed = records::remove(&self.dir, id).await;
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
        self.drop_image(volume_of(build)).await;
    }

    /// Lets a snapshot be kept that was removed before, because it comes again.
    pub(crate) fn forget_removal(&self, id: &str) {
        self.known().removed.retain(|removed| removed != id);
    }

    fn left(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the images whose snapshots are gone, for [`NamedSnapshots::drop_left`]. For use at the start, before any snapshot
    /// comes from another host.
    pub(crate) async fn find_left(&self) -> Result<(), DiskError> {
        let images = self.volumes.images().await?;
        let known: BTreeSet<BuildId> = self.known().all.values().map(|snapshot| snapshot.build).collect();
        let is_gone = |image: &String| build_of(image).is_some_and(|build| !known.contains(&build));
        let gone = images.into_iter().filter(is_gone);
        self.left().extend(gone);
        Ok(())
    }

    /// Removes the images of removed snapshots on which no disk depends any more.
    pub(crate) async fn drop_left(&self) {
        let left = self.left().clone();
        for image in left {
            self.drop_image(image).await;
        }
    }

    /// Removes the image with the content of a removed snapshot's disk, if there is one: at once, or when no disk of a sandbox
    /// depends on it.
    async fn drop_image(&self, name: String) {
        let removed = match self.volumes.image(&name).await {
            Err(DiskError::UnknownImage(_)) => Ok(()),
            _ => self.volumes.remove_image(&name).await,
        };
        match removed {
            Ok(()) => {
                self.left().remove(&name);
            }
            Err(error) => {
                if !matches!(error, DiskError::ImageInUse { .. }) {
                    tracing::warn!(%error, "cannot remove the image of a snapshot's disk; it is tried again");
                }
                self.left().insert(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Agents before this field wrote and read records without it.
    #[test]
    fn a_record_has_a_working_directory_only_if_there_is_one() -> anyhow::Result<()> {
        let mut snapshot = NamedSnapshot {
            id: "s".to_owned(),
            build: BuildId::from_u128(7),
            without_memory: false,
            template: "minimal".to_owned(),
            vcpus: 1,
            memory_mb: 256,
            disk_size_mb: 1024,
            default_user: "wrenn-user".to_owned(),
            default_workdir: String::new(),
            access_token: "t".to_owned(),
            envs: BTreeMap::new(),
        };
        for workdir in ["", "/app"] {
            snapshot.default_workdir = workdir.to_owned();
            let text = serde_json::to_string(&snapshot)?;
            assert_eq!(text.contains("workdir"), !workdir.is_empty(), "{text}");
            assert_eq!(serde_json::from_str::<NamedSnapshot>(&text)?, snapshot);
        }
        assert!(!serde_json::to_string(&snapshot)?.contains("memory\":true"));
        snapshot.without_memory = true;
        let text = serde_json::to_string(&snapshot)?;
        assert!(text.contains("\"without_memory\":true"), "{text}");
        assert_eq!(serde_json::from_str::<NamedSnapshot>(&text)?, snapshot);
        Ok(())
    }
}
