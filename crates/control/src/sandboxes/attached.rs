// SPDX-License-Identifier: Apache-2.0
//! Running sandbox that is reached over a connection of its own, for one stream, and commands whose output is
//! streamed.

use bytes::Bytes;
use connectrpc::client::{ClientTransport, ServerStream};
use wrenn_api::{ErrorCode, ExecStart, SandboxId};
use wrenn_rpc::host::v1::{
    __buffa::{oneof::exec_stream_response::Event, view::ExecStreamResponseView},
    ExecStreamRequest,
};

use super::{activity::Active, command};
use crate::{
    agents::{AgentClient, Link},
    error::Fault,
};

/// A running sandbox, for one stream to or from it.
pub struct Attached {
    pub(super) agent: AgentClient,
    pub(super) id: SandboxId,
    /// Maximum size of a file that is written, in bytes.
    pub(super) upload_max: usize,
    /// As long as it is attached, the sandbox is active.
    _active: Option<Active>,
}

/// What happened to a command.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommandEvent {
    /// It was started with this process id.
    Started(u32),
    /// It wrote to standard output.
    Stdout(Bytes),
    /// It wrote to standard error.
    Stderr(Bytes),
    /// This number of bytes of its output is missing here.
    Lost(u64),
    /// It ended; this is the last event.
    Ended {
        /// Exit status; 128 + N if signal N ended the command.
        exit_code: i32,
        /// Whether it was killed at its timeout.
        timed_out: bool,
        /// Number of bytes of its output that are missing.
        lost_bytes: u64,
    },
}

impl Attached {
    pub(crate) const fn new(agent: AgentClient, id: SandboxId, upload_max: usize) -> Self {
        Self { agent, id, upload_max, _active: None }
    }

    /// Keeps the sandbox active as long as it is attached.
    pub(super) fn keeping(self, active: Option<Active>) -> Self {
        Self { _active: active, ..self }
    }

    /// Starts a command. It is killed with its descendants when the stream is dropped.
    pub async fn exec_stream(&self, start: ExecStart) -> Result<CommandStream, Fault> {
        let (command, timeout_ms) = command::streamed(start)?;
        let request = ExecStreamRequest {
            sandbox_id: self.id.to_string(),
            command: command.into(),
            timeout_ms,
            ..Default::default()
        };
        Ok(CommandStream { events: self.agent.exec_stream(request).await? })
    }
}

/// Events of a command, in order.
pub struct CommandStream {
    events: ServerStream<<Link as ClientTransport>::ResponseBody, ExecStreamResponseView<'static>>,
}

impl CommandStream {
    /// Waits for the next event. Fails if the sandbox's host ends the stream before the command's end.
    pub async fn next(&mut self) -> Result<CommandEvent, Fault> {
        loop {
            let ended = || Fault::new(ErrorCode::AgentError, "the command's end was not reported");
            let message = self.events.message().await?.ok_or_else(ended)?;
            // A host may send events that this version does not know.
            if let Some(event) = message.to_owned_message().event {
                return Ok(event.into());
            }
        }
    }
}

impl From<Event> for CommandEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::Start(start) => Self::Started(start.pid),
            Event::Stdout(bytes) => Self::Stdout(bytes.into()),
            Event::Stderr(bytes) => Self::Stderr(bytes.into()),
            Event::Lost(lost) => Self::Lost(lost.bytes),
            Event::End(end) => {
                Self::Ended { exit_code: end.exit_code, timed_out: end.timed_out, lost_bytes: end.lost_bytes }
            }
        }
    }
}
