// SPDX-License-Identifier: Apache-2.0
//! Admission of requests: which operation a request starts in which phase. Pure; the table is in the test.

use std::collections::HashMap;

use wrenn_api::ErrorCode;

use super::phase::State;

/// Request to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Remove the sandbox and all its resources.
    Destroy,
    /// Pause the guest while there is no room for its writes (true), or resume it (false).
    Hold(bool),
    /// Mark the sandbox as failed for this cause, and release its resources.
    Fail(String),
}

/// Operation on a sandbox. Only one runs at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Create the sandbox, with this environment of its processes.
    Create(HashMap<String, String>),
    /// Remove it.
    Destroy,
    /// Pause or resume its guest.
    Hold(bool),
    /// Mark it as failed.
    Fail(String),
}

/// Decision about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    use State::{Creating, Destroying, Failed, Failing, Gone, Running, Unknown};
    match (request, state) {
        (Request::Destroy, Running | Failed | Unknown) => Admit::Run(Operation::Destroy),
        (Request::Destroy, Creating | Failing | Destroying) => Admit::Wait,
        (Request::Destroy, Gone) => Admit::Already,

        (Request::Hold(hold), Running) => Admit::Run(Operation::Hold(*hold)),
        (Request::Hold(_), Creating) => Admit::Wait,
        (Request::Hold(_), Unknown) => Admit::Refuse(ErrorCode::InvalidState),
        (Request::Hold(_), Failing | Destroying | Failed | Gone) => Admit::Already,

        // A microVM that could not be killed may end later.
        (Request::Fail(cause), Running | Failed) => Admit::Run(Operation::Fail(cause.clone())),
        (Request::Fail(_), Creating) => Admit::Wait,
        (Request::Fail(_), Unknown) => Admit::Refuse(ErrorCode::InvalidState),
        (Request::Fail(_), Failing | Destroying | Gone) => Admit::Already,
    }
}

impl Request {
    /// Returns whether the request makes the running operation pointless, if that can be cancelled.
    pub(super) fn cancels(&self) -> bool {
        match self {
            Self::Destroy => true,
            Self::Hold(_) | Self::Fail(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 7] = [
        State::Creating,
        State::Running,
        State::Failing,
        State::Destroying,
        State::Failed,
        State::Unknown,
        State::Gone,
    ];

    fn letter(admit: &Admit, request: &Request) -> &'static str {
        match (admit, request) {
            (Admit::Run(Operation::Destroy), Request::Destroy)
            | (Admit::Run(Operation::Hold(true)), Request::Hold(true))
            | (Admit::Run(Operation::Hold(false)), Request::Hold(false)) => "run",
            (Admit::Run(Operation::Fail(why)), Request::Fail(cause)) if why == cause => "run",
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
            //                        creating  running    failing    destroying failed     unknown   gone
            (Request::Destroy,       ["wait",   "run",     "wait",    "wait",    "run",     "run",    "already"]),
            (Request::Hold(true),    ["wait",   "run",     "already", "already", "already", "refuse", "already"]),
            (Request::Hold(false),   ["wait",   "run",     "already", "already", "already", "refuse", "already"]),
            (Request::Fail("x".into()), ["wait", "run",    "already", "already", "run",     "refuse", "already"]),
        ];
        for (request, row) in table {
            let decided = STATES.map(|state| letter(&admit(state, &request), &request));
            assert_eq!(decided, row, "{request:?}");
        }
    }

    #[test]
    fn requests_wait_only_for_an_operation() {
        let requests = [Request::Destroy, Request::Hold(true), Request::Fail("x".into())];
        for state in [State::Running, State::Failed, State::Unknown, State::Gone] {
            assert!(requests.iter().all(|request| admit(state, request) != Admit::Wait), "{state:?}");
        }
    }
}
