// SPDX-License-Identifier: Apache-2.0
//! Network namespaces, each owned by a thread, and simulated networks around the host in one of them.

use std::{
    fs::File,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{PATIENCE, run, wait_until_up};

type Job = Box<dyn FnOnce() + Send>;

/// Thread in a network namespace.
pub struct Space {
    thread: i32,
    jobs: mpsc::Sender<Job>,
}

impl Space {
    fn begin(enter: impl FnOnce() + Send + 'static) -> Self {
        let (jobs, work) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            enter();
            // SAFETY: takes no arguments and accesses no memory.
            tell.send(unsafe { libc::gettid() }).unwrap();
            work.into_iter().for_each(|job| job());
        });
        Self { thread: told.recv().unwrap(), jobs }
    }

    /// Creates a new namespace.
    pub fn new() -> Self {
        // SAFETY: affects only the calling thread.
        Self::begin(|| assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0))
    }

    /// Enters the namespace that is mounted at a file.
    pub fn at(pin: &Path) -> Self {
        let pin = File::open(pin).unwrap();
        // SAFETY: affects only the calling thread.
        Self::begin(move || assert_eq!(unsafe { libc::setns(pin.as_raw_fd(), libc::CLONE_NEWNET) }, 0))
    }

    /// A neighbour of the calling thread's namespace, which is its router.
    pub fn behind_host(host: Ipv4Addr, own: Ipv4Addr) -> Self {
        let space = Self::new();
        run("ip", &["link", "add", "side0", "type", "veth", "peer", "name", "near0"]);
        run("ip", &["link", "set", "near0", "netns", &space.thread.to_string()]);
        run("ip", &["addr", "add", &format!("{host}/24"), "dev", "side0"]);
        run("ip", &["link", "set", "side0", "up"]);
        for args in [format!("addr add {own}/24 dev near0"), "link set near0 up".to_owned()] {
            space.ip(&args);
        }
        space.ip(&format!("route add default via {host}"));
        space
    }

    /// Runs `work` in the namespace.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs.send(Box::new(move || tell.send(work()).unwrap())).unwrap();
        told.recv().unwrap()
    }

    fn ip(&self, args: &str) {
        let args = args.to_owned();
        self.run(move || run("ip", &args.split(' ').collect::<Vec<_>>()));
    }
}

/// Addresses outside the host: all are in one namespace behind its default route.
pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const HOST_PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub const INTERNET_TOO: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
pub const PRIVATE_RESOLVER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 53);
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 5);
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const FAR_PRIVATE: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 99, 0, 5),
    Ipv4Addr::new(100, 64, 0, 9),
    Ipv4Addr::new(172, 16, 5, 5),
    Ipv4Addr::new(198, 18, 0, 1),
];

/// Simulated internet, metadata service, neighbours and resolvers.
pub struct World {
    space: Space,
    sniffer: OwnedFd,
}

/// UDP socket at one of the outside addresses.
pub struct Peer(UdpSocket);

impl World {
    /// Creates the outside namespace and a link to it from the calling thread's namespace.
    pub fn new() -> Self {
        let space = Space::new();
        run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "world0"]);
        for link in ["up0", "world0"] {
            // Without IPv6 no unsolicited packets are sent on it.
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1").unwrap();
        }
        run("ip", &["link", "set", "world0", "netns", &space.thread.to_string()]);
        space.run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
        for args in ["link set lo up", "link set world0 up"] {
            space.ip(args);
        }
        let near = [INTERNET, INTERNET_TOO, RESOLVER, PRIVATE_RESOLVER, NEIGHBOUR];
        near.iter().for_each(|address| space.ip(&format!("addr add {address}/24 dev world0")));
        let far = FAR_PRIVATE.iter().chain([&METADATA]);
        far.for_each(|address| space.ip(&format!("addr add {address}/32 dev world0")));
        run("ip", &["link", "set", "up0", "up"]);
        for address in [HOST, HOST_PRIVATE] {
            run("ip", &["addr", "add", &format!("{address}/24"), "dev", "up0"]);
        }
        run("ip", &["route", "add", "default", "via", &INTERNET.to_string()]);
        // Allows connection attempts from outside.
        space.ip(&format!("route add default via {HOST}"));
        wait_until_up(|| run("ip", &["link", "show", "up0"]));
        wait_until_up(|| space.run(|| run("ip", &["link", "show", "world0"])));
        let sniffer = space.run(sniffer);
        Self { space, sniffer }
    }

    /// Removes the link to the world.
    pub fn end() {
        run("ip", &["link", "del", "up0"]);
    }

    pub fn peer(&self, address: Ipv4Addr, port: u16) -> Peer {
        let socket = self.space.run(move || UdpSocket::bind(SocketAddrV4::new(address, port)).unwrap());
        Peer::of(socket)
    }

    /// Returns the frames received since the last call.
    pub fn arrived(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0_u8; 70_000];
        loop {
            let (data, length) = (buffer.as_mut_ptr().cast(), buffer.len());
            // SAFETY: zero is a valid address; pointers and lengths describe live buffers.
            let (got, kind) = unsafe {
                let mut from: libc::sockaddr_ll = std::mem::zeroed();
                let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                let fd = self.sniffer.as_raw_fd();
                let from_address = (&raw mut from).cast();
                (
                    libc::recvfrom(fd, data, length, libc::MSG_DONTWAIT, from_address, &raw mut size),
                    from.sll_pkttype,
                )
            };
            if got < 0 {
                return frames;
            }
            if kind != libc::PACKET_OUTGOING {
                frames.push(buffer[..got as usize].to_vec());
            }
        }
    }
}

fn sniffer() -> OwnedFd {
    const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();
    let size: libc::c_int = 64 << 20;
    // SAFETY: the descriptor is owned here; pointers and lengths describe live values.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(ALL));
        assert!(fd >= 0);
        let (value, length) = ((&raw const size).cast(), 4);
        assert_eq!(libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, length), 0);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ALL;
        address.sll_ifindex = libc::if_nametoindex(c"world0".as_ptr()) as i32;
        let length = size_of::<libc::sockaddr_ll>() as u32;
        assert_eq!(libc::bind(fd, (&raw const address).cast(), length), 0);
        OwnedFd::from_raw_fd(fd)
    }
}

impl Peer {
    /// Opens a socket in the calling thread's namespace.
    pub fn here(address: Ipv4Addr, port: u16) -> Self {
        Self::of(UdpSocket::bind(SocketAddrV4::new(address, port)).unwrap())
    }

    const fn of(socket: UdpSocket) -> Self {
        Self(socket)
    }

    /// Waits for this payload and ignores others; returns its sender.
    pub fn expect(&self, payload: &str) -> SocketAddr {
        self.asked(payload, || ())
    }

    /// As `expect`, but has the payload sent again each second, since datagrams may be lost.
    pub fn asked(&self, payload: &str, send: impl Fn()) -> SocketAddr {
        let (begin, mut buffer) = (Instant::now(), [0; 2048]);
        self.0.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        while begin.elapsed() < PATIENCE {
            match self.0.recv_from(&mut buffer) {
                Ok((length, from)) if buffer[..length] == *payload.as_bytes() => return from,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => send(),
                Err(error) => panic!("{payload:?}: {error}"),
            }
        }
        panic!("{payload:?} did not come");
    }

    pub fn send(&self, to: impl Into<SocketAddr>, payload: &str) {
        self.0.send_to(payload.as_bytes(), to.into()).unwrap();
    }

    /// Reads all other payloads that have arrived.
    pub fn drain(&self) -> Vec<String> {
        self.0.set_nonblocking(true).unwrap();
        let mut buffer = [0; 2048];
        let mut all = Vec::new();
        while let Ok((length, _)) = self.0.recv_from(&mut buffer) {
            all.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        self.0.set_nonblocking(false).unwrap();
        all
    }
}
