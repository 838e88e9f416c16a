// SPDX-License-Identifier: Apache-2.0
//! WebSockets: frames are sent as long as the client reads them, and a socket is closed with its cause.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use futures::{
    SinkExt as _,
    stream::{SplitSink, SplitStream},
};
use serde::Serialize;
use tokio::time::{Instant, Interval, interval_at};
use wrenn_api::ErrorCode;

use crate::{
    error::Fault,
    stall::{By, moving},
};

/// Interval between WebSocket pings, so that proxies do not close an idle connection.
const PING: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(20) };

/// Times of pings. The first one is not at once: a client must not have to answer what is over before.
pub(super) fn pings() -> Interval {
    interval_at(Instant::now() + PING, PING)
}

pub(super) type Sink = SplitSink<WebSocket, Message>;
pub(super) type Source = SplitStream<WebSocket>;

/// The client is gone, or does not read.
pub(super) struct Gone;

/// Renders a frame of JSON.
pub(super) fn text(frame: &impl Serialize) -> Message {
    // Frames have no maps with keys that are no text, which is all that could fail.
    Message::Text(serde_json::to_string(frame).unwrap_or_default().into())
}

/// Sends a message.
pub(super) async fn transmit(sink: &mut Sink, message: Message) -> Result<(), Gone> {
    match moving(By::ClientTakes, sink.send(message)).await {
        Ok(sent) => sent.map_err(|_| Gone),
        Err(error) => {
            // The client would not read the error either.
            tracing::warn!(%error, "a stream whose output nobody reads is ended");
            Err(Gone)
        }
    }
}

/// Sends the error, if any, and closes the socket.
pub(super) async fn take_leave(
    sink: &mut Sink,
    ended: Result<(), Fault>,
    render: impl FnOnce(Fault) -> Message,
) -> Result<(), Gone> {
    let (code, reason) = match ended {
        Ok(()) => (close_code::NORMAL, "the stream has ended".to_owned()),
        Err(error) => {
            let (code, reason) = (close_code_of(error.code), error.code.to_string());
            transmit(sink, render(error)).await?;
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
