// SPDX-License-Identifier: Apache-2.0
//! Streams: output of a command or process as it comes, its end, and the kill of a command after its timeout or without its
//! reader.

use std::{fmt, time::Duration};

use bytes::Bytes;
use connectrpc::{
    ConnectError,
    client::{CallOptions, ClientTransport, ServerStream, SharedHttp2Connection},
};
use tokio::{sync::mpsc, time::Instant};
use tracing::Instrument as _;
use wrenn_api::ErrorCode;
use wrenn_rpc::{
    host::v1::Victim,
    process::{
        __buffa::{
            oneof::{process_event, process_event::data_event::Output},
            view::{ConnectResponseView, StartResponseView},
        },
        ConnectRequest, ProcessEvent, StartRequest,
        process_event::StartEvent,
    },
};

use super::{
    Command, From, KILL, START, Selector, Size,
    input::{Closed, Input},
    refused,
    screen::resize,
    signal,
};
use crate::{
    error::AgentError,
    memory::{Held, STREAM},
    sandbox::{
        exit,
        guest::{Guest, Processes},
    },
};

/// Number of buffered events, each at most as large as a message of envd; the process waits when they are full.
pub(super) const PENDING: usize = 2;
/// Number of the signal that kills.
const SIGKILL: u32 = 9;

/// Event of a process.
#[derive(Debug)]
pub(crate) enum Event {
    /// Standard output, or output of its terminal.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// Number of bytes of output that are missing here.
    Lost(u64),
    /// Piece of what its terminal showed where its output is read from.
    Screen(Bytes),
    /// Its terminal has another size.
    Resized(Size),
    /// It has ended.
    End(End),
    /// The connection to it broke.
    Broken(AgentError),
}

/// End of a process.
#[derive(Debug, Clone, Default)]
pub(crate) struct End {
    /// Exit status; 128 + N if signal N killed it.
    pub(crate) exit_code: i32,
    /// Whether it was killed by its timeout.
    pub(crate) timed_out: bool,
    /// Total number of missing bytes.
    pub(crate) lost_bytes: u64,
    /// Number of the signal that ended it; 0 if none did.
    pub(crate) signal: u32,
    /// Whether the kernel killed it or a descendant for want of memory.
    pub(crate) out_of_memory: bool,
    /// Which one, if that is known.
    pub(crate) victim: Option<Victim>,
}

/// A running process that is read. Dropping this kills it, if it was started so.
pub(crate) struct Running {
    /// Process id in the guest.
    pub(crate) pid: u32,
    /// Its tag; empty if it has none.
    pub(crate) tag: String,
    /// Number of bytes that it had written before those that are read.
    pub(crate) offset: u64,
    /// Size of its terminal, if it has one.
    pub(crate) terminal: Option<Size>,
    /// Events, until `End` or `Broken`.
    pub(crate) events: mpsc::Receiver<Event>,
    /// Memory reserved for its output.
    pub(crate) memory: Held,
    /// Connection to envd, for its input.
    processes: Processes,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("pid", &self.pid).field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Running {
    /// Opens its input. Says, too, why it takes no more.
    pub(crate) fn input(&self, guest: &Guest) -> (Input, Closed) {
        Input::new(guest, self.processes.clone(), self.pid, self.terminal.is_some())
    }
}

/// Starts a command whose output is streamed; invalid requests fail here, before it runs. Dropping the result kills it, unless it
/// has a terminal.
pub(crate) async fn stream(
    guest: &Guest,
    command: Command,
    limit: Option<Duration>,
) -> Result<Running, AgentError> {
    let memory = guest.share.memory().reserve(STREAM)?;
    begin(guest, &guest.dedicated_processes(), command, limit, memory).await
}

/// Attaches to a running process, or to one that has ended a while ago at most. It goes on without its reader. Its terminal gets
/// another size before, if one is given.
pub(crate) async fn attach(
    guest: &Guest,
    process: &Selector,
    from: From,
    size: Option<Size>,
) -> Result<Running, AgentError> {
    let memory = guest.share.memory().reserve(STREAM)?;
    let processes = guest.dedicated_processes();
    if let Some(size) = size {
        resize(guest, &processes, process, size).await?;
    }
    let attaching = async {
        let mut source = Source::attach(&processes, process.connect(from), guest.options("")).await?;
        let start = source.started().await?;
        Ok((source, start))
    };
    let (source, start) = in_time(guest, START, attaching).await?;
    if from == From::Screen && !start.pty {
        let message = format!("process {} has no terminal: attach to its output instead", start.pid);
        return Err(AgentError::new(ErrorCode::InvalidState, message));
    }
    Ok(follow(guest, processes, source, start, None, memory))
}

/// Starts a command over a connection; it is killed at its limit, and when its events are dropped.
pub(super) async fn begin(
    guest: &Guest,
    processes: &Processes,
    command: Command,
    limit: Option<Duration>,
    memory: Held,
) -> Result<Running, AgentError> {
    let mut options = guest.options(&command.user);
    if command.terminal.is_none() {
        options = options.with_header("x-wrenn-kill-on-disconnect", "1");
    }
    let starting = async {
        let mut source = Source::start(processes, command.request(), options).await?;
        let start = source.started().await?;
        Ok((source, start))
    };
    let (source, start) = in_time(guest, limit.map_or(START, |limit| limit.min(START)), starting).await?;
    Ok(follow(guest, processes.clone(), source, start, limit, memory))
}

/// Waits for envd's first answer.
pub(super) async fn in_time<T>(
    guest: &Guest,
    limit: Duration,
    answer: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, AgentError> {
    let late =
        || AgentError::new(ErrorCode::Timeout, "the sandbox did not start the command in time; try again");
    let answered = guest.meanwhile(tokio::time::timeout(limit, answer)).await?;
    answered.map_err(|_| late())?.map_err(|error| refused(&error))
}

/// Events of envd about one process.
pub(super) enum Source {
    Started(ServerStream<Body, StartResponseView<'static>>),
    Attached(ServerStream<Body, ConnectResponseView<'static>>),
}

type Body = <SharedHttp2Connection as ClientTransport>::ResponseBody;

impl Source {
    pub(super) async fn start(
        processes: &Processes,
        request: StartRequest,
        options: CallOptions,
    ) -> Result<Self, ConnectError> {
        processes.start_with_options(request, options).await.map(Self::Started)
    }

    async fn attach(
        processes: &Processes,
        request: ConnectRequest,
        options: CallOptions,
    ) -> Result<Self, ConnectError> {
        processes.connect_with_options(request, options).await.map(Self::Attached)
    }

    /// Waits for the first event.
    pub(super) async fn started(&mut self) -> Result<StartEvent, ConnectError> {
        loop {
            let Some(message) = self.next().await? else {
                return Err(ConnectError::internal("it ended the stream before the command started"));
            };
            if let Some(process_event::Event::Start(start)) = message.event {
                return Ok(*start);
            }
        }
    }

    /// Waits for the next event; `None` at the end of the stream. Cancel-safe.
    async fn next(&mut self) -> Result<Option<ProcessEvent>, ConnectError> {
        let event = match self {
            Self::Started(stream) => stream.message().await?.map(|message| message.to_owned_message().event),
            Self::Attached(stream) => stream.message().await?.map(|message| message.to_owned_message().event),
        };
        Ok(event.map(|event| event.into_option().unwrap_or_default()))
    }
}

/// Passes the events of a process on.
fn follow(
    guest: &Guest,
    processes: Processes,
    mut source: Source,
    start: StartEvent,
    limit: Option<Duration>,
    memory: Held,
) -> Running {
    let pid = start.pid;
    let (sender, events) = mpsc::channel(PENDING);
    let (guest, mut seen) = (guest.clone(), Seen::default());
    let passing_on = async move {
        let mut deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut pending: Option<Event> = None;
        loop {
            let overdue = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                room = sender.reserve(), if pending.is_some() => {
                    let (Ok(room), Some(event)) = (room, pending.take()) else { return };
                    let last = matches!(event, Event::End(_) | Event::Broken(_));
                    room.send(event);
                    if last {
                        return;
                    }
                    if seen.timed_out {
                        // The time was spent waiting for the reader, not for the guest.
                        deadline = Some(Instant::now() + KILL);
                    }
                }
                event = source.next(), if pending.is_none() => {
                    pending = match event {
                        Ok(Some(event)) => seen.event(event),
                        Ok(None) => {
                            let broken = ConnectError::internal("the command's stream ended without its exit status");
                            Some(Event::Broken(refused(&broken)))
                        }
                        Err(error) => Some(Event::Broken(refused(&error))),
                    };
                }
                () = sender.closed() => return,
                error = guest.ended() => {
                    let _ = sender.send(Event::Broken(error)).await;
                    return;
                }
                () = overdue => {
                    if seen.timed_out && pending.is_none() {
                        // Killed, and still no end: give up; the caller has the output up to here.
                        let _ = sender.send(Event::End(seen.end(128 + SIGKILL as i32, SIGKILL))).await;
                        return;
                    }
                    if !seen.timed_out {
                        seen.timed_out = true;
                        if let Err(error) = signal(&guest, &Selector::Pid(pid), SIGKILL).await {
                            tracing::debug!(%error, pid, "cannot kill a command after its timeout");
                        }
                    }
                    deadline = Some(Instant::now() + KILL);
                }
            }
        }
    };
    tokio::spawn(passing_on.in_current_span());
    let terminal = start.size.into_option().map(Size::from).filter(|_| start.pty);
    let tag = start.tag.unwrap_or_default();
    Running { pid, tag, offset: start.offset, terminal, events, memory, processes }
}

/// Progress of a running process.
#[derive(Debug, Default)]
struct Seen {
    timed_out: bool,
    lost: u64,
}

impl Seen {
    /// The end of a process that had nothing to do with the memory.
    fn end(&self, exit_code: i32, signal: u32) -> End {
        let (timed_out, lost_bytes) = (self.timed_out, self.lost);
        End { exit_code, timed_out, lost_bytes, signal, ..End::default() }
    }

    /// Converts an event of envd for the caller; `None` if callers do not need it.
    fn event(&mut self, event: ProcessEvent) -> Option<Event> {
        match event.event? {
            process_event::Event::Data(data) => match data.output? {
                Output::Stdout(bytes) | Output::Pty(bytes) => Some(Event::Stdout(bytes.into())),
                Output::Stderr(bytes) => Some(Event::Stderr(bytes.into())),
            },
            process_event::Event::Lost(lost) => {
                self.lost = self.lost.saturating_add(lost.bytes);
                Some(Event::Lost(lost.bytes))
            }
            process_event::Event::Screen(screen) => Some(Event::Screen(screen.data.into())),
            process_event::Event::Resized(resized) => {
                Some(Event::Resized(resized.size.into_option().unwrap_or_default().into()))
            }
            process_event::Event::End(end) => {
                self.lost = self.lost.max(end.lost_bytes);
                let (out_of_memory, victim) = (end.out_of_memory, exit::victim(&end));
                let told = self.end(exit::exit_code(&end), exit::signal(&end).unwrap_or_default());
                Some(Event::End(End { out_of_memory, victim, ..told }))
            }
            _ => None,
        }
    }
}
