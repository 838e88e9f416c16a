// SPDX-License-Identifier: Apache-2.0
//! Processes that run in the background: start, list and signals.

use chrono::DateTime;
use wrenn_api::{BackgroundProcess, ErrorCode, ProcessInfo, SandboxId, Signal, Signalled};
use wrenn_rpc::host::v1::{
    __buffa::oneof::process_selector, ListProcessesRequest, Process, ProcessSelector, SignalProcessRequest,
    StartProcessRequest,
};

use super::command::{BackgroundCommand, check_tag};
use crate::{
    agents::{AgentClient, deadline, within},
    error::Fault,
};

/// A process of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selector {
    /// The one with this process id.
    Pid(u32),
    /// The one with this tag.
    Tag(String),
}

impl std::str::FromStr for Selector {
    type Err = Fault;

    /// Digits are a process id, and all else is a tag.
    fn from_str(text: &str) -> Result<Self, Fault> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            check_tag(text)?;
            return Ok(Self::Tag(text.to_owned()));
        }
        let none = || Fault::new(ErrorCode::NotFound, format!("no process has the id {text}"));
        text.parse().map(Self::Pid).map_err(|_| none())
    }
}

impl From<Selector> for ProcessSelector {
    fn from(selector: Selector) -> Self {
        let selector = match selector {
            Selector::Pid(pid) => process_selector::Selector::Pid(pid),
            Selector::Tag(tag) => process_selector::Selector::Tag(tag),
        };
        Self { selector: Some(selector), ..Default::default() }
    }
}

/// Starts a command that runs on without a reader.
pub(super) async fn start(
    agent: &AgentClient,
    sandbox_id: SandboxId,
    command: BackgroundCommand,
) -> Result<BackgroundProcess, Fault> {
    let BackgroundCommand { command, seconds } = command;
    let (cmd, tag) = (command.cmd.clone(), command.tag.clone());
    let request = StartProcessRequest {
        sandbox_id: sandbox_id.to_string(),
        command: command.into(),
        timeout_ms: seconds * 1000,
        ..Default::default()
    };
    let started = agent.start_process_with_options(request, within(deadline::EXEC_EXTRA)).await?;
    Ok(BackgroundProcess { sandbox_id, cmd, pid: started.into_owned().pid, tag })
}

/// Lists the running processes.
pub(super) async fn list(agent: &AgentClient, id: SandboxId) -> Result<Vec<ProcessInfo>, Fault> {
    let request = ListProcessesRequest { sandbox_id: id.to_string(), ..Default::default() };
    let listed = agent.list_processes_with_options(request, within(deadline::EXEC_EXTRA)).await?;
    Ok(listed.into_owned().processes.into_iter().map(info).collect())
}

fn info(process: Process) -> ProcessInfo {
    ProcessInfo {
        pid: process.pid,
        tag: Some(process.tag).filter(|tag| !tag.is_empty()),
        cmd: process.cmd,
        args: process.args,
        cwd: Some(process.cwd).filter(|cwd| !cwd.is_empty()),
        user: process.user,
        started_at: DateTime::from_timestamp_millis(process.started_at_unix_ms).unwrap_or_default(),
        terminal: process.terminal,
        out_of_memory: process.out_of_memory,
    }
}

/// Sends a signal to a process and all its descendants.
pub(super) async fn signal(
    agent: &AgentClient,
    id: SandboxId,
    process: Selector,
    signal: Signal,
) -> Result<Signalled, Fault> {
    let signal = signal.number();
    let process = ProcessSelector::from(process);
    let request = SignalProcessRequest {
        sandbox_id: id.to_string(),
        process: process.into(),
        signal,
        ..Default::default()
    };
    let sent = agent.signal_process_with_options(request, within(deadline::EXEC_EXTRA)).await?.into_owned();
    Ok(Signalled { pid: sent.pid, signal, processes: sent.processes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_a_process_id() {
        let parse = |text: &str| text.parse::<Selector>().map_err(|fault| fault.code);
        assert_eq!(parse("12"), Ok(Selector::Pid(12)));
        assert_eq!(parse("12a"), Ok(Selector::Tag("12a".into())));
        assert_eq!(parse("99999999999"), Err(ErrorCode::NotFound));
        assert_eq!(parse(""), Err(ErrorCode::InvalidRequest));
        assert_eq!(parse("a b"), Err(ErrorCode::InvalidRequest));
    }
}
