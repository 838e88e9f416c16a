// SPDX-License-Identifier: Apache-2.0
//! TCP connections from before a pause. Their other ends are gone or know nothing of this guest any more, and would
//! never say so: programs that wait for them would wait for ever.

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, RawFd},
    path::Path,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrAny, SocketType, connect_unspec, getpeername, getsockname, sockopt},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

/// Maximum number of descriptors of a process that are looked at.
const DESCRIPTORS: usize = 1 << 16;

/// Resets the connections of all processes that lead out of the guest, after a pause, except that of envd with the host
/// that has resumed it. Their programs get `ECONNRESET`. Does nothing unless this is PID 1, because the machine would
/// not be a sandbox.
pub(crate) fn all_but(host: SocketAddr) -> io::Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    for fd in sockets(Path::new("/proc/self/fd"))? {
        // SAFETY: another thread may close it meanwhile, and reuse its number only for a connection of the new
        // host, which would then connect again.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) };
        if peer(socket) != Some(host) {
            reset(socket);
        }
    }
    let kernels = kernel_threads();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let pid = pid.filter(|pid| *pid > 1 && !kernels.contains(pid));
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = of_process(pid, &entry.path().join("fd"));
        }
    }
    Ok(())
}

/// Lists the kernel's threads, which have no descriptors. They are most of the processes of a small guest.
fn kernel_threads() -> BTreeSet<i32> {
    let children = fs::read_to_string("/proc/2/task/2/children").unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn of_process(pid: Pid, descriptors: &Path) -> io::Result<()> {
    let sockets = sockets(descriptors)?;
    if sockets.is_empty() {
        return Ok(());
    }
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    for fd in sockets {
        match pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()) {
            Ok(socket) => reset(socket.as_fd()),
            Err(Errno::BADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Lists the descriptors of a process's sockets.
fn sockets(descriptors: &Path) -> io::Result<Vec<RawFd>> {
    let entries = fs::read_dir(descriptors)?.take(DESCRIPTORS).flatten();
    let found = entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        if target.to_str()?.starts_with("socket:[") { entry.file_name().to_str()?.parse().ok() } else { None }
    });
    Ok(found.collect())
}

/// Resets a socket if it is a TCP connection that leads out of the guest.
fn reset(socket: BorrowedFd<'_>) {
    let is_tcp = matches!(
        (sockopt::socket_domain(socket), sockopt::socket_type(socket)),
        (Ok(AddressFamily::INET | AddressFamily::INET6), Ok(SocketType::STREAM))
    );
    if is_tcp && leads_out(socket) {
        // Disconnects it at once, with a reset for the other end.
        let _ = connect_unspec(socket);
    }
}

fn leads_out(socket: BorrowedFd<'_>) -> bool {
    let (Some(peer), Ok(own)) = (peer(socket), getsockname(socket)) else { return false };
    !peer.ip().is_loopback() && ip_address(own).is_none_or(|own| own.ip() != peer.ip())
}

/// Address of the other end of a connection by IP.
fn peer(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    ip_address(getpeername(socket).ok()??)
}

fn ip_address(address: SocketAddrAny) -> Option<SocketAddr> {
    let address = SocketAddr::try_from(address).ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd as _,
    };

    use super::*;

    #[test]
    fn only_connections_that_lead_out_are_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!leads_out(listener.as_fd()) && !leads_out(stream.as_fd()));
        let own = sockets(Path::new("/proc/self/fd")).unwrap();
        assert!(own.contains(&stream.as_raw_fd()));
        assert_eq!(peer(stream.as_fd()), listener.local_addr().ok());
        reset(stream.as_fd());
        assert!(stream.peer_addr().is_ok(), "it is the guest's own");
        // As `reset` does it with others.
        connect_unspec(&stream).unwrap();
        assert!(stream.peer_addr().is_err());
    }
}
