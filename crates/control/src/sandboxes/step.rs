// SPDX-License-Identifier: Apache-2.0
//! Step of the reconciler for one sandbox, by its row and its state on the host. Pure.

use wrenn_api::{ErrorCode, SandboxStatus};
use wrenn_rpc::host::v1::{Sandbox as OnHost, SandboxState};

use crate::{
    db::sandboxes::{Change, Known},
    error::Fault,
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
    Pausing,
    Paused,
    Resuming,
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
        Some(SandboxState::SANDBOX_STATE_PAUSING) => Found::Pausing,
        Some(SandboxState::SANDBOX_STATE_PAUSED) => Found::Paused,
        Some(SandboxState::SANDBOX_STATE_RESUMING) => Found::Resuming,
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
        Found::Starting
        | Found::Running
        | Found::Pausing
        | Found::Paused
        | Found::Resuming
        | Found::Failed => true,
        // A sandbox that is being destroyed needs no further call.
        Found::Absent | Found::Stopping | Found::Unknown | Found::Unspecified => false,
    }
}

/// Returns why the agent cannot read a sandbox's journal; `None` if it can.
pub(super) fn cause_unknown(sandbox: &OnHost) -> Option<String> {
    (found(Some(sandbox)) == Found::Unknown).then(|| failure(sandbox).1)
}

/// Whether a change to this status is the result of the operation that this status stands for, and not something that its host did
/// or lost by itself.
pub(super) const fn ends(from: SandboxStatus, to: Option<SandboxStatus>) -> bool {
    use SandboxStatus::{Paused, Pausing, Resuming, Running, Starting, Stopped, Stopping};
    matches!(
        (from, to),
        (Starting, _) | (Pausing, Some(Paused)) | (Resuming, Some(Running)) | (Stopping, Some(Stopped))
    )
}

fn lost(what: &str) -> Step {
    Step::Change(Change::error(ErrorCode::AgentError, format!("{what}; delete it")))
}

fn failure(sandbox: &OnHost) -> (ErrorCode, String) {
    let failure = sandbox.failure.as_option();
    let code = failure.and_then(|failure| failure.code.parse().ok()).unwrap_or(ErrorCode::AgentError);
    (code, failure.map(|failure| cut(&failure.message, FAILURE_MAX)).unwrap_or_default())
}

/// Step for a sandbox that is being deleted.
fn finish(abandoned: bool) -> Step {
    if abandoned { Step::Finish } else { Step::Nothing }
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

/// Name in the metadata of the generation that its memory was when it was last paused.
const GENERATION: &str = "memory_generation";
/// Maximum length of a generation's name in bytes.
const GENERATION_MAX: usize = 64;

/// Change to `paused`, with the generation of its memory, or the reason why it was lost.
pub(super) fn paused(sandbox: Option<&OnHost>) -> Change {
    let lost = sandbox.filter(|sandbox| sandbox.failure.is_set()).map(failure);
    let generation = sandbox.map(|sandbox| cut(&sandbox.generation, GENERATION_MAX));
    let generation = generation.filter(|generation| !generation.is_empty());
    let metadata = generation.map(|generation| (GENERATION.to_owned(), generation)).into_iter().collect();
    Change { error: lost, metadata, ..Change::to(SandboxStatus::Paused) }
}

/// Returns the step for a sandbox with a row, if its host reports `sandbox`.
pub(super) fn step(row: &Known, sandbox: Option<&OnHost>) -> Step {
    use Found as F;
    use SandboxStatus as S;
    let (status, found, abandoned) = (row.status(), found(sandbox), row.abandoned());
    let has_run = row.started_at.is_some();
    match (status, found) {
        // Nobody places sandboxes later, and nothing is known of states of later versions.
        (S::Pending, F::Absent | F::Starting | F::Running | F::Pausing | F::Paused) => Step::Nothing,
        (S::Pending, F::Resuming | F::Stopping | F::Failed | F::Unknown | F::Unspecified) => Step::Nothing,
        (S::Starting | S::Running | S::Missing, F::Unspecified) => Step::Nothing,
        (S::Pausing | S::Paused | S::Resuming, F::Unspecified) => Step::Nothing,

        // What its agent works on is decided when it has ended.
        (
            S::Starting | S::Running | S::Missing | S::Pausing | S::Paused | S::Resuming,
            F::Starting | F::Pausing | F::Resuming | F::Stopping,
        ) => Step::Nothing,

        (S::Starting | S::Pausing | S::Resuming, F::Absent | F::Unknown) if !abandoned => Step::Nothing,
        (S::Starting, F::Absent) => lost("the control plane was interrupted while it was created"),
        (S::Running | S::Missing | S::Pausing | S::Paused | S::Resuming, F::Absent) => {
            lost("its host no longer has it")
        }
        (S::Starting | S::Running | S::Missing | S::Pausing | S::Paused | S::Resuming, F::Unknown) => {
            not_understood(row, sandbox)
        }
        // Its boot from the disk has not begun, or has failed, which its owner records.
        (S::Resuming, F::Failed) if !abandoned => Step::Nothing,
        (S::Starting | S::Running | S::Missing | S::Pausing | S::Paused | S::Resuming, F::Failed) => {
            failed(sandbox)
        }

        (S::Running, F::Running) => Step::Nothing,
        // Its pause has not begun, or has failed.
        (S::Pausing, F::Running) if !abandoned => Step::Nothing,
        (S::Starting | S::Missing | S::Pausing | S::Paused | S::Resuming, F::Running) => {
            Step::Change(Change::to(S::Running))
        }

        // The agent paused it by itself, as when it ends.
        (S::Starting | S::Running | S::Missing | S::Pausing, F::Paused) => Step::Change(paused(sandbox)),
        // Its resume has not begun, or has failed.
        (S::Resuming, F::Paused) if !abandoned => Step::Nothing,
        (S::Resuming, F::Paused) => Step::Change(paused(sandbox)),
        (S::Paused, F::Paused) => {
            let change = paused(sandbox);
            let lost = change.error.as_ref().map(|(_, message)| message);
            if lost.is_none() || lost == row.error_message.as_ref() {
                Step::Nothing
            } else {
                Step::Change(change)
            }
        }

        (S::Stopping, F::Absent) => Step::Change(Change::to(S::Stopped)),
        // A user requested it, so it is done even if the agent cannot read the journal.
        (S::Stopping, F::Starting | F::Running | F::Pausing | F::Paused | F::Resuming) => finish(abandoned),
        (S::Stopping, F::Stopping | F::Failed | F::Unknown | F::Unspecified) => finish(abandoned),

        // A create that failed for its caller. One that has run has data of its user.
        (S::Error, F::Starting | F::Running) if !has_run => Step::Destroy,
        (S::Error, F::Running) => Step::Change(Change::to(S::Running)),
        (S::Error, F::Paused) => Step::Change(paused(sandbox)),
        (S::Error, F::Starting | F::Pausing | F::Resuming | F::Stopping) => Step::Nothing,
        (S::Error, F::Absent | F::Failed | F::Unknown | F::Unspecified) => Step::Nothing,
        (S::Stopped, F::Absent | F::Stopping | F::Unknown | F::Unspecified) => Step::Nothing,
        (S::Stopped, F::Starting | F::Running | F::Pausing | F::Paused | F::Resuming | F::Failed) => {
            Step::Destroy
        }
    }
}

/// Returns the change of a sandbox whose operation has failed with this error, if its host reports `sandbox`. If it is still
/// paused because its memory cannot be used, its record says so. Another error of a resume may be over at the next one.
pub(super) fn change_after_failure(row: &Known, sandbox: Option<&OnHost>, error: &Fault) -> Option<Change> {
    use ErrorCode::{SnapshotDamaged, SnapshotIncompatible, SnapshotMissing};
    // As if its lease had expired: whoever asks is its owner.
    let Step::Change(mut change) = step(&Known { lease_until: None, ..row.clone() }, sandbox) else {
        return None;
    };
    let of_memory = matches!(error.code, SnapshotMissing | SnapshotDamaged | SnapshotIncompatible);
    if of_memory && change.to == Some(SandboxStatus::Paused) {
        // What the agent says by itself is what the reconciler finds later, too.
        change.error.get_or_insert_with(|| (error.code, cut(&error.message, FAILURE_MAX)));
    }
    Some(change)
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
            started_at: None,
            on_timeout: "pause".to_owned(),
        }
    }

    fn has_run(status: SandboxStatus) -> Known {
        Known { started_at: Some(Utc::now()), ..row(status, true) }
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
            Some(H::SANDBOX_STATE_PAUSING),
            Some(H::SANDBOX_STATE_PAUSED),
            Some(H::SANDBOX_STATE_RESUMING),
            Some(H::SANDBOX_STATE_STOPPING),
            Some(H::SANDBOX_STATE_FAILED),
            Some(H::SANDBOX_STATE_UNKNOWN),
            Some(H::SANDBOX_STATE_UNSPECIFIED),
        ];
        #[rustfmt::skip]
        let table = [
            // status, abandoned:  absent     starting   running    pausing    paused     resuming   stopping   failed     unknown    unspecified
            (S::Pending, false,  ["-",       "-",       "-",       "-",       "-",       "-",       "-",       "-",       "-",       "-"]),
            (S::Pending, true,   ["-",       "-",       "-",       "-",       "-",       "-",       "-",       "-",       "-",       "-"]),
            (S::Starting, false, ["-",       "-",       "running", "-",       "paused",  "-",       "-",       "error",   "-",       "-"]),
            (S::Starting, true,  ["error",   "-",       "running", "-",       "paused",  "-",       "-",       "error",   "missing", "-"]),
            (S::Running, false,  ["error",   "-",       "-",       "-",       "paused",  "-",       "-",       "error",   "missing", "-"]),
            (S::Running, true,   ["error",   "-",       "-",       "-",       "paused",  "-",       "-",       "error",   "missing", "-"]),
            (S::Pausing, false,  ["-",       "-",       "-",       "-",       "paused",  "-",       "-",       "error",   "-",       "-"]),
            (S::Pausing, true,   ["error",   "-",       "running", "-",       "paused",  "-",       "-",       "error",   "missing", "-"]),
            (S::Paused, false,   ["error",   "-",       "running", "-",       "paused",  "-",       "-",       "error",   "missing", "-"]),
            (S::Paused, true,    ["error",   "-",       "running", "-",       "paused",  "-",       "-",       "error",   "missing", "-"]),
            (S::Resuming, false, ["-",       "-",       "running", "-",       "-",       "-",       "-",       "-",       "-",       "-"]),
            (S::Resuming, true,  ["error",   "-",       "running", "-",       "paused",  "-",       "-",       "error",   "missing", "-"]),
            (S::Missing, false,  ["error",   "-",       "running", "-",       "paused",  "-",       "-",       "error",   "missing", "-"]),
            (S::Missing, true,   ["error",   "-",       "running", "-",       "paused",  "-",       "-",       "error",   "missing", "-"]),
            (S::Stopping, false, ["stopped", "-",       "-",       "-",       "-",       "-",       "-",       "-",       "-",       "-"]),
            (S::Stopping, true,  ["stopped", "finish",  "finish",  "finish",  "finish",  "finish",  "finish",  "finish",  "finish",  "finish"]),
            (S::Error, false,    ["-",       "destroy", "destroy", "-",       "paused",  "-",       "-",       "-",       "-",       "-"]),
            (S::Error, true,     ["-",       "destroy", "destroy", "-",       "paused",  "-",       "-",       "-",       "-",       "-"]),
            (S::Stopped, false,  ["-",       "destroy", "destroy", "destroy", "destroy", "destroy", "-",       "destroy", "-",       "-"]),
            (S::Stopped, true,   ["-",       "destroy", "destroy", "destroy", "destroy", "destroy", "-",       "destroy", "-",       "-"]),
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
    fn a_host_is_the_cause_of_what_it_was_not_asked_for() {
        use SandboxStatus as S;
        let ended = [
            (S::Starting, S::Running),
            (S::Starting, S::Error),
            (S::Pausing, S::Paused),
            (S::Resuming, S::Running),
            (S::Stopping, S::Stopped),
        ];
        for (from, to) in ended {
            assert!(ends(from, Some(to)), "{from:?} to {to:?}");
        }
        let by_itself = [
            (S::Running, S::Paused),
            (S::Running, S::Missing),
            (S::Pausing, S::Error),
            (S::Missing, S::Running),
            (S::Resuming, S::Paused),
        ];
        for (from, to) in by_itself {
            assert!(!ends(from, Some(to)), "{from:?} to {to:?}");
        }
    }

    #[test]
    fn what_has_run_is_never_destroyed_because_of_an_error() {
        use SandboxState as H;
        let after = |state| describe(step(&has_run(SandboxStatus::Error), Some(&on_host(state))));
        let states = [H::SANDBOX_STATE_STARTING, H::SANDBOX_STATE_RUNNING, H::SANDBOX_STATE_PAUSED];
        assert_eq!(states.map(after), ["-", "running", "paused"]);
        assert_eq!(after(H::SANDBOX_STATE_FAILED), "-");
    }

    #[test]
    fn a_lost_memory_is_told_once() {
        let sandbox = on_host(SandboxState::SANDBOX_STATE_PAUSED);
        let Step::Change(change) = step(&row(SandboxStatus::Paused, true), Some(&sandbox)) else {
            panic!("not told");
        };
        assert_eq!(change.error, Some((ErrorCode::AgentError, "why".into())));
        let told = Known { error_message: Some("why".into()), ..row(SandboxStatus::Paused, true) };
        assert!(matches!(step(&told, Some(&sandbox)), Step::Nothing));
        let whole = OnHost { failure: None.into(), ..sandbox };
        assert!(matches!(step(&row(SandboxStatus::Paused, true), Some(&whole)), Step::Nothing));
    }

    #[test]
    fn a_memory_that_cannot_be_used_is_told() {
        use SandboxState::{SANDBOX_STATE_PAUSED, SANDBOX_STATE_RUNNING};
        let told = |code, sandbox: &OnHost| {
            let refused = Fault::new(code, "bytes 0 to 7 are damaged");
            let change = change_after_failure(&row(SandboxStatus::Resuming, false), Some(sandbox), &refused);
            change.and_then(|change| change.error)
        };
        let lost = on_host(SANDBOX_STATE_PAUSED);
        let whole = OnHost { failure: None.into(), ..lost.clone() };
        let runs = OnHost { state: SANDBOX_STATE_RUNNING.into(), ..whole.clone() };
        let damaged = ErrorCode::SnapshotDamaged;
        assert_eq!(told(damaged, &whole), Some((damaged, "bytes 0 to 7 are damaged".into())));
        assert_eq!(told(damaged, &lost), Some((ErrorCode::AgentError, "why".into())));
        assert_eq!(told(damaged, &runs), None);
        assert_eq!(told(ErrorCode::InsufficientStorage, &whole), None);
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
