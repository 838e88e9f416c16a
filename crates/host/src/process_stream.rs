// SPDX-License-Identifier: Apache-2.0
//! Messages of the calls that concern processes: requests are checked, and a stream's input and output passed on.

use std::time::Duration;

use connectrpc::{ConnectError, InboundStream};
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::{
    __buffa::oneof::{
        process_selector, process_stream_request::Part, process_stream_response::Event as Told,
    },
    ProcessSelector, ProcessStreamRequest, ProcessStreamResponse, TerminalSize,
    process_stream_response::{End as ToldEnd, InputClosed, Lost, Start},
};

use crate::{
    error::AgentError,
    memory::Held,
    sandbox::{
        guest::Guest,
        processes::{self, Command, Event, Input, Running, Selector, Size, Terminal},
    },
};

fn invalid(message: &str) -> ConnectError {
    AgentError::new(ErrorCode::InvalidRequest, message).into()
}

/// Checks a command.
pub(crate) fn command(given: Option<wrenn_rpc::host::v1::Command>) -> Result<Command, ConnectError> {
    let given = given.ok_or_else(|| invalid("command is missing"))?;
    if given.cmd.is_empty() {
        return Err(invalid("cmd is empty: name a program"));
    }
    let texts = [&given.cmd, &given.cwd, &given.user, &given.tag].into_iter().chain(&given.args);
    if texts.chain(given.envs.iter().flat_map(|(key, value)| [key, value])).any(|text| text.contains('\0')) {
        return Err(invalid("a NUL character cannot be part of a command"));
    }
    if given.envs.keys().any(|name| name.is_empty() || name.contains('=')) {
        return Err(invalid("an environment variable needs a name without '='"));
    }
    Ok(Command {
        cmd: given.cmd,
        args: given.args,
        envs: given.envs.into_iter().collect(),
        cwd: given.cwd,
        user: given.user,
        stdin: given.stdin,
        tag: given.tag,
        terminal: given.terminal.into_option().map(terminal).transpose()?,
    })
}

fn terminal(given: wrenn_rpc::host::v1::Terminal) -> Result<Terminal, ConnectError> {
    let size = size(&given.size.into_option().unwrap_or_default())?;
    let idle = Some(given.idle_timeout_ms).filter(|idle| *idle > 0);
    Ok(Terminal { size, idle: idle.map(|idle| Duration::from_millis(idle.into())) })
}

/// Checks the size of a terminal.
pub(crate) fn size(given: &TerminalSize) -> Result<Size, ConnectError> {
    let max = wrenn_api::TerminalSize::MAX;
    if !(wrenn_api::TerminalSize { cols: given.cols, rows: given.rows }).is_possible() {
        return Err(invalid(&format!(
            "a terminal has 1 to {} columns and 1 to {} rows, not {} and {}",
            max.cols, max.rows, given.cols, given.rows
        )));
    }
    Ok(Size { cols: given.cols, rows: given.rows })
}

/// Checks a selector.
pub(crate) fn selector(given: Option<&ProcessSelector>) -> Result<Selector, ConnectError> {
    match given.and_then(|given| given.selector.as_ref()) {
        Some(process_selector::Selector::Pid(pid)) => Ok(Selector::Pid(*pid)),
        Some(process_selector::Selector::Tag(tag)) if !tag.is_empty() && !tag.contains('\0') => {
            Ok(Selector::Tag(tag.clone()))
        }
        _ => Err(invalid("a process is selected by its pid or its tag")),
    }
}

/// Responses of a stream while its requests are passed on to the process.
pub(crate) fn exchange(
    guest: Guest,
    running: Running,
    requests: InboundStream<ProcessStreamRequest>,
) -> impl Stream<Item = Result<ProcessStreamResponse, ConnectError>> + Send {
    let (input, closed) = running.input(&guest);
    let Running { pid, tag, offset, terminal, events, memory, .. } = running;
    let terminal = terminal.map(TerminalSize::from).into();
    let start = Start { pid, tag, offset, terminal, ..Default::default() };
    let (leave, left) = mpsc::channel(1);
    let passing = tokio::spawn(pass_on(guest, pid, input, requests, leave).in_current_span());
    let passing = AbortOnDropHandle::new(passing);
    let state = Outgoing { events, closed, left, ended: false, _memory: memory, _passing: passing };
    let rest = stream::unfold(state, async |mut outgoing| Some((outgoing.next().await?, outgoing)));
    let events = stream::once(async { Ok(Told::Start(start.into())) }).chain(rest);
    events.map(|event| event.map(|event| ProcessStreamResponse { event: Some(event), ..Default::default() }))
}

/// Passes requests on to a process, until the caller sends no more or leaves.
async fn pass_on(
    guest: Guest,
    pid: u32,
    input: Input,
    mut requests: InboundStream<ProcessStreamRequest>,
    leave: mpsc::Sender<()>,
) {
    while let Some(Ok(message)) = requests.next().await {
        match message.to_owned_message().part {
            Some(Part::Input(bytes)) => input.write(bytes.into()).await,
            Some(Part::CloseInput(_)) => input.close().await,
            Some(Part::Resize(to)) => match size(&to) {
                Ok(size) => input.resize(size).await,
                Err(error) => tracing::debug!(%error, pid, "a size is left out"),
            },
            Some(Part::Signal(number)) => {
                // One that has ended meanwhile is told by its end.
                if let Err(error) = processes::signal(&guest, &Selector::Pid(pid), number).await {
                    tracing::debug!(%error, pid, number, "a signal did not reach its process");
                }
            }
            Some(Part::Leave(_)) => {
                // Nothing else is sent, so there is room.
                let _ = leave.try_send(());
                return;
            }
            Some(Part::Start(_) | Part::Attach(_)) | None => {}
        }
    }
}

/// What remains to be sent of a stream.
struct Outgoing {
    events: mpsc::Receiver<Event>,
    closed: mpsc::Receiver<String>,
    /// Told when the caller leaves.
    left: mpsc::Receiver<()>,
    ended: bool,
    /// Reserved memory is released with the stream.
    _memory: Held,
    _passing: AbortOnDropHandle<()>,
}

impl Outgoing {
    async fn next(&mut self) -> Option<Result<Told, ConnectError>> {
        if self.ended {
            return None;
        }
        let event = tokio::select! {
            event = self.events.recv() => event?,
            Some(message) = self.closed.recv() => {
                return Some(Ok(Told::InputClosed(InputClosed { message, ..Default::default() }.into())));
            }
            Some(()) = self.left.recv() => return None,
        };
        Some(match event {
            Event::Stdout(bytes) => Ok(Told::Stdout(bytes.into())),
            Event::Stderr(bytes) => Ok(Told::Stderr(bytes.into())),
            Event::Screen(bytes) => Ok(Told::Screen(bytes.into())),
            Event::Resized(size) => Ok(Told::Resized(TerminalSize::from(size).into())),
            Event::Lost(bytes) => Ok(Told::Lost(Lost { bytes, ..Default::default() }.into())),
            Event::End(end) => {
                self.ended = true;
                Ok(Told::End(
                    ToldEnd {
                        exit_code: end.exit_code,
                        timed_out: end.timed_out,
                        lost_bytes: end.lost_bytes,
                        signal: end.signal,
                        out_of_memory: end.out_of_memory,
                        victim: end.victim.into(),
                        ..Default::default()
                    }
                    .into(),
                ))
            }
            Event::Broken(error) => {
                self.ended = true;
                Err(error.into())
            }
        })
    }
}
