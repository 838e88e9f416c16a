//! Commands in a guest: started through envd, streamed, and killed with all their descendants when their
//! time is over or nobody listens any more.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use connectrpc::{ConnectError, ErrorCode as Wire};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};
use wrenn_api::ErrorCode;
use wrenn_rpc::process::{
    __buffa::oneof::{process_event, process_event::data_event::Output, process_selector},
    ProcessConfig, ProcessSelector, SendSignalRequest, Signal, StartRequest,
};

use super::{
    exit::exit_code,
    guest::{Guest, Processes},
};
use crate::error::AgentError;

/// Events on the way to a caller; envd buffers beyond that and the command then waits.
const PENDING: usize = 16;
/// How long envd may take to start a command.
const START: Duration = Duration::from_secs(30);
/// How long a killed command may take to end.
const KILL: Duration = Duration::from_secs(5);

/// A command.
#[derive(Debug, Clone, Default)]
pub(crate) struct Command {
    /// The program, found in `PATH`.
    pub(crate) cmd: String,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// Environment on top of the sandbox's.
    pub(crate) envs: HashMap<String, String>,
    /// Working directory; empty: the user's home.
    pub(crate) cwd: String,
    /// User; empty: the sandbox's default.
    pub(crate) user: String,
}

/// What a command did.
#[derive(Debug)]
pub(crate) enum Event {
    /// Bytes on standard output.
    Stdout(Bytes),
    /// Bytes on standard error.
    Stderr(Bytes),
    /// It ended.
    End {
        /// The exit status; 128 + N when signal N ended it.
        exit_code: i32,
        /// Whether it was killed because its time was over.
        timed_out: bool,
    },
    /// The connection to it was lost.
    Lost(AgentError),
}

/// A running command. Dropping it kills the command.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its process id in the guest.
    pub(crate) pid: u32,
    /// What it does, until `End` or `Lost`.
    pub(crate) events: mpsc::Receiver<Event>,
}

/// The whole of a command.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: Vec<u8>,
    /// The exit status; 128 + N when signal N ended it.
    pub(crate) exit_code: i32,
    /// Whether it was killed because its time was over.
    pub(crate) timed_out: bool,
    /// Whether output beyond the limit was dropped.
    pub(crate) truncated: bool,
}

fn refused(error: &ConnectError) -> AgentError {
    let text = error.message.clone().unwrap_or_default();
    let code = match error.code {
        // In envd's wire contract an unknown user is unauthenticated and an absent directory invalid. All else
        // that could be invalid was checked before.
        Wire::NotFound | Wire::Unauthenticated | Wire::InvalidArgument => ErrorCode::NotFound,
        Wire::PermissionDenied => ErrorCode::Forbidden,
        Wire::ResourceExhausted => ErrorCode::TooManyRequests,
        Wire::DeadlineExceeded => ErrorCode::Timeout,
        Wire::Unavailable => ErrorCode::HostUnavailable,
        _ => ErrorCode::AgentError,
    };
    AgentError::new(code, if text.is_empty() { error.to_string() } else { text })
}

/// Starts a command whose output is passed on; errors of the request come from here, before anything runs.
pub(crate) async fn stream(
    guest: &Guest,
    command: Command,
    limit: Option<Duration>,
) -> Result<Running, AgentError> {
    start(guest, &guest.apart(), command, limit).await
}

async fn start(
    guest: &Guest,
    processes: &Processes,
    command: Command,
    limit: Option<Duration>,
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
                return Err(ConnectError::internal("envd ended the stream before the command started"));
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
        started = tokio::time::timeout(START, starting) => started.map_err(|_| late())?,
        error = guest.ended() => return Err(error),
    };
    let (mut stream, pid) = started.map_err(|error| refused(&error))?;

    let (sender, events) = mpsc::channel(PENDING);
    let guest = guest.clone();
    tokio::spawn(async move {
        let mut deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut timed_out = false;
        loop {
            let overdue = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                message = stream.message() => message,
                () = sender.closed() => return,
                error = guest.ended() => {
                    let _ = sender.send(Event::Lost(error)).await;
                    return;
                }
                () = overdue => {
                    if timed_out {
                        // Killed, and still no end: give up; what came so far is with the caller.
                        let _ = sender.send(Event::End { exit_code: 137, timed_out }).await;
                        return;
                    }
                    timed_out = true;
                    deadline = Some(Instant::now() + KILL);
                    kill(&guest, pid).await;
                    continue;
                }
            };
            let event = match message {
                Ok(Some(message)) => message.to_owned_message().event.into_option().and_then(|e| e.event),
                Ok(None) => {
                    let lost =
                        ConnectError::unavailable("the command's stream ended without its exit status");
                    let _ = sender.send(Event::Lost(refused(&lost))).await;
                    return;
                }
                Err(error) => {
                    let _ = sender.send(Event::Lost(refused(&error))).await;
                    return;
                }
            };
            let (event, last) = match event {
                Some(process_event::Event::Data(data)) => match data.output {
                    Some(Output::Stdout(bytes) | Output::Pty(bytes)) => (Event::Stdout(bytes.into()), false),
                    Some(Output::Stderr(bytes)) => (Event::Stderr(bytes.into()), false),
                    None => continue,
                },
                Some(process_event::Event::End(end)) => {
                    (Event::End { exit_code: exit_code(end.exit_code, &end.status), timed_out }, true)
                }
                _ => continue,
            };
            if sender.send(event).await.is_err() || last {
                return;
            }
        }
    });
    Ok(Running { pid, events })
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
        tracing::debug!(%error, pid, "an overdue command could not be killed");
    }
}

/// One output of a command, as far as it is kept.
struct Kept<'a> {
    guest: &'a Guest,
    bytes: Vec<u8>,
    /// How much more may be kept; nothing after the first loss, so that what is there is the beginning.
    left: usize,
    room: Option<OwnedSemaphorePermit>,
}

impl<'a> Kept<'a> {
    fn new(guest: &'a Guest, max: usize) -> Self {
        Self { guest, bytes: Vec::new(), left: max, room: None }
    }

    /// Keeps what there is room for; whether that is all of it.
    fn take(&mut self, piece: &[u8]) -> bool {
        let kept = &piece[..piece.len().min(self.left)];
        let Some(room) = self.guest.keep(kept.len()) else {
            self.left = 0;
            return false;
        };
        match &mut self.room {
            Some(held) => held.merge(room),
            None => self.room = Some(room),
        }
        self.bytes.extend_from_slice(kept);
        self.left -= kept.len();
        kept.len() == piece.len()
    }
}

/// Runs a command to its end; at most `max` bytes of each output are kept, and of all commands of a guest together what
/// it has room for.
pub(crate) async fn run(
    guest: &Guest,
    command: Command,
    limit: Duration,
    max: usize,
) -> Result<Finished, AgentError> {
    let mut running = start(guest, &guest.processes, command, Some(limit)).await?;
    let (mut stdout, mut stderr) = (Kept::new(guest, max), Kept::new(guest, max));
    let mut whole = true;
    while let Some(event) = running.events.recv().await {
        match event {
            Event::Stdout(piece) => whole &= stdout.take(&piece),
            Event::Stderr(piece) => whole &= stderr.take(&piece),
            Event::End { exit_code, timed_out } => {
                let [stdout, stderr] = [stdout.bytes, stderr.bytes];
                return Ok(Finished { stdout, stderr, exit_code, timed_out, truncated: !whole });
            }
            Event::Lost(error) => return Err(error),
        }
    }
    Err(AgentError::new(ErrorCode::AgentError, "the command's end was not reported; it may still have run"))
}

#[cfg(test)]
mod tests {
    use connectrpc::{Response, Router, ServiceStream, streaming_handler_fn};
    use futures::{StreamExt as _, stream};
    use wrenn_rpc::process::{
        ProcessEvent, StartResponse,
        process_event::{DataEvent, EndEvent, StartEvent},
    };

    use super::{super::guest::KEPT, *};

    /// What a command writes at a time.
    const PIECE: usize = 16 << 10;
    /// Pieces of a command that ends: more than a connection has room for.
    const PIECES: usize = 512;
    /// Streams that nobody reads: more than one connection has room for.
    const UNREAD: usize = 8;

    fn told(event: process_event::Event) -> StartResponse {
        let event = ProcessEvent { event: Some(event), ..Default::default() };
        StartResponse { event: event.into(), ..Default::default() }
    }

    fn started() -> StartResponse {
        told(process_event::Event::Start(StartEvent { pid: 1, ..Default::default() }.into()))
    }

    /// A guest whose command `yes` writes for ever.
    async fn guest() -> anyhow::Result<Guest> {
        let start = streaming_handler_fn(async |_, request: StartRequest| {
            let endless = request.process.into_option().is_some_and(|process| process.cmd == "yes");
            let output = || {
                let output = Some(Output::Stdout(vec![b'y'; PIECE]));
                told(process_event::Event::Data(DataEvent { output, ..Default::default() }.into()))
            };
            let end = || {
                let end = EndEvent { exited: true, status: "exit status 0".into(), ..Default::default() };
                told(process_event::Event::End(end.into()))
            };
            let count = if endless { usize::MAX } else { PIECES };
            let events = stream::iter([started()])
                .chain(stream::repeat_with(output).take(count))
                .chain(stream::iter([end()]));
            let events: ServiceStream<StartResponse> = events.map(Ok).boxed();
            Ok(Response::new(events))
        });
        let envd = Router::new().route_server_stream::<_, StartRequest, StartResponse>(
            "process.Process",
            "Start",
            start,
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let guest = Guest::at(listener.local_addr()?.to_string(), "t")?;
        let router = axum::Router::new().fallback_service(envd.into_axum_service());
        tokio::spawn(axum::serve(listener, router).into_future());
        Ok(guest)
    }

    #[tokio::test]
    async fn what_other_commands_leave_no_room_for_is_cut_off() -> anyhow::Result<()> {
        let guest = guest().await?;
        let command = || Command { cmd: "seq".into(), ..Command::default() };
        let others = guest.keep(KEPT - 3 * PIECE);
        let finished = run(&guest, command(), START, PIECES * PIECE).await?;
        assert!(finished.truncated && finished.stdout.len() <= 3 * PIECE, "{}", finished.stdout.len());
        drop(others);
        assert!(!run(&guest, command(), START, PIECES * PIECE).await?.truncated);
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_that_nobody_reads_stops_no_other_command() -> anyhow::Result<()> {
        let guest = guest().await?;
        let command = |cmd: &str| Command { cmd: cmd.into(), ..Command::default() };
        let mut unread = Vec::new();
        for _ in 0..UNREAD {
            let running = stream(&guest, command("yes"), None).await?;
            // Its reader is waited for from here.
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
