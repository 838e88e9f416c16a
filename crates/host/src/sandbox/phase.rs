// SPDX-License-Identifier: Apache-2.0
//! Phases of a sandbox on this host. A phase owns what exists in it, so that nothing is inferred from what
//! happens to be set.

use std::time::Duration;

use wrenn_vmm::MicroVm;

use super::guest::Guest;
use crate::error::AgentError;

/// Durations of an operation's steps, by the names on the wire.
pub(crate) type Timings = Vec<(&'static str, Duration)>;

/// Phase of a sandbox.
pub(crate) enum Phase {
    /// Being created or adopted. The operation owns what exists already.
    Creating,
    /// Ready to run code.
    Running(Box<Live>),
    /// Failed; its resources are being released.
    Failing(AgentError),
    /// Being removed.
    Destroying,
    /// Failed or not removed completely; its record stays until it is destroyed.
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

/// What a running sandbox owns.
pub(crate) struct Live {
    /// Its microVM.
    pub(super) vm: Box<dyn MicroVm>,
    /// Connection to its guest.
    pub(super) guest: Guest,
    /// Durations of the steps of its creation.
    pub(super) timings: Timings,
    /// Whether it is paused because its disk may soon run out of room.
    pub(super) held: bool,
}

/// Name of a phase, without what the phase owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Creating,
    Running,
    Failing,
    Destroying,
    Failed,
    Unknown,
    Gone,
}

/// View of a sandbox for other tasks.
#[derive(Clone)]
pub(crate) struct Published {
    /// Name of the phase.
    pub(crate) state: State,
    /// Cause, of a sandbox that failed or is unknown.
    pub(crate) failure: Option<AgentError>,
    /// Connection to the guest, while it runs.
    pub(crate) guest: Option<Guest>,
    /// Durations of the steps of its creation, while it runs.
    pub(crate) timings: Timings,
    /// Whether it is paused because its disk may soon run out of room.
    pub(crate) held: bool,
}

impl Phase {
    /// Name of the phase.
    pub(super) fn state(&self) -> State {
        match self {
            Self::Creating => State::Creating,
            Self::Running(_) => State::Running,
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
        let without = |failure| Published { state, failure, guest: None, timings: Vec::new(), held: false };
        match self {
            Self::Creating | Self::Destroying => without(None),
            Self::Running(live) => Published {
                guest: Some(live.guest.clone()),
                timings: live.timings.clone(),
                held: live.held,
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
