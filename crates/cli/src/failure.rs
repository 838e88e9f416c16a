// SPDX-License-Identifier: Apache-2.0
//! Failed commands: exit status, and the error object of `--json`.

use serde::Serialize;
use serde_json::json;
use wrenn_api::ErrorCode;
use wrenn_client::Error;

use crate::output::{self, Format};

/// Exit status for an invalid command line.
pub(crate) const USAGE: u8 = 2;
/// Exit status of `run` and `exec` for a command that exceeded its timeout, as of `timeout`.
pub(crate) const TIMED_OUT: u8 = 124;
/// Exit status of `run` and `exec` for a failure of Wrenn, as of `env` and `docker run`.
const OURS: u8 = 125;
/// Exit status of `run` and `exec` for a program that cannot be executed, or a user or directory that does
/// not exist.
const NOT_EXECUTABLE: u8 = 126;
/// Exit status of `run` and `exec` for a program that does not exist.
const NO_PROGRAM: u8 = 127;

/// A failure with a stable code, detected by this program.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    code: &'static str,
    message: String,
}

impl Failure {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// An error as printed with `--json`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    code: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

impl Report {
    /// Converts an error.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        let (mut code, mut request_id, mut words) = (None, None, Vec::new());
        for cause in error.chain() {
            match (cause.downcast_ref::<Error>(), cause.downcast_ref::<Failure>()) {
                (Some(Error::Api { code: api, message, request_id: id, .. }), _) => {
                    (code, request_id) = (Some(api.clone()), id.clone());
                    words.push(message.clone());
                }
                (Some(other), _) => {
                    code = Some(client_code(other).to_owned());
                    words.push(other.to_string());
                }
                (None, Some(failure)) => {
                    code = Some(failure.code.to_owned());
                    words.push(failure.message.clone());
                }
                (None, None) => words.push(cause.to_string()),
            }
        }
        Self { code: code.unwrap_or_else(|| "failed".to_owned()), message: words.join(": "), request_id }
    }

    /// Exit status of `run` and `exec` for this error.
    pub(crate) fn exit_status(&self) -> u8 {
        match self.code.parse() {
            Ok(ErrorCode::ProgramNotFound) => NO_PROGRAM,
            Ok(ErrorCode::ProgramNotExecutable | ErrorCode::UserNotFound | ErrorCode::DirectoryNotFound) => {
                NOT_EXECUTABLE
            }
            _ => OURS,
        }
    }
}

fn client_code(error: &Error) -> &'static str {
    match error {
        Error::Api { .. } => "failed",
        Error::Url { .. } => "invalid_url",
        Error::Connect { .. } => "unreachable",
        Error::Lost(_) => "connection_lost",
        Error::Protocol(_) => "unexpected_answer",
    }
}

/// Reports an error: as text on standard error, or as an object on standard output.
pub(crate) fn tell(error: &anyhow::Error, format: Format) {
    match format {
        Format::Text => output::note(&format!("wrenn: {error:#}")),
        Format::Json => tell_json(&Report::of(error)),
    }
}

/// Prints the error object of an invalid command line.
pub(crate) fn tell_usage(error: &clap::Error) {
    let text = error.render().to_string();
    let message = text.trim().trim_start_matches("error: ").to_owned();
    tell_json(&Report { code: "usage".to_owned(), message, request_id: None });
}

fn tell_json(report: &Report) {
    // If standard output is closed, there is no one to report to.
    let _ = output::line(&json!({ "error": report }).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: &str) -> anyhow::Error {
        let (code, message) = (code.to_owned(), "the cause".to_owned());
        Error::Api { status: 404, code, message, request_id: Some("r1".to_owned()), sandbox_id: None }.into()
    }

    #[test]
    fn the_code_decides_the_exit_status() {
        let status = |code| Report::of(&api(code)).exit_status();
        assert_eq!(status("program_not_found"), 127);
        for code in ["program_not_executable", "user_not_found", "directory_not_found"] {
            assert_eq!(status(code), 126, "{code}");
        }
        for code in ["not_found", "unauthorized", "host_unavailable", "teapot"] {
            assert_eq!(status(code), 125, "{code}");
        }
        assert_eq!(Report::of(&anyhow::anyhow!("x")).exit_status(), 125);
    }

    #[test]
    fn code_and_request_are_apart_from_the_message() {
        let report = Report::of(&api("not_found").context("cannot do it"));
        let expected = Report {
            code: "not_found".to_owned(),
            message: "cannot do it: the cause".to_owned(),
            request_id: Some("r1".to_owned()),
        };
        assert_eq!(report, expected);
        let report = Report::of(&Failure::new("no_api_key", "no key").into());
        assert_eq!((report.code.as_str(), report.message.as_str()), ("no_api_key", "no key"));
    }
}
