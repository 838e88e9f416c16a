// SPDX-License-Identifier: Apache-2.0
//! Network configuration of the guest from the kernel command line: `wrenn.ip=ADDR/BITS wrenn.gw=ADDR
//! wrenn.dns=ADDR[,ADDR]`.

use std::{
    fs, io, mem,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd as _, RawFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{console::say, regular};

const INTERFACE: &str = "eth0";
const INTERFACE_WAIT: Duration = Duration::from_secs(5);

/// Network parameters of the command line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    address: Option<(Ipv4Addr, u32)>,
    gateway: Option<Ipv4Addr>,
    dns: Vec<Ipv4Addr>,
}

/// Errors of the network configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("{INTERFACE} did not appear within {} s; check the VMM's network device", INTERFACE_WAIT.as_secs())]
    NoInterface,
    #[error("cannot {0}: {1}")]
    Step(&'static str, io::Error),
}

fn parse(line: &str) -> Plan {
    let mut plan = Plan::default();
    for word in line.split_whitespace() {
        match word.split_once('=') {
            Some(("wrenn.ip", value)) => {
                plan.address = value.split_once('/').and_then(|(address, bits)| {
                    Some((address.parse().ok()?, bits.parse().ok().filter(|b| *b <= 32)?))
                });
            }
            Some(("wrenn.gw", value)) => plan.gateway = value.parse().ok(),
            Some(("wrenn.dns", value)) => {
                plan.dns = value.split(',').filter_map(|d| d.parse().ok()).collect();
            }
            _ => {}
        }
    }
    plan
}

/// Sets up loopback and the interface.
pub(crate) fn configure(line: &str) -> Result<(), NetworkError> {
    let plan = parse(line);
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|e| NetworkError::Step("open a socket", e))?;
    let fd = socket.as_raw_fd();
    bring_up(fd, "lo").map_err(|e| NetworkError::Step("bring up lo", e))?;
    let Some((address, bits)) = plan.address else { return Ok(()) };
    let deadline = Instant::now() + INTERFACE_WAIT;
    while !Path::new("/sys/class/net").join(INTERFACE).exists() {
        if Instant::now() > deadline {
            return Err(NetworkError::NoInterface);
        }
        thread::sleep(Duration::from_millis(2));
    }
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - bits).unwrap_or(0));
    set_address(fd, libc::SIOCSIFADDR as _, address).map_err(|e| NetworkError::Step("set the address", e))?;
    set_address(fd, libc::SIOCSIFNETMASK as _, mask).map_err(|e| NetworkError::Step("set the mask", e))?;
    bring_up(fd, INTERFACE).map_err(|e| NetworkError::Step("bring up eth0", e))?;
    if let Some(gateway) = plan.gateway {
        add_default_route(fd, gateway).map_err(|e| NetworkError::Step("add the default route", e))?;
    }
    if let Some(resolvers) = resolver_file(&plan.dns) {
        // Remove a dangling link, for example to a resolver that does not run here.
        if fs::metadata("/etc/resolv.conf").is_err() {
            let _ = fs::remove_file("/etc/resolv.conf");
        }
        // Templates may bring their own.
        let path = Path::new("/etc/resolv.conf");
        let empty = fs::metadata(path).map_or(0, |meta| meta.len()) == 0;
        if empty && let Err(error) = regular::write_text(path, &resolvers, 0o644) {
            say(&format!("{}: {error}", path.display()));
        }
    }
    Ok(())
}

/// Content of `/etc/resolv.conf`; with these options a dead first resolver costs one second, not five.
fn resolver_file(resolvers: &[Ipv4Addr]) -> Option<String> {
    let servers: String = resolvers.iter().map(|address| format!("nameserver {address}\n")).collect();
    (!servers.is_empty()).then(|| servers + "options timeout:1 attempts:3\n")
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: zero is valid for both, and they have the same size.
    unsafe {
        let mut v4: libc::sockaddr_in = mem::zeroed();
        v4.sin_family = libc::AF_INET as libc::sa_family_t;
        v4.sin_addr.s_addr = u32::from(address).to_be();
        mem::transmute(v4)
    }
}

fn call<T>(fd: RawFd, operation: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: each caller passes the structure that the operation takes.
    if unsafe { libc::ioctl(fd, operation as _, std::ptr::from_mut(argument)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn bring_up(fd: RawFd, name: &str) -> io::Result<()> {
    let mut request = request(name);
    call(fd, libc::SIOCGIFFLAGS as _, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has set the flags.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    call(fd, libc::SIOCSIFFLAGS as _, &mut request)
}

fn set_address(fd: RawFd, operation: libc::c_ulong, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(INTERFACE);
    request.ifr_ifru.ifru_addr = socket_address(address);
    call(fd, operation, &mut request)
}

fn add_default_route(fd: RawFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: zero is a valid rtentry.
    let mut route: libc::rtentry = unsafe { mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    match call(fd, libc::SIOCADDRT as _, &mut route) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_command_line() {
        let plan =
            parse("quiet wrenn.ip=169.254.0.21/30 wrenn.gw=169.254.0.22 wrenn.dns=1.1.1.1,8.8.8.8 x=y");
        assert_eq!(plan.address, Some((Ipv4Addr::new(169, 254, 0, 21), 30)));
        assert_eq!(plan.gateway, Some(Ipv4Addr::new(169, 254, 0, 22)));
        assert_eq!(plan.dns.len(), 2);
        let file = resolver_file(&plan.dns).unwrap();
        assert_eq!(file, "nameserver 1.1.1.1\nnameserver 8.8.8.8\noptions timeout:1 attempts:3\n");
        assert_eq!(resolver_file(&[]), None);
        assert_eq!(parse("wrenn.ip=1.2.3.4 wrenn.gw=x"), Plan::default());
        assert_eq!(parse("wrenn.ip=1.2.3.4/33"), Plan::default());
    }
}
