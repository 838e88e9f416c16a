// SPDX-License-Identifier: Apache-2.0
//! Entries of a sandbox's journal. docs/architecture.md says how one is added.

use serde::{Deserialize, Serialize};
use wrenn_memory::BuildId;
use wrenn_vmm::ProcessId;

use super::spec::Spec;
use crate::snapshots::Base;

/// Resource of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Thing {
    /// VMM process.
    Vmm,
    /// Disk volume.
    Volume,
    /// Network slot.
    Slot,
}

impl Thing {
    /// All kinds, in the order in which they are released.
    #[cfg(test)]
    pub(super) const ALL: [Self; 3] = [Self::Vmm, Self::Volume, Self::Slot];

    /// Name, as in the journal.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Volume => "volume",
            Self::Slot => "slot",
        }
    }
}

/// Entry of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// Requested properties.
    Spec(Spec),
    /// A slot is reserved.
    Slot {
        /// Slot number.
        index: u16,
    },
    /// The volume is about to be cloned; its id is the sandbox id.
    Volume,
    /// A VMM is about to be started.
    VmmIntent,
    /// The VMM process was started.
    Vmm {
        /// Process id and start time.
        process: ProcessId,
        /// What the memory of its guest began with.
        #[serde(default)]
        base: Base,
    },
    /// The sandbox can run commands.
    Running,
    /// The guest is about to be stopped for a pause.
    Pausing,
    /// The sandbox is paused: its disk is complete, and the VMM is not needed any more.
    Paused {
        /// Generation with its memory; none if it was lost.
        memory: Option<BuildId>,
        /// Why it was lost.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lost: Option<String>,
    },
    /// The guest is about to go on, or to boot from its disk: its former memory does not fit the disk any more.
    Resuming,
    /// A resource was released; it may belong to another sandbox now.
    Released {
        /// Released resource.
        thing: Thing,
    },
    /// The sandbox failed; its resources are being released, its record stays until it is destroyed.
    Failed {
        /// Error code, as in the REST API.
        code: String,
        /// Message with cause and remedy.
        message: String,
    },
    /// The sandbox is being destroyed, which cannot be cancelled.
    Destroy,
}

impl Entry {
    /// Returns whether the next step must wait until the entry is on the disk. A power failure ends microVMs and
    /// slots, and the start after it removes volumes that no journal names, so their entries need not survive it.
    pub(super) fn must_survive_power_failure(&self) -> bool {
        match self {
            Self::Spec(_)
            | Self::Slot { .. }
            | Self::Volume
            | Self::VmmIntent
            | Self::Vmm { .. }
            | Self::Pausing
            | Self::Released { .. } => false,
            Self::Running | Self::Paused { .. } | Self::Resuming | Self::Failed { .. } | Self::Destroy => {
                true
            }
        }
    }
}
