// SPDX-License-Identifier: Apache-2.0
//! Admission of requests: which operation a request starts in which phase. Pure; the table is in the test.

use std::{collections::HashMap, sync::Arc};

use wrenn_api::ErrorCode;

use super::phase::State;
use crate::snapshots::templates::TemplateSnapshot;

/// Request to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Remove the sandbox and all its resources.
    Destroy,
    /// Write its memory to the disk, and release everything else but the disk.
    Pause,
    /// Make this named snapshot of it.
    Snapshot(Wish),
    /// Go on after a pause: from its memory (true), or by a boot from its disk (false).
    Resume(bool),
    /// Hold the guest while there is no room for its writes (true), or let it go on (false).
    Hold(bool),
    /// Mark the sandbox as failed for this cause, and release its resources.
    Fail(Cause),
}

/// A named snapshot to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Its id.
    pub(crate) id: String,
    /// Whether the disk alone is kept.
    pub(crate) without_memory: bool,
}

/// Cause of a failure, with its words for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its microVM has ended, or does not go on. The disk is kept.
    Guest(String),
    /// Its microVM has ended for want of memory. The disk is kept.
    OutOfMemory(String),
    /// Its disk is lost.
    Disk(String),
}

/// What a new sandbox begins with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Creation {
    /// Environment of its processes.
    pub(crate) envs: HashMap<String, String>,
    /// Named snapshot that it goes on from.
    pub(crate) snapshot: Option<Arc<TemplateSnapshot>>,
    /// Name in the store of the image that it boots from, if that is not its template's.
    pub(crate) image: Option<String>,
}

/// Operation on a sandbox. Only one runs at a time.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    /// Create the sandbox.
    Create(Creation),
    /// Remove it.
    Destroy,
    /// Pause it.
    Pause,
    /// Make this named snapshot of it.
    Snapshot(Wish),
    /// Resume it: from its memory (true), or from its disk (false).
    Resume(bool),
    /// Hold its guest, or let it go on.
    Hold(bool),
    /// Mark it as failed.
    Fail(Cause),
}

/// Decision about a request.
#[derive(Debug, Clone)]
pub(crate) enum Admit {
    /// Run this operation now.
    Run(Operation),
    /// Decide again when the running operation has ended.
    Wait,
    /// Refuse the request with this code.
    Refuse(ErrorCode),
    /// There is nothing to do.
    Already,
}

/// Decides about a request to a sandbox in this state.
pub(crate) fn admit(state: State, request: &Request) -> Admit {
    use State::{Creating, Destroying, Failed, Failing, Gone, Paused, Pausing, Resuming, Running, Unknown};
    match (request, state) {
        (Request::Destroy, Running | Paused | Failed | Unknown) => Admit::Run(Operation::Destroy),
        (Request::Destroy, Creating | Pausing | Resuming | Failing | Destroying) => Admit::Wait,
        (Request::Destroy, Gone) => Admit::Already,

        (Request::Snapshot(wish), Running | Paused) => Admit::Run(Operation::Snapshot(wish.clone())),
        (Request::Snapshot(_), Creating | Pausing | Resuming) => Admit::Wait,
        (Request::Snapshot(_), Failing | Destroying | Failed | Unknown | Gone) => {
            Admit::Refuse(ErrorCode::InvalidState)
        }

        (Request::Pause, Running) => Admit::Run(Operation::Pause),
        (Request::Pause, Creating | Pausing | Resuming) => Admit::Wait,
        (Request::Pause, Paused) => Admit::Already,
        (Request::Pause, Failing | Destroying | Failed | Unknown | Gone) => {
            Admit::Refuse(ErrorCode::InvalidState)
        }

        (Request::Resume(memory), Paused) => Admit::Run(Operation::Resume(*memory)),
        // Its memory is gone, its disk may be there.
        (Request::Resume(false), Failed) => Admit::Run(Operation::Resume(false)),
        // That it fails is told before all is released.
        (Request::Resume(false), Failing) | (Request::Resume(_), Creating | Pausing | Resuming) => {
            Admit::Wait
        }
        (Request::Resume(_), Running) => Admit::Already,
        (Request::Resume(_), Failing | Destroying | Failed | Unknown | Gone) => {
            Admit::Refuse(ErrorCode::InvalidState)
        }

        (Request::Hold(hold), Running) => Admit::Run(Operation::Hold(*hold)),
        (Request::Hold(_), Creating | Pausing | Resuming) => Admit::Wait,
        (Request::Hold(_), Unknown) => Admit::Refuse(ErrorCode::InvalidState),
        (Request::Hold(_), Paused | Failing | Destroying | Failed | Gone) => Admit::Already,

        // A microVM that could not be killed may end later.
        (Request::Fail(cause), Running | Failed) => Admit::Run(Operation::Fail(cause.clone())),
        (Request::Fail(_), Creating | Pausing | Resuming) => Admit::Wait,
        (Request::Fail(_), Unknown) => Admit::Refuse(ErrorCode::InvalidState),
        (Request::Fail(_), Paused | Failing | Destroying | Gone) => Admit::Already,
    }
}

impl Request {
    /// Returns whether the request makes the running operation pointless, if that can be cancelled.
    pub(super) fn cancels(&self) -> bool {
        match self {
            Self::Destroy => true,
            Self::Snapshot(_) | Self::Pause | Self::Resume(_) | Self::Hold(_) | Self::Fail(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(without_memory: bool) -> Request {
        Request::Snapshot(Wish { id: "s".into(), without_memory })
    }

    fn letter(admit: &Admit, request: &Request) -> &'static str {
        match (admit, request) {
            (Admit::Run(Operation::Destroy), Request::Destroy)
            | (Admit::Run(Operation::Pause), Request::Pause)
            | (Admit::Run(Operation::Resume(true)), Request::Resume(true))
            | (Admit::Run(Operation::Resume(false)), Request::Resume(false))
            | (Admit::Run(Operation::Hold(true)), Request::Hold(true))
            | (Admit::Run(Operation::Hold(false)), Request::Hold(false)) => "run",
            (Admit::Run(Operation::Fail(why)), Request::Fail(cause)) if why == cause => "run",
            (Admit::Run(Operation::Snapshot(wish)), Request::Snapshot(wanted)) if wish == wanted => "run",
            (Admit::Run(_), _) => "run something else",
            (Admit::Wait, _) => "wait",
            (Admit::Refuse(ErrorCode::InvalidState), _) => "refuse",
            (Admit::Refuse(_), _) => "refuse with another code",
            (Admit::Already, _) => "already",
        }
    }

    #[test]
    #[rustfmt::skip]
    fn every_request_is_decided_in_every_state() {
        let table = [
            //                         creating running   pausing  paused     resuming failing    destroying failed    unknown   gone
            (Request::Destroy,        ["wait", "run",     "wait",  "run",     "wait",  "wait",    "wait",    "run",     "run",    "already"]),
            (Request::Pause,          ["wait", "run",     "wait",  "already", "wait",  "refuse",  "refuse",  "refuse",  "refuse", "refuse"]),
            (snapshot(false),         ["wait", "run",     "wait",  "run",     "wait",  "refuse",  "refuse",  "refuse",  "refuse", "refuse"]),
            (snapshot(true),          ["wait", "run",     "wait",  "run",     "wait",  "refuse",  "refuse",  "refuse",  "refuse", "refuse"]),
            (Request::Resume(true),   ["wait", "already", "wait",  "run",     "wait",  "refuse",  "refuse",  "refuse",  "refuse", "refuse"]),
            (Request::Resume(false),  ["wait", "already", "wait",  "run",     "wait",  "wait",    "refuse",  "run",     "refuse", "refuse"]),
            (Request::Hold(true),     ["wait", "run",     "wait",  "already", "wait",  "already", "already", "already", "refuse", "already"]),
            (Request::Hold(false),    ["wait", "run",     "wait",  "already", "wait",  "already", "already", "already", "refuse", "already"]),
            (Request::Fail(Cause::Guest("x".into())), ["wait", "run",   "wait",  "already", "wait",  "already", "already", "run",     "refuse", "already"]),
        ];
        for (request, row) in table {
            let decided = State::ALL.map(|state| letter(&admit(state, &request), &request));
            assert_eq!(decided, row, "{request:?}");
        }
    }

    #[test]
    fn requests_wait_only_for_an_operation() {
        let requests = [
            Request::Destroy,
            Request::Pause,
            snapshot(false),
            Request::Resume(true),
            Request::Hold(true),
            Request::Fail(Cause::Guest("x".into())),
        ];
        for state in [State::Running, State::Paused, State::Failed, State::Unknown, State::Gone] {
            assert!(
                !requests.iter().any(|request| matches!(admit(state, request), Admit::Wait)),
                "{state:?}"
            );
        }
    }
}
