// SPDX-License-Identifier: Apache-2.0
//! Phases of a sandbox on this host. A phase owns what exists in it, so that nothing is inferred from what
//! happens to be set.

use std::time::Duration;

use wrenn_api::ErrorCode;
use wrenn_memory::BuildId;
use wrenn_vmm::{MicroVm, ProcessId};

use super::{entry::Entry, guest::Guest};
use crate::{error::AgentError, snapshots::Base};

/// Durations of an operation's steps, by the names on the wire.
pub(crate) type Timings = Vec<(&'static str, Duration)>;

/// Phase of a sandbox.
pub(crate) enum Phase {
    /// Being created or adopted. The operation owns what exists already.
    Creating,
    /// Ready to run code.
    Running(Box<Live>),
    /// Being paused. The operation owns what runs.
    Pausing,
    /// Paused: it has a disk, and its memory is a generation on the host.
    Paused(Memory),
    /// Going on after a pause, or booting from its disk. The operation owns what runs already.
    Resuming,
    /// Failed; its resources are being released.
    Failing(AgentError),
    /// Being removed.
    Destroying,
    /// Failed or not removed completely; its record stays until it is destroyed. If it has run, its disk stays, too.
    Failed {
        /// Cause.
        error: AgentError,
        /// Its microVM, if that could not be killed.
        vm: Option<Box<dyn MicroVm>>,
    },
    /// Its journal is not understood: it may run, and stays untouched until it is destroyed.
    Unknown(AgentError),
    /// Removed; with the error if it never ran.
    Gone(Option<AgentError>),
}

/// Memory of a paused sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Memory {
    /// It is this generation.
    Kept(BuildId),
    /// It was lost, for this reason.
    Lost(AgentError),
}

impl Memory {
    /// Memory of a sandbox by its journal.
    pub(crate) fn recorded(memory: Option<BuildId>, lost: Option<String>) -> Self {
        let none = || {
            let why = lost.unwrap_or_else(|| {
                "its memory is not there: resume it with memory false, which boots it from its disk"
                    .to_owned()
            });
            Self::Lost(AgentError::new(ErrorCode::SnapshotMissing, why))
        };
        memory.map_or_else(none, Self::Kept)
    }

    /// The generation, if it was not lost.
    pub(super) fn build(&self) -> Option<BuildId> {
        match self {
            Self::Kept(build) => Some(*build),
            Self::Lost(_) => None,
        }
    }

    /// Entry of the journal.
    pub(super) fn entry(&self) -> Entry {
        match self {
            Self::Kept(build) => Entry::Paused { memory: Some(*build), lost: None },
            Self::Lost(error) => Entry::Paused { memory: None, lost: Some(error.message.clone()) },
        }
    }
}

/// Where a running sandbox is seen on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Its VMM.
    pub(crate) process: ProcessId,
    /// Number of its network slot.
    pub(crate) slot: u16,
}

/// What a running sandbox owns.
pub(crate) struct Live {
    /// Its microVM.
    pub(super) vm: Box<dyn MicroVm>,
    /// Number of its network slot.
    pub(super) slot: u16,
    /// Connection to its guest.
    pub(super) guest: Guest,
    /// What its memory began with.
    pub(super) base: Base,
    /// Durations of the steps of its creation.
    pub(super) timings: Timings,
    /// Why it was booted and does not go on from the memory of its named snapshot, if that was asked for.
    pub(super) boot_reason: Option<String>,
    /// Whether it is paused because its disk may soon run out of room.
    pub(super) held: bool,
}

/// Name of a phase, without what the phase owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Creating,
    Running,
    Pausing,
    Paused,
    Resuming,
    Failing,
    Destroying,
    Failed,
    Unknown,
    Gone,
}

impl State {
    /// All states.
    #[cfg(test)]
    pub(super) const ALL: [Self; 10] = [
        Self::Creating,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Failing,
        Self::Destroying,
        Self::Failed,
        Self::Unknown,
        Self::Gone,
    ];
}

/// View of a sandbox for other tasks.
#[derive(Clone)]
pub(crate) struct Published {
    /// Name of the phase.
    pub(crate) state: State,
    /// Cause, of a sandbox that failed or is unknown, or whose memory was lost.
    pub(crate) failure: Option<AgentError>,
    /// Connection to the guest, while it runs.
    pub(crate) guest: Option<Guest>,
    /// Durations of the steps of its creation, while it runs.
    pub(crate) timings: Timings,
    /// Why it was booted and does not go on from the memory of its named snapshot, if that was asked for.
    pub(crate) boot_reason: Option<String>,
    /// Whether it is paused because its disk may soon run out of room.
    pub(crate) held: bool,
    /// Generation that its memory is, while it is paused.
    pub(crate) generation: Option<BuildId>,
    /// Where it is seen, while it runs.
    pub(crate) footprint: Option<Footprint>,
}

impl Published {
    /// Returns whether the guest runs, or will when the operation in work has ended.
    pub(crate) fn runs(&self) -> bool {
        matches!(self.state, State::Creating | State::Running | State::Pausing | State::Resuming)
    }
}

impl Phase {
    /// Name of the phase.
    pub(super) fn state(&self) -> State {
        match self {
            Self::Creating => State::Creating,
            Self::Running(_) => State::Running,
            Self::Pausing => State::Pausing,
            Self::Paused(_) => State::Paused,
            Self::Resuming => State::Resuming,
            Self::Failing(_) => State::Failing,
            Self::Destroying => State::Destroying,
            Self::Failed { .. } => State::Failed,
            Self::Unknown(_) => State::Unknown,
            Self::Gone(_) => State::Gone,
        }
    }

    /// View for other tasks.
    pub(super) fn view(&self) -> Published {
        let state = self.state();
        let without = |failure| Published {
            state,
            failure,
            guest: None,
            timings: Vec::new(),
            boot_reason: None,
            held: false,
            generation: None,
            footprint: None,
        };
        match self {
            Self::Creating | Self::Pausing | Self::Resuming | Self::Destroying => without(None),
            Self::Paused(Memory::Kept(build)) => Published { generation: Some(*build), ..without(None) },
            Self::Paused(Memory::Lost(error)) => without(Some(error.clone())),
            Self::Running(live) => Published {
                guest: Some(live.guest.clone()),
                timings: live.timings.clone(),
                boot_reason: live.boot_reason.clone(),
                held: live.held,
                footprint: Some(Footprint { process: live.vm.process(), slot: live.slot }),
                ..without(None)
            },
            Self::Failing(error) | Self::Failed { error, .. } | Self::Unknown(error) => {
                without(Some(error.clone()))
            }
            Self::Gone(error) => without(error.clone()),
        }
    }

    /// The microVM that the phase owns.
    pub(super) fn vm(&self) -> Option<&dyn MicroVm> {
        match self {
            Self::Running(live) => Some(&*live.vm),
            Self::Failed { vm, .. } => vm.as_deref(),
            _ => None,
        }
    }

    /// Ends the phase: fails the pending calls to the guest, and returns the microVM.
    pub(super) fn leave(self) -> Option<Box<dyn MicroVm>> {
        match self {
            Self::Running(live) => {
                live.guest.end();
                Some(live.vm)
            }
            Self::Failed { vm, .. } => vm,
            _ => None,
        }
    }
}
