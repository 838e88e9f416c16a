// SPDX-License-Identifier: Apache-2.0
//! Step of the reconciler for one sandbox, by its row and its state on the host. Pure.

use wrenn_api::{ErrorCode, SandboxStatus};
use wrenn_rpc::host::v1::{Sandbox as OnHost, SandboxState};

use crate::{
    db::sandboxes::{Change, Known},
    sandboxes::lookup::cut,
};

/// Maximum length of an agent's failure message, in bytes.
const FAILURE_MAX: usize = 8 << 10;

/// Step of the reconciler.
#[derive(Debug)]
pub(super) enum Step {
    Nothing,
    Change(Change),
    /// Finish a delete.
    Finish,
    /// Call the agent to destroy a sandbox that is not wanted according to its row.
    Destroy,
}

/// State of a sandbox on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Absent,
    Starting,
    Running,
    Stopping,
    Failed,
    /// The agent cannot read its journal.
    Unknown,
    /// A state that this version does not know.
    Unspecified,
}

fn found(sandbox: Option<&OnHost>) -> Found {
    let Some(sandbox) = sandbox else { return Found::Absent };
    match sandbox.state.as_known() {
        Some(SandboxState::SANDBOX_STATE_STARTING) => Found::Starting,
        Some(SandboxState::SANDBOX_STATE_RUNNING) => Found::Running,
        Some(SandboxState::SANDBOX_STATE_STOPPING) => Found::Stopping,
        Some(SandboxState::SANDBOX_STATE_FAILED) => Found::Failed,
        Some(SandboxState::SANDBOX_STATE_UNKNOWN) => Found::Unknown,
        Some(SandboxState::SANDBOX_STATE_UNSPECIFIED) | None => Found::Unspecified,
    }
}

/// Returns whether a microVM without a row may be destroyed after the grace period: not if its journal cannot
/// be read.
pub(super) fn may_be_stray(sandbox: &OnHost) -> bool {
    match found(Some(sandbox)) {
        Found::Starting | Found::Running | Found::Failed => true,
        // A sandbox that is being destroyed needs no further call.
        Found::Absent | Found::Stopping | Found::Unknown | Found::Unspecified => false,
    }
}

/// Returns why the agent cannot read a sandbox's journal; `None` if it can.
pub(super) fn cause_unknown(sandbox: &OnHost) -> Option<String> {
    (found(Some(sandbox)) == Found::Unknown).then(|| failure(sandbox).1)
}

fn lost(what: &str) -> Step {
    Step::Change(Change::error(ErrorCode::AgentError, format!("{what}; delete it")))
}

fn failure(sandbox: &OnHost) -> (ErrorCode, String) {
    let failure = sandbox.failure.as_option();
    let code = failure.and_then(|failure| failure.code.parse().ok()).unwrap_or(ErrorCode::AgentError);
    (code, failure.map(|failure| cut(&failure.message, FAILURE_MAX)).unwrap_or_default())
}

fn failed(sandbox: Option<&OnHost>) -> Step {
    let (code, message) = sandbox.map_or((ErrorCode::AgentError, String::new()), failure);
    Step::Change(Change::error(code, message))
}

/// Step for a sandbox whose journal its agent cannot read; its error is set once.
fn not_understood(row: &Known, sandbox: Option<&OnHost>) -> Step {
    let error = sandbox.map(failure);
    let told = row.status() == SandboxStatus::Missing
        && row.error_message.as_ref() == error.as_ref().map(|(_, message)| message);
    if told {
        return Step::Nothing;
    }
    Step::Change(Change { error, ..Change::to(SandboxStatus::Missing) })
}

/// Returns the step for a sandbox with a row, if its host reports `sandbox`.
pub(super) fn step(row: &Known, sandbox: Option<&OnHost>) -> Step {
    match (row.status(), found(sandbox)) {
        (
            SandboxStatus::Pending,
            Found::Absent
            | Found::Starting
            | Found::Running
            | Found::Stopping
            | Found::Failed
            | Found::Unknown
            | Found::Unspecified,
        )
        | (
            SandboxStatus::Starting | SandboxStatus::Missing,
            Found::Starting | Found::Stopping | Found::Unspecified,
        )
        | (SandboxStatus::Running, Found::Starting | Found::Running | Found::Stopping | Found::Unspecified) => {
            Step::Nothing
        }

        (SandboxStatus::Starting, Found::Absent) if row.abandoned() => {
            lost("the control plane was interrupted while it was created")
        }
        (SandboxStatus::Starting, Found::Unknown) if row.abandoned() => not_understood(row, sandbox),
        (SandboxStatus::Starting, Found::Absent | Found::Unknown) => Step::Nothing,
        (SandboxStatus::Starting | SandboxStatus::Missing, Found::Running) => {
            Step::Change(Change::to(SandboxStatus::Running))
        }
        (SandboxStatus::Starting | SandboxStatus::Running | SandboxStatus::Missing, Found::Failed) => {
            failed(sandbox)
        }
        (SandboxStatus::Running | SandboxStatus::Missing, Found::Absent) => {
            lost("its host no longer has it, as after a restart of the host")
        }
        (SandboxStatus::Running | SandboxStatus::Missing, Found::Unknown) => not_understood(row, sandbox),

        (SandboxStatus::Stopping, Found::Absent) => Step::Change(Change::to(SandboxStatus::Stopped)),
        // A user requested it, so it is done even if the agent cannot read the journal.
        (
            SandboxStatus::Stopping,
            Found::Starting
            | Found::Running
            | Found::Stopping
            | Found::Failed
            | Found::Unknown
            | Found::Unspecified,
        ) => {
            if row.abandoned() {
                Step::Finish
            } else {
                Step::Nothing
            }
        }

        (SandboxStatus::Error, Found::Starting | Found::Running)
        | (SandboxStatus::Stopped, Found::Starting | Found::Running | Found::Failed) => Step::Destroy,
        (
            SandboxStatus::Error,
            Found::Absent | Found::Stopping | Found::Failed | Found::Unknown | Found::Unspecified,
        )
        | (SandboxStatus::Stopped, Found::Absent | Found::Stopping | Found::Unknown | Found::Unspecified) => {
            Step::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use uuid::Uuid;
    use wrenn_rpc::host::v1::Failure;

    use super::*;

    fn row(status: SandboxStatus, abandoned: bool) -> Known {
        Known {
            id: Uuid::nil(),
            host_id: Some(Uuid::nil()),
            status: status.as_str().into(),
            version: 1,
            lease_until: (!abandoned).then(|| Utc::now() + chrono::TimeDelta::minutes(1)),
            error_message: None,
        }
    }

    fn on_host(state: SandboxState) -> OnHost {
        let failure = Failure { code: "agent_error".into(), message: "why".into(), ..Default::default() };
        OnHost { state: state.into(), failure: Some(failure).into(), ..Default::default() }
    }

    fn describe(step: Step) -> &'static str {
        match step {
            Step::Nothing => "-",
            Step::Change(change) => change.to.expect("a status").as_str(),
            Step::Finish => "finish",
            Step::Destroy => "destroy",
        }
    }

    /// Each status, with and without a lease, with each state on a host.
    #[test]
    fn every_pair_has_its_step() {
        use SandboxState as H;
        use SandboxStatus as S;
        let states = [
            None,
            Some(H::SANDBOX_STATE_STARTING),
            Some(H::SANDBOX_STATE_RUNNING),
            Some(H::SANDBOX_STATE_STOPPING),
            Some(H::SANDBOX_STATE_FAILED),
            Some(H::SANDBOX_STATE_UNKNOWN),
            Some(H::SANDBOX_STATE_UNSPECIFIED),
        ];
        #[rustfmt::skip]
        let table = [
            // status, abandoned:  absent     starting   running    stopping   failed     unknown    unspecified
            (S::Pending, false,  ["-",       "-",       "-",       "-",       "-",       "-",       "-"]),
            (S::Pending, true,   ["-",       "-",       "-",       "-",       "-",       "-",       "-"]),
            (S::Starting, false, ["-",       "-",       "running", "-",       "error",   "-",       "-"]),
            (S::Starting, true,  ["error",   "-",       "running", "-",       "error",   "missing", "-"]),
            (S::Running, false,  ["error",   "-",       "-",       "-",       "error",   "missing", "-"]),
            (S::Running, true,   ["error",   "-",       "-",       "-",       "error",   "missing", "-"]),
            (S::Missing, false,  ["error",   "-",       "running", "-",       "error",   "missing", "-"]),
            (S::Missing, true,   ["error",   "-",       "running", "-",       "error",   "missing", "-"]),
            (S::Stopping, false, ["stopped", "-",       "-",       "-",       "-",       "-",       "-"]),
            (S::Stopping, true,  ["stopped", "finish",  "finish",  "finish",  "finish",  "finish",  "finish"]),
            (S::Error, false,    ["-",       "destroy", "destroy", "-",       "-",       "-",       "-"]),
            (S::Error, true,     ["-",       "destroy", "destroy", "-",       "-",       "-",       "-"]),
            (S::Stopped, false,  ["-",       "destroy", "destroy", "-",       "destroy", "-",       "-"]),
            (S::Stopped, true,   ["-",       "destroy", "destroy", "-",       "destroy", "-",       "-"]),
        ];
        for (status, abandoned, expected) in table {
            for (state, expected) in states.into_iter().zip(expected) {
                let sandbox = state.map(on_host);
                let what = describe(step(&row(status, abandoned), sandbox.as_ref()));
                assert_eq!(what, expected, "{status:?}, abandoned: {abandoned}, on the host: {state:?}");
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_told_once_with_its_cause() {
        let sandbox = on_host(SandboxState::SANDBOX_STATE_UNKNOWN);
        let Step::Change(change) = step(&row(SandboxStatus::Running, true), Some(&sandbox)) else {
            panic!("not told");
        };
        assert_eq!(change.error, Some((ErrorCode::AgentError, "why".into())));
        let told = Known { error_message: Some("why".into()), ..row(SandboxStatus::Missing, true) };
        assert!(matches!(step(&told, Some(&sandbox)), Step::Nothing));
        assert_eq!(cause_unknown(&sandbox), Some("why".into()));
    }

    #[test]
    fn only_what_is_understood_may_be_a_stray() {
        use SandboxState as H;
        let may = |state| may_be_stray(&on_host(state));
        assert!(
            may(H::SANDBOX_STATE_RUNNING) && may(H::SANDBOX_STATE_STARTING) && may(H::SANDBOX_STATE_FAILED)
        );
        assert!(!may(H::SANDBOX_STATE_UNKNOWN) && !may(H::SANDBOX_STATE_UNSPECIFIED));
        assert!(!may(H::SANDBOX_STATE_STOPPING));
    }

    #[test]
    fn what_an_agent_says_is_cut() {
        let failure = Failure { message: "é".repeat(FAILURE_MAX), ..Default::default() };
        let sandbox = OnHost { failure: Some(failure).into(), ..on_host(SandboxState::SANDBOX_STATE_FAILED) };
        let Step::Change(change) = step(&row(SandboxStatus::Running, true), Some(&sandbox)) else {
            panic!("no change");
        };
        assert!(change.error.is_some_and(|(_, message)| message.len() == FAILURE_MAX));
    }
}
