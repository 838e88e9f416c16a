// SPDX-License-Identifier: Apache-2.0
//! Pipes and terminals of processes, read without blocking.

use std::{io, os::fd::OwnedFd};

use bytes::Bytes;
use rustix::fs::OFlags;
use tokio::io::{Interest, unix::AsyncFd};

use super::output::CHUNK;

/// Makes a descriptor non-blocking.
pub(super) fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// Reads the next output; empty at end of file.
pub(super) async fn read(fd: &AsyncFd<OwnedFd>) -> io::Result<Bytes> {
    fd.async_io(Interest::READABLE, read_now).await
}

/// Reads what is available. Allocates only when there is data, so that an idle process costs nothing.
pub(super) fn read_now(fd: &OwnedFd) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(CHUNK);
    rustix::io::read(fd, rustix::buffer::spare_capacity(&mut piece))?;
    piece.shrink_to_fit();
    Ok(piece.into())
}
