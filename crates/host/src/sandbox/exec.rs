// SPDX-License-Identifier: Apache-2.0
//! Commands in a guest: start through envd, output streams, and the kill of a command with all its
//! descendants after its timeout, or if its reader is gone.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use connectrpc::{ConnectError, ErrorCode as Wire};
use tokio::{sync::mpsc, time::Instant};
use tracing::Instrument as _;
use wrenn_api::ErrorCode;
use wrenn_rpc::{
    Foreign,
    fault::{self, Of},
    process::{
        __buffa::oneof::{process_event, process_event::data_event::Output, process_selector},
        ProcessConfig, ProcessEvent, ProcessSelector, SendSignalRequest, Signal, StartRequest,
    },
};

use super::{
    exit::exit_code,
    guest::{Guest, Processes, shorten},
};
use crate::{
    error::AgentError,
    memory::{COMMAND, FIRST, Held, STREAM},
};

/// Number of buffered events, each at most as large as a message of envd; the command waits when they are
/// full.
const PENDING: usize = 2;
/// Time limit of envd for the start of a command.
const START: Duration = Duration::from_secs(30);
/// Time limit for the end of a killed command.
const KILL: Duration = Duration::from_secs(5);
/// Error codes that envd may return; other errors of a guest become `agent_error`.
const REFUSALS: [ErrorCode; 6] = [
    ErrorCode::ProgramNotFound,
    ErrorCode::ProgramNotExecutable,
    ErrorCode::UserNotFound,
    ErrorCode::DirectoryNotFound,
    ErrorCode::TooManyRequests,
    ErrorCode::InsufficientStorage,
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
}

/// Event of a command.
#[derive(Debug)]
pub(crate) enum Event {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// Number of bytes of output that are missing here.
    Lost(u64),
    /// The command has ended.
    End {
        /// Exit status; 128 + N if signal N killed it.
        exit_code: i32,
        /// Whether it was killed by its timeout.
        timed_out: bool,
        /// Total number of missing bytes.
        lost_bytes: u64,
    },
    /// The connection to the command broke.
    Broken(AgentError),
}

/// A running command. Dropping it kills the command.
#[derive(Debug)]
pub(crate) struct Running {
    /// Process id in the guest.
    pub(crate) pid: u32,
    /// Events, until `End` or `Broken`.
    pub(crate) events: mpsc::Receiver<Event>,
    /// Memory reserved for its output.
    pub(crate) memory: Held,
}

/// Result of a finished command.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: Vec<u8>,
    /// Exit status; 128 + N if signal N killed it.
    pub(crate) exit_code: i32,
    /// Whether it was killed by its timeout.
    pub(crate) timed_out: bool,
    /// Number of discarded bytes of both outputs.
    pub(crate) lost_bytes: u64,
    /// Memory reserved for the outputs until they are sent.
    pub(crate) memory: Held,
}

/// Starts a command whose output is streamed; invalid requests fail here, before it runs.
pub(crate) async fn stream(
    guest: &Guest,
    command: Command,
    limit: Option<Duration>,
) -> Result<Running, AgentError> {
    let memory = guest.share.memory().reserve(STREAM)?;
    start(guest, &guest.dedicated_processes(), command, limit, memory).await
}

async fn start(
    guest: &Guest,
    processes: &Processes,
    command: Command,
    limit: Option<Duration>,
    memory: Held,
) -> Result<Running, AgentError> {
    let config = ProcessConfig {
        cmd: command.cmd,
        args: command.args,
        envs: command.envs.into_iter().collect(),
        cwd: Some(command.cwd).filter(|cwd| !cwd.is_empty()),
        ..Default::default()
    };
    let request = StartRequest { process: config.into(), stdin: Some(false), ..Default::default() };
    let options = guest.options(&command.user).with_header("x-wrenn-kill-on-disconnect", "1");
    let starting = async {
        let mut stream = processes.start_with_options(request, options).await?;
        loop {
            let message = stream.message().await?;
            let Some(message) = message else {
                return Err(ConnectError::internal("it ended the stream before the command started"));
            };
            let event = message.to_owned_message().event.into_option().and_then(|event| event.event);
            if let Some(process_event::Event::Start(start)) = event {
                return Ok((stream, start.pid));
            }
        }
    };
    let late =
        || AgentError::new(ErrorCode::Timeout, "the sandbox did not start the command in time; try again");
    let started = tokio::select! {
        started = tokio::time::timeout(limit.map_or(START, |limit| limit.min(START)), starting) => started.map_err(|_| late())?,
        error = guest.ended() => return Err(error),
    };
    let (mut stream, pid) = started.map_err(|error| refused(&error))?;

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
                    let last = matches!(event, Event::End { .. } | Event::Broken(_));
                    room.send(event);
                    if last {
                        return;
                    }
                    if seen.timed_out {
                        // The time was spent waiting for the reader, not for the guest.
                        deadline = Some(Instant::now() + KILL);
                    }
                }
                message = stream.message(), if pending.is_none() => {
                    pending = match message {
                        Ok(Some(message)) => seen.event(message.to_owned_message().event.into_option()),
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
                        let _ = sender.send(seen.end(137)).await;
                        return;
                    }
                    if !seen.timed_out {
                        seen.timed_out = true;
                        kill(&guest, pid).await;
                    }
                    deadline = Some(Instant::now() + KILL);
                }
            }
        }
    };
    tokio::spawn(passing_on.in_current_span());
    Ok(Running { pid, events, memory })
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
        Wire::PermissionDenied => AgentError::new(ErrorCode::Forbidden, shorten(text)),
        Wire::Unavailable => {
            tracing::warn!(error = %Foreign(text), "a guest's envd does not respond");
            let message =
                "the sandbox does not answer: its guest is overloaded or hangs; try again, or delete it";
            AgentError::new(ErrorCode::HostUnavailable, message)
        }
        _ => {
            let message = format!(
                "the sandbox's own agent failed: {}; try again, or delete the sandbox",
                shorten(text)
            );
            AgentError::new(ErrorCode::AgentError, message)
        }
    }
}

/// Progress of a running command.
#[derive(Debug, Default)]
struct Seen {
    timed_out: bool,
    lost: u64,
}

impl Seen {
    fn end(&self, exit_code: i32) -> Event {
        Event::End { exit_code, timed_out: self.timed_out, lost_bytes: self.lost }
    }

    /// Converts an event of envd for the caller; `None` if callers do not need it.
    fn event(&mut self, event: Option<ProcessEvent>) -> Option<Event> {
        match event?.event? {
            process_event::Event::Data(data) => match data.output? {
                Output::Stdout(bytes) | Output::Pty(bytes) => Some(Event::Stdout(bytes.into())),
                Output::Stderr(bytes) => Some(Event::Stderr(bytes.into())),
            },
            process_event::Event::Lost(lost) => {
                self.lost = self.lost.saturating_add(lost.bytes);
                Some(Event::Lost(lost.bytes))
            }
            process_event::Event::End(end) => {
                self.lost = self.lost.max(end.lost_bytes);
                Some(self.end(exit_code(&end)))
            }
            _ => None,
        }
    }
}

async fn kill(guest: &Guest, pid: u32) {
    let selector =
        ProcessSelector { selector: Some(process_selector::Selector::Pid(pid)), ..Default::default() };
    let request = SendSignalRequest {
        process: selector.into(),
        signal: Signal::SIGNAL_SIGKILL.into(),
        ..Default::default()
    };
    let sent =
        tokio::time::timeout(KILL, guest.processes.send_signal_with_options(request, guest.options("")));
    if let Ok(Err(error)) = sent.await {
        tracing::debug!(%error, pid, "cannot kill a command after its timeout");
    }
}

/// Buffered start of both outputs of a command, up to the first loss.
struct Kept<'a> {
    guest: &'a Guest,
    memory: Held,
    /// Number of bytes already reserved but unused.
    granted: usize,
    lost: u64,
}

/// Buffered start of one output.
struct Beginning {
    bytes: Vec<u8>,
    /// Number of bytes up to the limit.
    left: usize,
}

impl Kept<'_> {
    /// Buffers a piece as far as memory can be reserved.
    fn take(&mut self, output: &mut Beginning, piece: &[u8]) {
        let wanted = piece.len().min(output.left);
        let more = wanted.saturating_sub(self.granted);
        let kept = if more == 0 || self.guest.share.grow(&mut self.memory, more) {
            self.granted = (self.granted + more) - wanted;
            wanted
        } else {
            0
        };
        output.bytes.extend_from_slice(&piece[..kept]);
        // Nothing is buffered after a loss: the buffer is the start of the output.
        output.left = if kept == piece.len() { output.left - kept } else { 0 };
        self.lost = self.lost.saturating_add((piece.len() - kept) as u64);
    }
}

/// Runs a command to its end; buffers at most `max` bytes of each output, and for all commands together as
/// much as memory allows.
pub(crate) async fn run(
    guest: &Guest,
    command: Command,
    limit: Duration,
    max: usize,
) -> Result<Finished, AgentError> {
    let reserved = guest.share.memory().reserve(COMMAND)?;
    let mut running = start(guest, &guest.processes, command, Some(limit), reserved).await?;
    let mut kept = Kept { guest, memory: running.memory, granted: FIRST, lost: 0 };
    let [mut stdout, mut stderr] = [(); 2].map(|()| Beginning { bytes: Vec::new(), left: max });
    while let Some(event) = running.events.recv().await {
        match event {
            Event::Stdout(piece) => kept.take(&mut stdout, &piece),
            Event::Stderr(piece) => kept.take(&mut stderr, &piece),
            Event::Lost(bytes) => {
                kept.lost = kept.lost.saturating_add(bytes);
                (stdout.left, stderr.left) = (0, 0);
            }
            Event::End { exit_code, timed_out, lost_bytes } => {
                return Ok(Finished {
                    stdout: stdout.bytes,
                    stderr: stderr.bytes,
                    exit_code,
                    timed_out,
                    lost_bytes: kept.lost.max(lost_bytes),
                    memory: kept.memory,
                });
            }
            Event::Broken(error) => return Err(error),
        }
    }
    Err(AgentError::new(ErrorCode::AgentError, "the command's end was not reported; it may still have run"))
}

#[cfg(test)]
mod tests {
    use connectrpc::{Response, Router, ServiceStream, streaming_handler_fn};
    use futures::{StreamExt as _, stream};
    use wrenn_rpc::process::{
        StartResponse,
        process_event::{DataEvent, EndEvent, Lost, StartEvent},
    };

    use super::*;
    use crate::memory::{Memory, Share};

    /// Size of each write of the command, in bytes.
    const PIECE: usize = 16 << 10;
    /// Number of pieces of a command that ends: more than a connection can buffer.
    const PIECES: usize = 512;
    /// Number of unread streams: more than one connection can buffer.
    const UNREAD: usize = 8;
    /// Memory for two large outputs, in bytes.
    const MEMORY: usize = 8 * PIECES * PIECE;
    /// Error text of a hostile guest, with a forged log line.
    const WORDS: &str = "message size 5 exceeds limit 4\n2026-01-01 INFO forged";

    fn told(event: process_event::Event) -> StartResponse {
        let event = ProcessEvent { event: Some(event), ..Default::default() };
        StartResponse { event: event.into(), ..Default::default() }
    }

    fn output(bytes: usize) -> StartResponse {
        let output = Some(Output::Stdout(vec![b'y'; bytes]));
        told(process_event::Event::Data(DataEvent { output, ..Default::default() }.into()))
    }

    fn lost(bytes: u64) -> StartResponse {
        told(process_event::Event::Lost(Lost { bytes, ..Default::default() }.into()))
    }

    fn end() -> StartResponse {
        let end = EndEvent { exited: true, status: "exit status 0".into(), ..Default::default() };
        told(process_event::Event::End(end.into()))
    }

    /// Events after the start of a command; `cmd` selects them.
    fn said(cmd: &str) -> ServiceStream<StartResponse> {
        let events: Vec<_> = match cmd {
            "lossy" => vec![output(1), lost(7), output(2), lost(5), output(4), end()],
            "oversized" => vec![output(1 << 20), end()],
            "hangs" => return stream::pending().boxed(),
            "yes" => return stream::repeat_with(|| Ok(output(PIECE))).boxed(),
            _ => {
                let output = stream::repeat_with(|| output(PIECE)).take(PIECES);
                return output.chain(stream::iter([end()])).map(Ok).boxed();
            }
        };
        stream::iter(events.into_iter().map(Ok)).boxed()
    }

    fn refusal(cmd: &str) -> Option<ConnectError> {
        let attach = |code: &str| fault::attach(ConnectError::not_found("no such"), code, Of::OF_HOST);
        match cmd {
            "absent" => Some(attach("program_not_found")),
            "unbelievable" => Some(attach("no_hosts_available")),
            "forged" => Some(ConnectError::not_found(WORDS)),
            "exhausted" => Some(ConnectError::resource_exhausted(WORDS)),
            "unavailable" => Some(ConnectError::unavailable(WORDS)),
            "talks" => Some(ConnectError::internal("x".repeat(1 << 20))),
            _ => None,
        }
    }

    /// A guest with this amount of memory for output.
    async fn guest(memory: usize) -> anyhow::Result<Guest> {
        let start = streaming_handler_fn(async |_, request: StartRequest| {
            let cmd = request.process.into_option().map(|process| process.cmd).unwrap_or_default();
            if let Some(error) = refusal(&cmd) {
                return Err(error);
            }
            let started =
                told(process_event::Event::Start(StartEvent { pid: 1, ..Default::default() }.into()));
            let first = stream::iter((cmd != "hangs").then_some(Ok(started)));
            Ok(Response::new(first.chain(said(&cmd)).boxed()))
        });
        let envd = Router::new().route_server_stream::<_, StartRequest, StartResponse>(
            "process.Process",
            "Start",
            start,
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let guest = Guest::at(listener.local_addr()?.to_string(), "t", Share::of(Memory::new(memory)))?;
        let router = axum::Router::new().fallback_service(envd.into_axum_service());
        tokio::spawn(axum::serve(listener, router).into_future());
        Ok(guest)
    }

    fn command(cmd: &str) -> Command {
        Command { cmd: cmd.into(), ..Command::default() }
    }

    #[tokio::test]
    async fn output_that_others_leave_no_memory_for_is_cut_off_and_counted() -> anyhow::Result<()> {
        let guest = guest(MEMORY).await?;
        let mut others = guest.share.memory().reserve(COMMAND)?;
        while guest.share.grow(&mut others, PIECE) {}
        let finished = run(&guest, command("seq"), START, PIECES * PIECE).await?;
        assert_eq!(finished.stdout.len(), FIRST, "the beginning is there at any rate");
        assert_eq!(finished.lost_bytes, (PIECES * PIECE - FIRST) as u64);
        drop((others, finished));
        assert_eq!(run(&guest, command("seq"), START, PIECES * PIECE).await?.lost_bytes, 0);
        let finished = run(&guest, command("seq"), START, PIECE / 2).await?;
        assert_eq!(
            (finished.stdout.len(), finished.lost_bytes),
            (PIECE / 2, (PIECES * PIECE - PIECE / 2) as u64)
        );
        Ok(())
    }

    #[tokio::test]
    async fn loss_is_told_where_it_happened_and_counted() -> anyhow::Result<()> {
        let guest = guest(MEMORY).await?;
        let mut running = stream(&guest, command("lossy"), None).await?;
        let mut seen = Vec::new();
        while let Some(event) = running.events.recv().await {
            seen.push(match event {
                Event::Stdout(bytes) => format!("{}", bytes.len()),
                Event::Lost(bytes) => format!("lost {bytes}"),
                Event::End { lost_bytes, .. } => format!("end {lost_bytes}"),
                other => format!("{other:?}"),
            });
        }
        assert_eq!(seen, ["1", "lost 7", "2", "lost 5", "4", "end 12"]);
        let finished = run(&guest, command("lossy"), START, PIECE).await?;
        assert_eq!(finished.stdout, b"y", "what is kept is the beginning");
        assert_eq!(finished.lost_bytes, 7 + 2 + 5 + 4);
        Ok(())
    }

    #[tokio::test]
    async fn a_guest_chooses_no_errors_but_refusals_of_commands() -> anyhow::Result<()> {
        let guest = guest(MEMORY).await?;
        for (cmd, code) in [
            ("absent", ErrorCode::ProgramNotFound),
            ("unbelievable", ErrorCode::NotFound),
            ("forged", ErrorCode::NotFound),
            ("exhausted", ErrorCode::AgentError),
            ("unavailable", ErrorCode::HostUnavailable),
            ("talks", ErrorCode::AgentError),
            ("oversized", ErrorCode::AgentError),
        ] {
            let error = run(&guest, command(cmd), START, PIECE).await.expect_err(cmd);
            assert_eq!(error.code, code, "{cmd}: {error}");
            assert!(error.message.len() < 1024, "{cmd}: {} bytes", error.message.len());
            assert!(!error.message.contains('\n'), "{cmd}: {error}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_guest_that_starts_nothing_is_waited_for_no_longer_than_asked() -> anyhow::Result<()> {
        let guest = guest(MEMORY).await?;
        let waited = run(&guest, command("hangs"), Duration::from_millis(50), PIECE);
        let error = tokio::time::timeout(START / 2, waited).await?.expect_err("never starts");
        assert_eq!(error.code, ErrorCode::Timeout);
        Ok(())
    }

    #[tokio::test]
    async fn streams_that_there_is_no_memory_for_are_refused() -> anyhow::Result<()> {
        let guest = guest(2 * STREAM as usize).await?;
        let running = stream(&guest, command("yes"), None).await?;
        let second = stream(&guest, command("yes"), None).await?;
        let error = stream(&guest, command("yes"), None).await.expect_err("no memory");
        assert_eq!(error.code, ErrorCode::TooManyRequests);
        drop((running, second));
        stream(&guest, command("yes"), None).await?;
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_that_nobody_reads_stops_no_other_command() -> anyhow::Result<()> {
        let guest = guest(MEMORY).await?;
        let mut unread = Vec::new();
        for _ in 0..UNREAD {
            let running = stream(&guest, command("yes"), None).await?;
            // From here on the command waits for its reader.
            while running.events.len() < PENDING {
                tokio::task::yield_now().await;
            }
            unread.push(running);
        }
        let finished = run(&guest, command("seq"), START, PIECES * PIECE).await?;
        assert_eq!((finished.exit_code, finished.stdout.len()), (0, PIECES * PIECE));
        for mut running in unread {
            assert!(
                matches!(running.events.recv().await, Some(Event::Stdout(bytes)) if bytes.len() == PIECE)
            );
        }
        Ok(())
    }
}
