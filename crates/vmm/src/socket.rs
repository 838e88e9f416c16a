// SPDX-License-Identifier: Apache-2.0
//! Control sockets of VMMs.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::Path,
};

use tokio::net::UnixStream;

/// Connects through a handle of the socket, because its path may be longer than `sockaddr_un` allows. The VMM
/// controls the directory, so a symbolic link in the socket's place is not followed: it may lead to another
/// VMM's socket.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let socket = File::options().read(true).custom_flags(flags).open(path)?;
    if !socket.metadata()?.file_type().is_socket() {
        return Err(io::Error::other("it is no socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_link_to_another_socket_is_not_followed() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (own, other) = (own.path().join("control"), other.path().join("control"));
        let _listener = tokio::net::UnixListener::bind(&other).unwrap();
        connect(&other).await.unwrap();
        std::os::unix::fs::symlink(&other, &own).unwrap();
        assert!(connect(&own).await.is_err());
    }
}
