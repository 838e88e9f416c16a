// SPDX-License-Identifier: Apache-2.0
//! Conversation over a process's WebSocket: input and output at once, until the process ends, the client leaves, its key is
//! revoked or the server stops.

use std::{pin::pin, time::Duration};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use futures::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use tokio::time::Instant;
use wrenn_api::ErrorCode;

use super::{
    Stream,
    frames::{Beginning, Dialect, Frames, LATER_MAX, Rendering, Said},
};
use crate::{
    admission::Held,
    error::Fault,
    sandboxes::{From, ProcessEvent, ProcessEvents, ProcessInput, Selector},
    stall::{By, moving},
};

/// Time limit for the client's first frame.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// Interval between WebSocket pings, so that proxies do not close an idle connection.
const PING: Duration = Duration::from_secs(20);

type Sink = SplitSink<WebSocket, Message>;
type Source = SplitStream<WebSocket>;

/// What a stream is about.
pub(super) enum Subject {
    /// What the client names in its first frame.
    Named,
    /// A process, and where its output is read from.
    Process(Selector, From),
}

/// Cause of an early end.
enum Early {
    /// The client is gone, or does not read.
    Gone,
    /// An error for the client.
    Failed(Fault),
}

impl std::convert::From<Fault> for Early {
    fn from(error: Fault) -> Self {
        Self::Failed(error)
    }
}

/// Holds the conversation, and closes the socket with its cause. `memory` is for the first frame.
pub(super) async fn hold(
    stream: &Stream,
    subject: Subject,
    dialect: Dialect,
    memory: Option<Held>,
    socket: WebSocket,
) {
    let (mut sink, mut source) = socket.split();
    let ended = converse(stream, subject, dialect, memory, &mut sink, &mut source).await;
    let _ = take_leave(&mut sink, dialect, ended).await;
}

/// Sends the error, if any, and closes the socket.
async fn take_leave(sink: &mut Sink, dialect: Dialect, ended: Result<(), Early>) -> Result<(), Early> {
    let (code, reason) = match ended {
        Ok(()) => (close_code::NORMAL, "the stream has ended".to_owned()),
        Err(Early::Gone) => return Err(Early::Gone),
        Err(Early::Failed(error)) => {
            let (code, reason) = (close_code_of(error.code), error.code.to_string());
            transmit(sink, dialect.error(error)).await?;
            (code, reason)
        }
    };
    transmit(sink, Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await
}

/// Code of RFC 6455 with which a socket is closed after an error.
const fn close_code_of(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::ServiceUnavailable => close_code::RESTART,
        ErrorCode::TooManyRequests => close_code::AGAIN,
        ErrorCode::Unauthorized | ErrorCode::InvalidRequest => close_code::POLICY,
        _ => close_code::ERROR,
    }
}

async fn transmit(sink: &mut Sink, message: Message) -> Result<(), Early> {
    match moving(By::ClientTakes, sink.send(message)).await {
        Ok(sent) => sent.map_err(|_| Early::Gone),
        Err(error) => {
            // The client would not read the error either.
            tracing::warn!(%error, "a stream whose output nobody reads is ended");
            Err(Early::Gone)
        }
    }
}

async fn first_frame(
    source: &mut Source,
    frames: &mut Frames<'_>,
    expected: &str,
) -> Result<Option<Beginning>, Fault> {
    let deadline = Instant::now() + FIRST_FRAME;
    loop {
        let late = |_| Fault::invalid(format!("the first frame did not come in time: {expected}"));
        let message = tokio::time::timeout_at(deadline, source.next()).await.map_err(late)?;
        match frames.parse(message)? {
            Said::Nothing => {}
            Said::Left => return Ok(None),
            Said::Begin(beginning) => return Ok(Some(*beginning)),
            _ => return Err(Fault::invalid(format!("nothing was started yet: {expected}"))),
        }
    }
}

async fn converse(
    stream: &Stream,
    subject: Subject,
    dialect: Dialect,
    memory: Option<Held>,
    sink: &mut Sink,
    source: &mut Source,
) -> Result<(), Early> {
    let Stream { services, caller, sandbox, connection } = stream;
    let mut frames = Frames::new(connection, dialect);
    let (input, events) = match subject {
        Subject::Named => {
            let named = first_frame(source, &mut frames, dialect.expected()).await?;
            connection.limit_reads(LATER_MAX as u64);
            drop(memory);
            match named {
                Some(Beginning::Command(start)) => sandbox.start(start).await?,
                Some(Beginning::Terminal(start)) => sandbox.start_terminal(start).await?,
                Some(Beginning::Connect(connect)) => sandbox.connect_terminal(connect).await?,
                None => return Ok(()),
            }
        }
        Subject::Process(process, from) => {
            connection.limit_reads(LATER_MAX as u64);
            sandbox.connect(process, from).await?
        }
    };
    let mut revoked = pin!(services.keys().revoked(caller));
    tokio::select! {
        ended = give(events, Rendering::new(dialect), sink) => ended,
        left = take(input, frames, source) => Ok(left?),
        () = &mut revoked => {
            Err(Fault::new(ErrorCode::Unauthorized, "the API key was revoked while the stream was open").into())
        }
        () = services.shutdown().cancelled() => {
            let message = "the control plane is restarting; the stream was ended";
            Err(Fault::new(ErrorCode::ServiceUnavailable, message).into())
        }
    }
}

/// Sends the events of the process to the client, up to its end.
async fn give(mut events: ProcessEvents, mut rendering: Rendering, sink: &mut Sink) -> Result<(), Early> {
    let mut ping = tokio::time::interval(PING);
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            _ = ping.tick() => {
                for message in rendering.ping() {
                    transmit(sink, message).await?;
                }
                continue;
            }
        };
        let last = matches!(event, ProcessEvent::Ended(_));
        for message in rendering.render(event) {
            transmit(sink, message).await?;
        }
        if last {
            return Ok(());
        }
    }
}

/// Passes the client's frames on to the process, until it leaves.
async fn take(mut input: ProcessInput, mut frames: Frames<'_>, source: &mut Source) -> Result<(), Fault> {
    loop {
        match frames.parse(source.next().await)? {
            Said::Nothing => {}
            Said::Left => return Ok(()),
            Said::Input(bytes) => input.write(bytes).await,
            Said::CloseInput => input.close().await,
            Said::Signal(signal) => input.signal(signal).await,
            Said::Resize(size) => input.resize(size).await,
            Said::Begin(_) => {
                let message =
                    "a program runs already in this stream: open another stream for another program";
                return Err(Fault::invalid(message));
            }
        }
    }
}
