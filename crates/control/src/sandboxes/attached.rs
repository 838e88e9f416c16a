// SPDX-License-Identifier: Apache-2.0
//! Running sandbox that is reached over a connection of its own, for one stream: a process with its input and output, or a
//! file.

use bytes::Bytes;
use connectrpc::client::{BidiRecvHalf, BidiSendHalf, ClientTransport};
use wrenn_api::{
    ErrorCode, ExecStart, KilledProcess, SandboxId, Signal, TerminalConnect, TerminalSize, TerminalStart,
};
use wrenn_rpc::host::v1::{
    __buffa::{
        oneof::{
            process_stream_request::{Part, attach},
            process_stream_response::Event,
        },
        view::ProcessStreamResponseView,
    },
    ProcessStreamRequest, TerminalSize as SizeMessage,
    process_stream_request::{Attach, CloseInput, Leave, Start},
};

use super::{
    activity::Active,
    command::{self, killed},
    processes::Selector,
    terminals,
};
use crate::{
    agents::{AgentClient, Link},
    error::Fault,
};

/// A running sandbox, for one stream to or from it.
pub struct Attached {
    pub(super) agent: AgentClient,
    pub(super) id: SandboxId,
    /// As long as it is attached, the sandbox is active.
    _active: Option<Active>,
}

/// Where the output of a process is read from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum From {
    /// From the beginning, as far as it is kept.
    #[default]
    Beginning,
    /// From the next output on.
    Now,
    /// After this number of bytes since its start.
    Offset(u64),
}

/// What happened to a process.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessEvent {
    /// It runs. This is the first event.
    #[non_exhaustive]
    Started {
        /// Its process id.
        pid: u32,
        /// Its tag, if it has one.
        tag: Option<String>,
        /// Number of bytes that it had written before the output that follows.
        offset: u64,
        /// Size of its terminal, if it has one.
        terminal: Option<TerminalSize>,
    },
    /// It wrote to standard output.
    Stdout(Bytes),
    /// It wrote to standard error.
    Stderr(Bytes),
    /// This number of bytes of its output is missing here.
    Lost(u64),
    /// A piece of what makes an empty terminal show what its terminal shows.
    Screen(Bytes),
    /// Its terminal has this size now.
    Resized(TerminalSize),
    /// It takes no more input, and why.
    InputClosed(String),
    /// It ended; this is the last event.
    Ended(Exit),
}

/// End of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exit {
    /// Exit status; 128 + N if signal N ended it.
    pub exit_code: i32,
    /// Whether it was killed at its timeout.
    pub timed_out: bool,
    /// Number of bytes of its output that are missing.
    pub lost_bytes: u64,
    /// Number of the signal that ended it, if one did.
    pub signal: Option<u32>,
    /// Whether the kernel killed it or a descendant for want of memory.
    pub out_of_memory: bool,
    /// Which one, if that is known.
    pub killed: Option<KilledProcess>,
}

impl Attached {
    pub(crate) const fn new(agent: AgentClient, id: SandboxId) -> Self {
        Self { agent, id, _active: None }
    }

    /// Keeps the sandbox active as long as it is attached.
    pub(super) fn keeping(self, active: Active) -> Self {
        Self { _active: Some(active), ..self }
    }

    /// Starts a command. It is killed with its descendants when the events are dropped.
    pub async fn start(&self, start: ExecStart) -> Result<(ProcessInput, ProcessEvents), Fault> {
        let (command, timeout_ms) = command::streamed(start)?;
        let sandbox_id = self.id.to_string();
        let start = Start { sandbox_id, command: command.into(), timeout_ms, ..Default::default() };
        self.open(Part::Start(start.into())).await
    }

    /// Starts a program in a new terminal. It goes on when the events are dropped.
    pub async fn start_terminal(&self, start: TerminalStart) -> Result<(ProcessInput, ProcessEvents), Fault> {
        let (command, timeout_ms) = terminals::command(start)?;
        let sandbox_id = self.id.to_string();
        let start = Start { sandbox_id, command: command.into(), timeout_ms, ..Default::default() };
        self.open(Part::Start(start.into())).await
    }

    /// Connects to a terminal: its screen comes first. It goes on when the events are dropped.
    pub async fn connect_terminal(
        &self,
        connect: TerminalConnect,
    ) -> Result<(ProcessInput, ProcessEvents), Fault> {
        let (process, size) = terminals::connection(connect)?;
        let process = wrenn_rpc::host::v1::ProcessSelector::from(process);
        let from = Some(attach::From::Screen(true));
        let sandbox_id = self.id.to_string();
        let size = size.map(message).into();
        let attach = Attach { sandbox_id, process: process.into(), from, size, ..Default::default() };
        self.open(Part::Attach(attach.into())).await
    }

    /// Attaches to a process, which goes on when the events are dropped.
    pub async fn connect(
        &self,
        process: Selector,
        from: From,
    ) -> Result<(ProcessInput, ProcessEvents), Fault> {
        let from = match from {
            From::Beginning => None,
            From::Now => Some(attach::From::Now(true)),
            From::Offset(offset) => Some(attach::From::Offset(offset)),
        };
        let process = wrenn_rpc::host::v1::ProcessSelector::from(process);
        let sandbox_id = self.id.to_string();
        let attach = Attach { sandbox_id, process: process.into(), from, ..Default::default() };
        self.open(Part::Attach(attach.into())).await
    }

    async fn open(&self, first: Part) -> Result<(ProcessInput, ProcessEvents), Fault> {
        let mut stream = self.agent.process_stream().await?;
        stream.send(request(first)).await?;
        let (requests, events) = stream.into_split();
        Ok((ProcessInput { requests }, ProcessEvents { events }))
    }
}

fn message(size: TerminalSize) -> SizeMessage {
    SizeMessage { cols: size.cols, rows: size.rows, ..Default::default() }
}

fn request(part: Part) -> ProcessStreamRequest {
    ProcessStreamRequest { part: Some(part), ..Default::default() }
}

/// Input of a process. It waits where the process does not read it; once the process has ended, input is dropped.
pub struct ProcessInput {
    requests: BidiSendHalf<ProcessStreamRequest>,
}

impl ProcessInput {
    /// Writes a piece of standard input.
    pub async fn write(&mut self, bytes: Vec<u8>) {
        self.send(Part::Input(bytes)).await;
    }

    /// Closes standard input after what was written.
    pub async fn close(&mut self) {
        self.send(Part::CloseInput(CloseInput::default().into())).await;
    }

    /// Sends a signal to the process and its descendants.
    pub async fn signal(&mut self, signal: Signal) {
        self.send(Part::Signal(signal.number())).await;
    }

    /// Changes the size of the terminal.
    pub async fn resize(&mut self, size: TerminalSize) {
        self.send(Part::Resize(message(size).into())).await;
    }

    /// Ends the stream after what was written, signalled and resized: its events end when the host has all of it.
    pub async fn leave(&mut self) {
        self.send(Part::Leave(Leave::default().into())).await;
    }

    async fn send(&mut self, part: Part) {
        // Why it failed is told by the events.
        let _ = self.requests.send(request(part)).await;
    }
}

/// Events of a process, in order.
pub struct ProcessEvents {
    events: BidiRecvHalf<<Link as ClientTransport>::ResponseBody, ProcessStreamResponseView<'static>>,
}

impl ProcessEvents {
    /// Waits for the next event. Cancel-safe. Fails if the sandbox's host ends the stream before the end of the process.
    pub async fn next(&mut self) -> Result<ProcessEvent, Fault> {
        loop {
            let ended = || Fault::new(ErrorCode::AgentError, "the command's end was not reported");
            let message = self.events.message().await?.ok_or_else(ended)?;
            // A host may send events that this version does not know.
            if let Some(event) = message.to_owned_message().event {
                return Ok(event.into());
            }
        }
    }

    /// Waits for the end of the stream after [`ProcessInput::leave`].
    pub async fn left(&mut self) {
        while let Ok(Some(_)) = self.events.message().await {}
    }
}

impl std::convert::From<Event> for ProcessEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::Start(start) => {
                let start = *start;
                let tag = Some(start.tag).filter(|tag| !tag.is_empty());
                let terminal = start.terminal.as_option().map(size);
                Self::Started { pid: start.pid, tag, offset: start.offset, terminal }
            }
            Event::Stdout(bytes) => Self::Stdout(bytes.into()),
            Event::Stderr(bytes) => Self::Stderr(bytes.into()),
            Event::Lost(lost) => Self::Lost(lost.bytes),
            Event::Screen(bytes) => Self::Screen(bytes.into()),
            Event::Resized(now) => Self::Resized(size(&now)),
            Event::InputClosed(closed) => Self::InputClosed(closed.message),
            Event::End(end) => Self::Ended(Exit {
                exit_code: end.exit_code,
                timed_out: end.timed_out,
                lost_bytes: end.lost_bytes,
                signal: Some(end.signal).filter(|signal| *signal > 0),
                out_of_memory: end.out_of_memory,
                killed: end.victim.into_option().map(killed),
            }),
        }
    }
}

fn size(message: &SizeMessage) -> TerminalSize {
    TerminalSize { cols: message.cols, rows: message.rows }
}
