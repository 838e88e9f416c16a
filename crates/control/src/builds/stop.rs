// SPDX-License-Identifier: Apache-2.0
//! Reasons for which a worker stops to work on a build.

use wrenn_api::ErrorCode;

use super::plan::Place;
use crate::error::Fault;

/// Code of a build that failed by what its recipe says.
const BUILD_FAILED: &str = ErrorCode::BuildFailed.as_str();

/// Why a worker stops.
#[derive(Debug)]
pub(super) enum Stop {
    /// Another worker has the build, or the database does not answer: nothing more is written.
    Lost,
    /// The build was cancelled.
    Cancelled,
    /// The server stops.
    Leaving,
    /// The host does not answer, as when its agent is restarted: the build begins again after the last step that was kept.
    Away(Failure),
    /// The build failed.
    Failed(Failure),
}

/// Why a build failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: &'static str,
    /// Cause and remedy.
    pub(super) message: String,
    /// The step that failed.
    pub(super) step: Option<Place>,
    /// Exit status of its command.
    pub(super) exit_code: Option<i32>,
}

impl Failure {
    /// The failure of a build by what its recipe says, in no step.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { code: BUILD_FAILED, message: message.into(), step: None, exit_code: None }
    }

    /// The failure of a step; `what` follows its name in the message.
    pub(super) fn of_step(step: Place, what: &str) -> Self {
        Self { step: Some(step), ..Self::new(format!("{step} {what}")) }
    }

    /// The failure of a step whose command ended with this status.
    pub(super) fn of_command(step: Place, what: &str, exit_code: i32) -> Self {
        Self { exit_code: Some(exit_code), ..Self::of_step(step, what) }
    }
}

impl Stop {
    /// The end of a build by a fault in no step.
    pub(super) fn of(fault: Fault) -> Self {
        if fault.code == ErrorCode::ServiceUnavailable {
            // It was logged where it occurred.
            return Self::Lost;
        }
        let is_away = matches!(fault.code, ErrorCode::HostUnavailable | ErrorCode::TemplateUnavailable);
        let code = code_of(&fault);
        let failure = Failure { code, ..Failure::new(fault.message) };
        if is_away { Self::Away(failure) } else { Self::Failed(failure) }
    }

    /// The end of a build by a fault in a step.
    pub(super) fn in_step(step: Place, fault: Fault) -> Self {
        let of_step = |failure: Failure| {
            let message = format!("{step}: {}", failure.message);
            Failure { message, step: Some(step), ..failure }
        };
        match Self::of(fault) {
            Self::Failed(failure) => Self::Failed(of_step(failure)),
            Self::Away(failure) => Self::Away(of_step(failure)),
            other => other,
        }
    }
}

/// What is wrong with a request is wrong with the recipe that led to it; all else has its own code.
const fn code_of(fault: &Fault) -> &'static str {
    if fault.code.status() < 500 { BUILD_FAILED } else { fault.code.as_str() }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<sqlx::Error> for Stop {
    fn from(error: sqlx::Error) -> Self {
        // Logs it, too.
        Self::of(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Place = Place { number: 2, line: 3 };

    fn failed(stop: Stop) -> Failure {
        match stop {
            Stop::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_failure_names_its_step_and_line() {
        let failure = Failure::of_command(STEP, "ended with 100", 100);
        assert_eq!(failure.message, "step 2 (line 3) ended with 100");
        assert_eq!((failure.code, failure.step, failure.exit_code), ("build_failed", Some(STEP), Some(100)));
        let fault = Fault::new(ErrorCode::UserNotFound, "there is no user app");
        let failure = failed(Stop::in_step(STEP, fault));
        assert_eq!((failure.code, failure.step), ("build_failed", Some(STEP)));
        assert_eq!(failure.message, "step 2 (line 3): there is no user app");
    }

    #[test]
    fn what_is_no_fault_of_the_recipe_has_its_own_code() {
        let of = |code| Stop::of(Fault::new(code, "why"));
        assert!(matches!(
            of(ErrorCode::HostUnavailable),
            Stop::Away(Failure { code: "host_unavailable", .. })
        ));
        assert_eq!(failed(of(ErrorCode::InsufficientStorage)).code, "insufficient_storage");
        assert_eq!(failed(of(ErrorCode::TooManyRequests)).code, "build_failed");
        assert!(matches!(of(ErrorCode::ServiceUnavailable), Stop::Lost));
    }
}
