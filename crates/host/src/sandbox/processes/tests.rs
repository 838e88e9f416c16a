// SPDX-License-Identifier: Apache-2.0
//! Unit tests with an envd that says what the case wants.

use connectrpc::{Response, Router, ServiceStream, streaming_handler_fn};
use futures::{StreamExt as _, stream};
use wrenn_rpc::process::{
    __buffa::oneof::{process_event, process_event::data_event::Output},
    ProcessEvent, StartResponse,
    process_event::{DataEvent, EndEvent, Lost, StartEvent, Victim},
};

use super::{stream::PENDING, *};
use crate::{
    memory::{COMMAND, FIRST, Memory, STREAM, Share},
    sandbox::guest::Guest,
};

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

/// The end of a command that the kernel killed for want of memory.
fn killed() -> StartResponse {
    let victim = Victim { pid: 412, command: "py\nthon3".into(), ..Default::default() };
    let end = EndEvent {
        exit_code: -1,
        status: "signal: killed".into(),
        signal: Some(9),
        out_of_memory: true,
        victim: victim.into(),
        ..Default::default()
    };
    told(process_event::Event::End(end.into()))
}

/// Events after the start of a command; `cmd` selects them.
fn said(cmd: &str) -> ServiceStream<StartResponse> {
    let events: Vec<_> = match cmd {
        "hog" => vec![killed()],
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
        let started = told(process_event::Event::Start(StartEvent { pid: 1, ..Default::default() }.into()));
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
            Event::End(end) => format!("end {}", end.lost_bytes),
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
async fn what_was_killed_for_want_of_memory_is_told() -> anyhow::Result<()> {
    let guest = guest(MEMORY).await?;
    let finished = run(&guest, command("hog"), START, PIECE).await?;
    let victim = finished.victim.map(|victim| (victim.pid, victim.command));
    assert_eq!((finished.exit_code, finished.out_of_memory), (137, true));
    assert_eq!(victim, Some((412, "py?thon3".to_owned())));
    let mut running = stream(&guest, command("hog"), None).await?;
    let Some(Event::End(end)) = running.events.recv().await else { panic!("no end") };
    assert_eq!((end.signal, end.out_of_memory, end.victim.map(|victim| victim.pid)), (9, true, Some(412)));
    let fine = run(&guest, command("lossy"), START, PIECE).await?;
    assert!(!fine.out_of_memory && fine.victim.is_none());
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
        assert!(matches!(running.events.recv().await, Some(Event::Stdout(bytes)) if bytes.len() == PIECE));
    }
    Ok(())
}
