// SPDX-License-Identifier: Apache-2.0
//! WebSockets of the API: a connection that is upgraded, and kept alive while it is silent.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use reqwest::{Method, Upgraded};
use tokio::{sync::Mutex, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error as WsError, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use crate::{
    Client, Error, Result,
    transport::{REQUEST_LIMIT, causes},
};

/// Time without frames after which a ping is sent; a command may be silent, the server may not.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Maximum number of unanswered pings in a row.
const PINGS_MAX: u32 = 4;
/// Maximum size of a frame in bytes: the largest message of an agent, 4 MiB, with every byte escaped.
const FRAME_MAX: usize = 25 << 20;
/// Time limit for sending a frame.
const SEND_LIMIT: Duration = Duration::from_secs(30);

type Socket = WebSocketStream<Upgraded>;

/// Sender of frames; clones send over the same connection.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    sink: Arc<Mutex<SplitSink<Socket, Message>>>,
    /// Whether the server chose the subprotocol.
    pub(crate) chosen: bool,
    purpose: Purpose,
}

/// What a WebSocket is for, and what becomes of that without it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose {
    /// Subprotocol that is offered.
    pub(crate) subprotocol: Option<&'static str>,
    /// What becomes of it if the server goes away.
    pub(crate) broken: &'static str,
    /// What becomes of it if the server is silent.
    pub(crate) silent: &'static str,
}

/// Receiver of frames.
#[derive(Debug)]
pub(crate) struct Receiver {
    source: SplitStream<Socket>,
    sender: Sender,
}

/// A frame with content.
#[derive(Debug)]
pub(crate) enum Received {
    Text(Bytes),
    Binary(Bytes),
}

impl Client {
    /// Opens a WebSocket, and offers its subprotocol.
    pub(crate) async fn web_socket(&self, path: &str, purpose: Purpose) -> Result<(Sender, Receiver)> {
        let key = generate_key();
        let mut call = self
            .request(Method::GET, path)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", &key);
        if let Some(subprotocol) = purpose.subprotocol {
            call = call.header("Sec-WebSocket-Protocol", subprotocol);
        }
        let response = timeout(REQUEST_LIMIT, self.send(call)).await.map_err(|_| purpose.silent())??;
        let accept = response.headers().get("sec-websocket-accept").map(|value| value.as_bytes().to_vec());
        if response.status() != 101 || accept.as_deref() != Some(derive_accept_key(key.as_bytes()).as_bytes())
        {
            return Err(Error::Protocol("it did not switch to a WebSocket".to_owned()));
        }
        let protocol = response.headers().get("sec-websocket-protocol");
        let chosen = protocol.and_then(|chosen| chosen.to_str().ok());
        let chosen = chosen.is_some() && chosen == purpose.subprotocol;
        let upgraded = response.upgrade().await.map_err(|error| Error::Protocol(causes(&error)))?;
        let limits =
            WebSocketConfig::default().max_message_size(Some(FRAME_MAX)).max_frame_size(Some(FRAME_MAX));
        let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(limits)).await;
        let (sink, source) = socket.split();
        let sender = Sender { sink: Arc::new(Mutex::new(sink)), chosen, purpose };
        Ok((sender.clone(), Receiver { source, sender }))
    }
}

impl Sender {
    /// Sends a frame that the server takes at once.
    pub(crate) async fn send(&self, message: Message) -> Result<()> {
        timeout(SEND_LIMIT, self.send_slowly(message)).await.map_err(|_| self.purpose.silent())?
    }

    /// Sends a frame, however long the server takes: that it is away is seen by the reader.
    pub(crate) async fn send_slowly(&self, message: Message) -> Result<()> {
        self.sink.lock().await.send(message).await.map_err(|error| self.purpose.broken(Some(&error)))
    }
}

impl Receiver {
    /// Returns the next frame with content. Sends pings while there is none.
    pub(crate) async fn next(&mut self) -> Result<Received> {
        let (mut pings, purpose) = (0, self.sender.purpose);
        loop {
            let Ok(received) = timeout(PING_EVERY, self.source.next()).await else {
                pings += 1;
                if pings > PINGS_MAX {
                    return Err(purpose.silent());
                }
                // While input waits for the process, the server's own pings show that it is there.
                if let Ok(mut sink) = self.sender.sink.try_lock() {
                    let sent = timeout(SEND_LIMIT, sink.send(Message::Ping(Bytes::new()))).await;
                    sent.map_err(|_| purpose.silent())?.map_err(|error| purpose.broken(Some(&error)))?;
                }
                continue;
            };
            pings = 0;
            match received {
                Some(Ok(Message::Text(text))) => return Ok(Received::Text(text.into())),
                Some(Ok(Message::Binary(bytes))) => return Ok(Received::Binary(bytes)),
                Some(Ok(Message::Close(_))) | None => return Err(purpose.broken(None)),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(purpose.broken(Some(&error))),
            }
        }
    }
}

impl Purpose {
    fn silent(self) -> Error {
        Error::Lost(format!("the API server does not answer any more; {}", self.silent))
    }

    fn broken(self, cause: Option<&WsError>) -> Error {
        let what = format!("the API server went away; {}", self.broken);
        match cause {
            Some(WsError::Capacity(error)) => Error::Protocol(format!("a frame of the stream: {error}")),
            Some(WsError::Io(error)) => Error::Lost(format!("{what} ({error})")),
            _ => Error::Lost(what),
        }
    }
}
