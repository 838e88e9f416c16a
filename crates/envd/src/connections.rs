// SPDX-License-Identifier: Apache-2.0
//! Accepts a limited number of connections. Those of the guest's own programs have a separate limit, so that
//! they cannot use up the host's.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Maximum number of connections from outside, which is the host.
const OUTER: usize = 2048;
/// Maximum number of connections from the guest itself.
const INNER: usize = 256;
/// Pause after a failed accept, usually for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Addresses of a request's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// The other end.
    pub(crate) remote: SocketAddr,
    /// Address of this machine by which it came.
    pub(crate) own: IpAddr,
}

impl Connected<IncomingStream<'_, Connections>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Connections>) -> Self {
        let own = stream.io().stream.local_addr();
        Self { remote: *stream.remote_addr(), own: own.map_or(Ipv4Addr::LOCALHOST.into(), |own| own.ip()) }
    }
}

/// Listener with connection limits.
pub(crate) struct Connections {
    listener: TcpListener,
    outer: Arc<Semaphore>,
    inner: Arc<Semaphore>,
}

impl Connections {
    pub(crate) fn new(listener: TcpListener) -> Self {
        Self { listener, outer: Arc::new(Semaphore::new(OUTER)), inner: Arc::new(Semaphore::new(INNER)) }
    }

    /// Takes a connection slot; `None` if all slots of its kind are in use.
    fn place(&self, stream: &TcpStream, peer: SocketAddr) -> Option<OwnedSemaphorePermit> {
        let own = stream.local_addr().is_ok_and(|address| address.ip() == peer.ip());
        let places = if own || peer.ip().is_loopback() { &self.inner } else { &self.outer };
        Arc::clone(places).try_acquire_owned().ok()
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    // Without a slot the connection is closed at once.
                    let Some(place) = self.place(&stream, peer) else { continue };
                    let _ = stream.set_nodelay(true);
                    // A peer that vanished must not keep its slot, or a process, forever.
                    let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
                    return (Connection { stream, _place: place }, peer);
                }
                Err(error) => {
                    crate::log::line(None, format_args!("cannot accept a connection: {error}"));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Connection with its slot.
pub(crate) struct Connection {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
