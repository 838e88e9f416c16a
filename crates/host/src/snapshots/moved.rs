// SPDX-License-Identifier: Apache-2.0
//! Memory of snapshots that move between hosts: opened as a whole, and kept as it was brought.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    sync::Arc,
};

use tokio::task::spawn_blocking;
use wrenn_memory::{BuildId, Incoming, Layers, MemoryError, Origin, Part, Verification};

use super::{KEEPING, READING, SHARED, Snapshots};
use crate::error::{AgentError, of_files};

/// An open generation, which stays readable when it is removed.
#[derive(Debug)]
pub(crate) struct Whole {
    /// Its memory, whatever generations that is in.
    pub(crate) memory: Layers,
    pub(crate) state: File,
    /// What it was made with.
    pub(crate) origin: Origin,
    /// The check of all that was opened.
    pub(crate) verification: Verification,
}

impl Snapshots {
    /// Opens a generation. Whether this host can load it does not matter.
    pub(crate) async fn open_whole(self: &Arc<Self>, build: BuildId) -> Result<Whole, AgentError> {
        let all = self.clone();
        let opened = spawn_blocking(move || {
            let _stable = all.stable();
            let generation = all.generations.load(build)?;
            let missing = |_| MemoryError::Missing { build, what: "the state" };
            Ok::<_, MemoryError>(Whole {
                memory: all.generations.open(&generation.header)?,
                state: File::open(all.generations.path(build, Part::State)).map_err(missing)?,
                verification: all.generations.verification(&generation)?,
                origin: generation.manifest.origin,
            })
        });
        Ok(opened.await.map_err(|error| AgentError::fault(READING, &error))??)
    }

    /// Keeps a memory that was brought from another host, with its state, as one for many. On return it survives a power
    /// failure.
    pub(crate) async fn keep_incoming(
        self: &Arc<Self>,
        incoming: Incoming,
        label: &str,
        origin: Origin,
    ) -> Result<(), AgentError> {
        let (all, label) = (self.clone(), label.to_owned());
        let kept = spawn_blocking(move || {
            let _stable = all.stable();
            let written = incoming.written(&label, origin)?;
            for part in [Part::Data, Part::State] {
                let shared = fs::set_permissions(written.path(part), Permissions::from_mode(SHARED));
                shared.map_err(|error| of_files(KEEPING, &error))?;
            }
            written.keep()?;
            Ok::<_, AgentError>(())
        });
        kept.await.map_err(|error| AgentError::fault(KEEPING, &error))?
    }

    /// Bytes that memory and state of a generation occupy themselves; 0 if there is none.
    pub(crate) async fn occupied(self: &Arc<Self>, build: BuildId) -> Result<u64, AgentError> {
        let all = self.clone();
        let measured = spawn_blocking(move || {
            let length =
                |part| fs::metadata(all.generations.path(build, part)).map_or(0, |of| of.blocks() * 512);
            [Part::Data, Part::State].map(length).iter().sum()
        });
        measured.await.map_err(|error| AgentError::fault(READING, &error))
    }
}
