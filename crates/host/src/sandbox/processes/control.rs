// SPDX-License-Identifier: Apache-2.0
//! Processes that run without a reader: start, list and signal.

use std::time::Duration;

use wrenn_api::ErrorCode;
use wrenn_rpc::{
    host::v1::Process,
    process::{ListRequest, ProcessInfo, SendSignalRequest, SendSignalResponse},
};

use super::{Command, KILL, START, Selector, refused, stream};
use crate::{error::AgentError, sandbox::guest::Guest};

/// Time limit for a list of processes.
const LIST: Duration = Duration::from_secs(10);
/// Maximum size of a list in bytes.
const LIST_MAX: usize = 4 << 20;

/// Starts a command that runs on without a reader; returns its process id.
pub(crate) async fn start(
    guest: &Guest,
    command: Command,
    limit: Option<Duration>,
) -> Result<u32, AgentError> {
    let mut options = guest.options(&command.user);
    if let Some(limit) = limit {
        // envd keeps the deadline of the call.
        options = options.with_timeout(limit);
    }
    let starting = async {
        let mut source = stream::Source::start(&guest.processes, command.request(), options).await?;
        source.started().await
    };
    Ok(stream::in_time(guest, START, starting).await?.pid)
}

/// Lists the running processes.
pub(crate) async fn list(guest: &Guest) -> Result<Vec<Process>, AgentError> {
    let options = guest.options("").with_max_message_size(LIST_MAX).with_timeout(LIST);
    let listed = guest.meanwhile(guest.processes.list_with_options(ListRequest::default(), options)).await?;
    let listed = listed.map_err(|error| refused(&error))?.into_owned();
    Ok(listed.processes.into_iter().map(describe).collect())
}

fn describe(info: ProcessInfo) -> Process {
    let config = info.config.into_option().unwrap_or_default();
    Process {
        pid: info.pid,
        tag: info.tag.unwrap_or_default(),
        cmd: config.cmd,
        args: config.args,
        cwd: config.cwd.unwrap_or_default(),
        user: info.user,
        started_at_unix_ms: info.started_at_unix_ms,
        terminal: info.pty,
        out_of_memory: info.out_of_memory,
        ..Default::default()
    }
}

/// Sends a signal to a process and its descendants; returns its id and how many processes got it.
pub(crate) async fn signal(guest: &Guest, process: &Selector, signal: u32) -> Result<(u32, u32), AgentError> {
    let invalid =
        || AgentError::new(ErrorCode::InvalidRequest, format!("signal {signal} is none: give 1 to 64"));
    let number = i32::try_from(signal).map_err(|_| invalid())?;
    let request = SendSignalRequest {
        process: process.message().into(),
        signal: buffa::EnumValue::from(number),
        ..Default::default()
    };
    let sending = guest.processes.send_signal_with_options(request, guest.options("").with_timeout(KILL));
    let sent = guest.meanwhile(sending).await?.map_err(|error| refused(&error))?;
    let SendSignalResponse { pid, processes, .. } = sent.into_owned();
    // Older versions of envd say neither.
    let known = if let Selector::Pid(pid) = process { *pid } else { pid };
    Ok((known, processes.max(1)))
}
