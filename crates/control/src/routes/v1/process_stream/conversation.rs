// SPDX-License-Identifier: Apache-2.0
//! Conversation over a process's WebSocket: input and output at once, until the process ends, the client leaves, its key is
//! revoked or the server stops.

use std::{pin::pin, time::Duration};

use axum::extract::ws::WebSocket;
use futures::StreamExt as _;
use tokio::time::Instant;
use wrenn_api::ErrorCode;

use super::{
    super::web_socket::{Gone, Sink, Source, pings, take_leave, transmit},
    Stream,
    frames::{Beginning, Dialect, Frames, LATER_MAX, Rendering, Said},
};
use crate::{
    admission::Held,
    error::Fault,
    sandboxes::{From, ProcessEvent, ProcessEvents, ProcessInput, Selector},
};

/// Time limit for the client's first frame.
const FIRST_FRAME: Duration = Duration::from_secs(10);

/// Time in which the host gets what a client sent before it left.
const LEAVE: Duration = Duration::from_secs(5);

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

impl std::convert::From<Gone> for Early {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
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
    let ended = match ended {
        Ok(()) => Ok(()),
        Err(Early::Gone) => return,
        Err(Early::Failed(error)) => Err(error),
    };
    let _ = take_leave(&mut sink, ended, |error| dialect.error(error)).await;
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
    let (mut input, mut events) = match subject {
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
    let mut revoked = pin!(services.access().ended(caller));
    let ended = tokio::select! {
        ended = give(&mut events, Rendering::new(dialect), sink) => ended,
        left = take(&mut input, &mut frames, source) => {
            left?;
            leave(&mut input, &mut events).await;
            Ok(())
        }
        () = &mut revoked => {
            Err(Fault::new(ErrorCode::Unauthorized, "the API key or session ended, or lost a permission, while the stream was open").into())
        }
        () = services.shutdown().cancelled() => {
            let message = "the control plane is restarting; the stream was ended";
            Err(Fault::new(ErrorCode::ServiceUnavailable, message).into())
        }
    };
    if matches!(ended, Err(Early::Gone)) {
        // What it sent before may not have been read yet.
        let _ = tokio::time::timeout(LEAVE, take(&mut input, &mut frames, source)).await;
        leave(&mut input, &mut events).await;
    }
    ended
}

/// Waits until the host has what the client sent before it left: what is typed last must not be lost.
async fn leave(input: &mut ProcessInput, events: &mut ProcessEvents) {
    let left = async {
        input.leave().await;
        events.left().await;
    };
    if tokio::time::timeout(LEAVE, left).await.is_err() {
        tracing::info!("a client has left before its input was taken");
    }
}

/// Sends the events of the process to the client, up to its end.
async fn give(events: &mut ProcessEvents, mut rendering: Rendering, sink: &mut Sink) -> Result<(), Early> {
    let mut ping = pings();
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
async fn take(input: &mut ProcessInput, frames: &mut Frames<'_>, source: &mut Source) -> Result<(), Fault> {
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
