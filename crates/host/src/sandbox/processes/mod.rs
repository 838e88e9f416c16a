// SPDX-License-Identifier: Apache-2.0
//! Processes of a guest, reached through its envd: commands that are run to their end, streams of output and input, and
//! processes that run without either. What envd says is input.

mod control;
mod input;
mod run;
mod screen;
mod stream;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, time::Duration};

use connectrpc::{ConnectError, ErrorCode as Wire};
use wrenn_api::ErrorCode;
use wrenn_rpc::{
    Foreign,
    fault::{self, Of},
    process::{
        __buffa::oneof::{connect_request, process_selector},
        ConnectRequest, PTY, ProcessConfig, ProcessSelector, StartRequest, pty,
    },
};

pub(crate) use self::{
    control::{list, signal, start},
    input::Input,
    run::run,
    screen::screen,
    stream::{Event, Running, attach, stream},
};
use super::guest::{shorten, unreachable};
use crate::error::AgentError;

/// Time limit of envd for the start of a command.
const START: Duration = Duration::from_secs(30);
/// Time limit for the end of a killed command.
const KILL: Duration = Duration::from_secs(5);
/// Error codes that envd may return; other errors of a guest become `agent_error`.
const REFUSALS: [ErrorCode; 7] = [
    ErrorCode::ProgramNotFound,
    ErrorCode::ProgramNotExecutable,
    ErrorCode::UserNotFound,
    ErrorCode::DirectoryNotFound,
    ErrorCode::TooManyRequests,
    ErrorCode::InsufficientStorage,
    ErrorCode::Conflict,
];

/// A command.
#[derive(Debug, Clone, Default)]
pub(crate) struct Command {
    /// Name of the program in `PATH`.
    pub(crate) cmd: String,
    /// Arguments.
    pub(crate) args: Vec<String>,
    /// Environment variables in addition to the sandbox's.
    pub(crate) envs: HashMap<String, String>,
    /// Working directory; empty for the user's home.
    pub(crate) cwd: String,
    /// User; empty for the sandbox's default.
    pub(crate) user: String,
    /// Whether its standard input stays open; else it is empty.
    pub(crate) stdin: bool,
    /// Name that no other running process has; empty for none.
    pub(crate) tag: String,
    /// Terminal instead of pipes. Its process goes on without readers.
    pub(crate) terminal: Option<Terminal>,
}

/// Terminal of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    /// Its size.
    pub(crate) size: Size,
    /// Time after which it hangs up without readers, input and output.
    pub(crate) idle: Option<Duration>,
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Number of columns.
    pub(crate) cols: u32,
    /// Number of rows.
    pub(crate) rows: u32,
}

/// A process of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selector {
    Pid(u32),
    Tag(String),
}

/// Where the output of a process is read from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum From {
    /// From the beginning, as far as it is kept.
    #[default]
    Beginning,
    /// From the next output on.
    Now,
    /// After this number of bytes since its start.
    Offset(u64),
    /// From the next output on, after what its terminal shows.
    Screen,
}

impl Command {
    /// Request to envd.
    fn request(self) -> StartRequest {
        let config = ProcessConfig {
            cmd: self.cmd,
            args: self.args,
            envs: self.envs.into_iter().collect(),
            cwd: Some(self.cwd).filter(|cwd| !cwd.is_empty()),
            ..Default::default()
        };
        let idle = self.terminal.and_then(|terminal| terminal.idle);
        StartRequest {
            process: config.into(),
            stdin: Some(self.stdin),
            tag: Some(self.tag).filter(|tag| !tag.is_empty()),
            pty: self.terminal.map(|terminal| terminal.size.message()).into(),
            idle_timeout_ms: idle.map_or(0, |idle| u32::try_from(idle.as_millis()).unwrap_or(u32::MAX)),
            ..Default::default()
        }
    }
}

impl Size {
    /// Message to envd.
    fn message(self) -> PTY {
        let size = pty::Size { cols: self.cols, rows: self.rows, ..Default::default() };
        PTY { size: size.into(), ..Default::default() }
    }
}

impl std::convert::From<pty::Size> for Size {
    fn from(size: pty::Size) -> Self {
        Self { cols: size.cols, rows: size.rows }
    }
}

impl Selector {
    fn message(&self) -> ProcessSelector {
        let selector = match self {
            Self::Pid(pid) => process_selector::Selector::Pid(*pid),
            Self::Tag(tag) => process_selector::Selector::Tag(tag.clone()),
        };
        ProcessSelector { selector: Some(selector), ..Default::default() }
    }

    /// Request to envd.
    fn connect(&self, from: From) -> ConnectRequest {
        let from = match from {
            From::Beginning => None,
            From::Now => Some(connect_request::From::Now(true)),
            From::Offset(offset) => Some(connect_request::From::Offset(offset)),
            From::Screen => Some(connect_request::From::Screen(true)),
        };
        ConnectRequest { process: self.message().into(), from, ..Default::default() }
    }
}

/// Converts an error of the start of a command, or of its connection.
fn refused(error: &ConnectError) -> AgentError {
    let text = error.message.as_deref().unwrap_or_default();
    let told = fault::of(error).and_then(|(code, _)| code.parse().ok());
    if let Some(code) = told.filter(|code| REFUSALS.contains(code)) {
        return AgentError { of: Of::OF_CALLER, ..AgentError::new(code, shorten(text)) };
    }
    match error.code {
        // Errors of older versions of envd (of guests that a former agent started) for an unknown user, a
        // missing directory or program. All other parameters were checked before.
        Wire::NotFound | Wire::Unauthenticated | Wire::InvalidArgument => {
            AgentError::new(ErrorCode::NotFound, shorten(text))
        }
        Wire::OutOfRange => AgentError::new(ErrorCode::InvalidRequest, shorten(text)),
        Wire::PermissionDenied => AgentError::new(ErrorCode::Forbidden, shorten(text)),
        Wire::Unavailable => unreachable(&Foreign(text)),
        _ => {
            let message = format!(
                "the sandbox's own agent failed: {}; try again, or delete the sandbox",
                shorten(text)
            );
            AgentError::new(ErrorCode::AgentError, message)
        }
    }
}

/// Why a process does not take what is meant for it: what envd says of it, or that envd does not answer.
fn why(error: &ConnectError) -> AgentError {
    match (error.code, error.message.as_deref()) {
        (Wire::FailedPrecondition, Some(text)) => AgentError::new(ErrorCode::InvalidState, shorten(text)),
        _ => refused(error),
    }
}
