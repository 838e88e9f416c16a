// SPDX-License-Identifier: Apache-2.0
//! Messages of the calls that connect to ports: bytes are passed on in both directions, until both have ended or the sandbox
//! does.

use bytes::BytesMut;
use connectrpc::{ConnectError, InboundStream};
use futures::{Stream, StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;
use wrenn_rpc::host::v1::{
    __buffa::oneof::{connect_request::Part, connect_response::Event},
    ConnectRequest, ConnectResponse,
    connect_response::{Closed, Opened},
};

use crate::{
    memory::Held,
    sandbox::{guest::Guest, port::Pipe},
};

/// Bytes of memory reserved for a connection: pieces in both directions that are received, decoded and encoded.
pub(crate) const PIPE: u32 = 96 << 10;
/// Maximum size of a piece, in bytes.
const PIECE: usize = 16 << 10;

/// Responses of a connection while its requests are passed on to the port.
pub(crate) fn exchange(
    guest: Guest,
    pipe: Box<dyn Pipe>,
    requests: InboundStream<ConnectRequest>,
    memory: Held,
) -> impl Stream<Item = Result<ConnectResponse, ConnectError>> + Send {
    let (source, sink) = tokio::io::split(pipe);
    let sending = AbortOnDropHandle::new(tokio::spawn(send(sink, requests).in_current_span()));
    let state = Incoming { guest, source, closed: false, sending, _memory: memory };
    let rest = stream::unfold(Some(state), async |state| state?.next().await);
    let events = stream::once(async { Ok(Event::Opened(Opened::default().into())) }).chain(rest);
    events.map(|event| event.map(|event| ConnectResponse { event: Some(event), ..Default::default() }))
}

/// Sends the caller's bytes to the port, and their end.
async fn send(mut sink: WriteHalf<Box<dyn Pipe>>, mut requests: InboundStream<ConnectRequest>) {
    while let Some(message) = requests.next().await {
        // Without its end, the caller is gone; the connection is dropped with the responses.
        let Ok(message) = message else { return };
        let Some(Part::Data(bytes)) = message.to_owned_message().part else { continue };
        if sink.write_all(&bytes).await.is_err() {
            return;
        }
        // TLS and the like would keep it.
        let _ = sink.flush().await;
    }
    let _ = sink.shutdown().await;
}

/// What comes from the port.
struct Incoming {
    guest: Guest,
    source: ReadHalf<Box<dyn Pipe>>,
    closed: bool,
    sending: AbortOnDropHandle<()>,
    /// Reserved memory is released with the connection.
    _memory: Held,
}

impl Incoming {
    /// Returns the next event, and what follows it; `None` when both directions have ended.
    async fn next(mut self) -> Option<(Result<Event, ConnectError>, Option<Self>)> {
        if self.closed {
            return tokio::select! {
                _ = &mut self.sending => None,
                error = self.guest.ended() => Some((Err(error.into()), None)),
            };
        }
        let mut piece = BytesMut::with_capacity(PIECE);
        let read = tokio::select! {
            read = self.source.read_buf(&mut piece) => read,
            error = self.guest.ended() => return Some((Err(error.into()), None)),
        };
        match read {
            Ok(0) => {
                self.closed = true;
                Some((Ok(Event::Closed(Closed::default().into())), Some(self)))
            }
            Ok(_) => Some((Ok(Event::Data(piece.into())), Some(self))),
            Err(cause) => {
                tracing::debug!(%cause, "a connection to a port broke");
                let message = "the connection to the sandbox's port broke";
                Some((Err(ConnectError::aborted(message)), None))
            }
        }
    }
}
