// SPDX-License-Identifier: Apache-2.0
//! Ports of running sandboxes: who may use them, and connections to them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use connectrpc::client::BidiSendHalf;
use futures::{
    FutureExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, StreamExt as _},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;
use wrenn_api::{ErrorCode, HostId, SandboxId};
use wrenn_rpc::host::v1::{
    __buffa::oneof::{connect_request::Part, connect_response::Event},
    ConnectRequest,
    connect_request::Open,
};

use super::{Sandboxes, activity::Active, lookup::find, running::place_of};
use crate::{
    agents::AgentClient,
    by::By,
    caller::Caller,
    db::sandboxes::{PortAccess, port_access},
    error::Fault,
    state::App,
};

/// Port of envd in every sandbox.
pub(crate) const ENVD_PORT: u16 = 49983;
/// Time limit for a connection; the host has a shorter one.
const OPEN: Duration = Duration::from_secs(15);
/// Maximum size of a piece that is sent, in bytes.
const PIECE: usize = 16 << 10;

/// A sandbox that runs. As long as this exists, it is active.
pub(crate) struct Reached {
    app: App,
    id: SandboxId,
    host: HostId,
    address: String,
    _active: Option<Active>,
}

impl Sandboxes {
    /// Connects to a port of a sandbox, which is active as long as the connection exists.
    pub async fn connect(&self, caller: &Caller, id: SandboxId, port: u16) -> Result<PortPipe, Fault> {
        if port == ENVD_PORT {
            let message =
                format!("port {port} is that of the sandbox's agent: use the operations on the sandbox");
            return Err(Fault::new(ErrorCode::Forbidden, message));
        }
        let reached = Arc::new(self.reach_ports(caller.team().uuid(), id, By::caller(caller)).await?);
        let pipe = reached.open(port).await?;
        Ok(PortPipe { _reached: Some(reached), ..pipe })
    }

    /// Returns whether everybody may use the ports of a sandbox through the proxy, and the token of the others.
    pub async fn traffic_token(&self, caller: &Caller, id: SandboxId) -> Result<(bool, String), Fault> {
        let row = find(&self.app, caller.team().uuid(), id).await?;
        let access = self.port_access(row.public_id()).await?;
        let deleted = || Fault::new(ErrorCode::NotFound, format!("sandbox {id} was deleted"));
        let access = access.ok_or_else(deleted)?;
        Ok((access.public_ports, access.traffic_token))
    }

    /// Returns who may use the ports of a sandbox, of whatever team.
    pub(crate) async fn port_access(&self, id: SandboxId) -> Result<Option<PortAccess>, Fault> {
        Ok(port_access(&self.app.db, id.uuid()).await?)
    }

    /// Reaches a sandbox for connections to its ports. Resumes it if it is to be resumed by its use.
    pub(crate) async fn reach_ports(&self, team: Uuid, id: SandboxId, by: By) -> Result<Reached, Fault> {
        let (host, address, active) = place_of(&self.app, team, id, by).await?;
        Ok(Reached { app: self.app.clone(), id, host, address, _active: Some(active) })
    }
}

impl Reached {
    /// A sandbox on a host at this address.
    #[cfg(test)]
    pub(crate) fn at(app: &App, id: SandboxId, address: String) -> Self {
        Self { app: app.clone(), id, host: HostId::new(), address, _active: None }
    }

    /// Connects to a port. The connection ends when the sandbox is paused or ends.
    pub(crate) async fn open(&self, port: u16) -> Result<PortPipe, Fault> {
        let late = |_| {
            let message = format!("port {port} of sandbox {} was not connected in time; try again", self.id);
            Fault::new(ErrorCode::Timeout, message)
        };
        tokio::time::timeout(OPEN, self.connect(port)).await.map_err(late)?
    }

    async fn connect(&self, port: u16) -> Result<PortPipe, Fault> {
        let agent = self.app.agents.piped(self.host, &self.address);
        let mut stream = agent.connect().await?;
        let open = Open { sandbox_id: self.id.to_string(), port: u32::from(port), ..Default::default() };
        stream.send(request(Part::Open(open.into()))).await?;
        let (requests, mut events) = stream.into_split();
        let opened = events.message().await?.and_then(|message| message.to_owned_message().event);
        if !matches!(opened, Some(Event::Opened(_))) {
            return Err(Fault::new(ErrorCode::AgentError, "the sandbox's host did not open the connection"));
        }
        let incoming = stream::unfold(events, async |mut events| {
            let told = match events.message().await {
                Ok(Some(message)) => match message.to_owned_message().event {
                    Some(Event::Data(bytes)) => Ok(Incoming::Data(bytes.into())),
                    Some(Event::Closed(_)) => Ok(Incoming::Closed),
                    Some(Event::Opened(_)) | None => Ok(Incoming::Data(Bytes::new())),
                },
                Ok(None) => return None,
                Err(error) => Err(io::Error::new(io::ErrorKind::ConnectionReset, Fault::from(error))),
            };
            Some((told, events))
        });
        Ok(PortPipe {
            incoming: incoming.boxed(),
            rest: Bytes::new(),
            closed: false,
            outgoing: Outgoing::Idle(requests),
            _agent: agent,
            _reached: None,
        })
    }
}

fn request(part: Part) -> ConnectRequest {
    ConnectRequest { part: Some(part), ..Default::default() }
}

enum Incoming {
    Data(Bytes),
    /// The port sends no more.
    Closed,
}

type Requests = BidiSendHalf<ConnectRequest>;

enum Outgoing {
    Idle(Requests),
    Sending(BoxFuture<'static, Option<Requests>>),
    Closed,
}

/// Connection to a port of a sandbox: a pipe of bytes whose directions end by themselves.
pub struct PortPipe {
    /// Kept after its end, because the connection ends with it.
    incoming: BoxStream<'static, io::Result<Incoming>>,
    rest: Bytes,
    closed: bool,
    outgoing: Outgoing,
    /// Its connection is that of the pipe.
    _agent: AgentClient,
    /// As long as it is connected, the sandbox is active.
    _reached: Option<Arc<Reached>>,
}

impl PortPipe {
    /// Waits until all that was written is on its way.
    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Outgoing::Sending(sending) = &mut self.outgoing {
            let requests = ready!(sending.poll_unpin(context));
            // Why it failed is told to the reader.
            self.outgoing = requests.map_or(Outgoing::Closed, Outgoing::Idle);
        }
        match self.outgoing {
            Outgoing::Closed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for PortPipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.incoming.poll_next_unpin(context)).transpose()? {
                Some(Incoming::Data(bytes)) => self.rest = bytes,
                Some(Incoming::Closed) | None => self.closed = true,
            }
        }
        let size = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..size]);
        self.rest.advance(size);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortPipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(context))?;
        let Outgoing::Idle(mut requests) = std::mem::replace(&mut self.outgoing, Outgoing::Closed) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let piece = bytes[..bytes.len().min(PIECE)].to_vec();
        let size = piece.len();
        let sending =
            async move { requests.send(request(Part::Data(piece))).await.is_ok().then_some(requests) };
        self.outgoing = Outgoing::Sending(sending.boxed());
        // It begins now; the next write waits for its end.
        if let Poll::Ready(Err(error)) = self.poll_sent(context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(size))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if ready!(self.poll_sent(context)).is_ok() {
            // The end of the requests.
            self.outgoing = Outgoing::Closed;
        }
        Poll::Ready(Ok(()))
    }
}
