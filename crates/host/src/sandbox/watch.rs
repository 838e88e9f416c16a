// SPDX-License-Identifier: Apache-2.0
//! Changes in a directory of a guest, as its envd tells them. What envd says is input.

use std::time::Duration;

use connectrpc::{
    ConnectError, ErrorCode as Wire,
    client::{ClientTransport, ServerStream, SharedHttp2Connection},
};
use futures::{Stream, stream};
use wrenn_api::ErrorCode;
use wrenn_rpc::filesystem::{
    __buffa::{oneof::watch_dir_response::Event, view::WatchDirResponseView},
    WatchDirRequest, WatchDirResponse,
};

use super::{
    directories::refused,
    guest::{ANSWER, Guest, overdue, unreachable},
};
use crate::{
    error::AgentError,
    memory::{Held, STREAM},
};

/// Interval in seconds at which envd says that it still watches, and time without a word after which it does not.
const ALIVE: &str = "20";
const SILENT: Duration = Duration::from_secs(60);

type Body = <SharedHttp2Connection as ClientTransport>::ResponseBody;

/// Watches a directory. Refusals come before the first event, which is `start`.
pub(crate) async fn watch(
    guest: &Guest,
    path: String,
    user: &str,
    recursive: bool,
) -> Result<impl Stream<Item = Result<WatchDirResponse, ConnectError>> + Send + use<>, AgentError> {
    let memory = guest.share.memory().reserve(STREAM)?;
    let request = WatchDirRequest { path, recursive, ..Default::default() };
    let options = guest.options(user).with_header("keepalive-ping-interval", ALIVE);
    let files = guest.dedicated_files();
    let opening = async {
        let mut stream =
            files.watch_dir_with_options(request, options).await.map_err(|error| cause(&error))?;
        let first = next(&mut stream).await?;
        Ok::<_, AgentError>((stream, first))
    };
    let opened = guest.meanwhile(tokio::time::timeout(ANSWER, opening)).await?;
    let (stream, first) = opened.map_err(|_| overdue())??;
    let watching =
        Watching { guest: guest.clone(), stream, first: Some(first), ended: false, _memory: memory };
    Ok(stream::unfold(watching, async |mut watching| Some((watching.event().await?, watching))))
}

/// A directory that is being watched.
struct Watching {
    guest: Guest,
    stream: ServerStream<Body, WatchDirResponseView<'static>>,
    first: Option<WatchDirResponse>,
    ended: bool,
    /// Reserved memory is released with the stream.
    _memory: Held,
}

impl Watching {
    async fn event(&mut self) -> Option<Result<WatchDirResponse, ConnectError>> {
        if self.ended {
            return None;
        }
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        let event = tokio::time::timeout(SILENT, next(&mut self.stream));
        let event = match self.guest.meanwhile(event).await {
            Ok(Ok(event)) => event,
            Ok(Err(_)) => Err(unreachable(&"it says nothing of what it watches")),
            Err(error) => Err(error),
        };
        self.ended = event.is_err();
        Some(event.map_err(ConnectError::from))
    }
}

/// Waits for the next message that has an event.
async fn next(
    stream: &mut ServerStream<Body, WatchDirResponseView<'static>>,
) -> Result<WatchDirResponse, AgentError> {
    loop {
        let ended = || {
            AgentError::new(ErrorCode::AgentError, "the sandbox's own agent stopped watching; watch again")
        };
        let message = stream.message().await.map_err(|error| cause(&error))?.ok_or_else(ended)?;
        let message = message.to_owned_message();
        let known = match &message.event {
            Some(Event::Filesystem(change)) => !change.name.contains('\0'),
            Some(_) => true,
            None => false,
        };
        if known {
            return Ok(message);
        }
    }
}

/// Converts an error of envd.
fn cause(error: &ConnectError) -> AgentError {
    match error.code {
        // Its own limits, which are not those of the disk.
        Wire::ResourceExhausted => AgentError { code: ErrorCode::TooManyRequests, ..refused(error) },
        _ => refused(error),
    }
}
