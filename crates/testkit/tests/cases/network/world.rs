// SPDX-License-Identifier: Apache-2.0
//! Simulated networks around a host: the internet behind its default route, a metadata service and a
//! neighbour, each in a network namespace. Each counts and answers all packets that arrive.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    names::{RESOLVERS, Resolver},
    space::{Space, add_rules, counted, ip, pairs, replace_file},
};

pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(super) const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub(super) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub(super) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
/// Port of the echo service.
pub(super) const ECHO: u16 = 7;
/// Port of the resolvers.
pub(super) const DNS: u16 = 53;
/// Port on the internet that answers only after [`World::roll_call`] is complete.
pub(super) const ROLL_CALL: u16 = 9;
/// Ports of typical services of hosts and metadata servers.
pub(super) const SERVICES: [u16; 4] = [ECHO, 22, 80, 8080];

/// Log of received packets, one line each.
type Heard = Arc<Mutex<Vec<String>>>;

/// Simulated networks; the calling thread's namespace is the host. Dropping this removes them.
#[derive(Debug)]
pub(super) struct World {
    internet: Space,
    /// Those of the host, on the internet.
    pub(super) resolvers: [Arc<Resolver>; 2],
    silent: [(&'static str, Space); 2],
    roll_call: tokio::net::TcpListener,
    heard: Heard,
    heard_on_host: Heard,
}

/// Creates a link from the calling thread's namespace to `in0` in another one and sets the latter end up.
/// Without IPv6, no unsolicited packets are sent on it.
pub(super) fn link(name: &str, address: Ipv4Addr, host: Ipv4Addr, space: &Space, ipv6: bool) -> Result<()> {
    ip(&format!("link add {name} type veth peer name in0 netns {}", space.name()))?;
    let quiet = move |link: &str| fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1");
    if !ipv6 {
        quiet(name)?;
    }
    ip(&format!("addr add {host}/24 dev {name}"))?;
    space.run(move || {
        if !ipv6 {
            quiet("in0")?;
        }
        ip(&format!("addr add {address}/24 dev in0"))?;
        ip("link set in0 up")
    })
}

fn note(heard: &Heard, line: String) {
    heard.lock().unwrap_or_else(PoisonError::into_inner).push(line);
}

async fn echo_stream(mut stream: TcpStream) {
    let mut buffer = [0; 2048];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

fn serve_connections(listener: TcpListener, heard: Heard) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let local = stream.local_addr().map_or_else(|error| error.to_string(), |at| at.to_string());
            note(&heard, format!("a connection from {} to {local}", peer.ip()));
            tokio::spawn(echo_stream(stream));
        }
    });
    Ok(())
}

/// Serves a socket; what arrives is answered by what `answer` makes of it.
pub(super) fn serve_datagrams(
    socket: UdpSocket,
    heard: Heard,
    answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
) -> Result<()> {
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    let local = socket.local_addr()?;
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..length]);
            note(&heard, format!("{text:?} from {} to {local}", peer.ip()));
            let reply = answer(&buffer[..length]);
            if let Some(reply) = reply {
                let _ = socket.send_to(&reply, peer).await;
            }
        }
    });
    Ok(())
}

type Sockets = (Vec<TcpListener>, Vec<UdpSocket>);

/// Binds sockets in the calling thread's namespace.
fn bind(address: Ipv4Addr, ports: &[u16]) -> Result<Sockets> {
    let streams = ports.iter().map(|&port| TcpListener::bind((address, port)));
    let datagrams = ports.iter().map(|&port| UdpSocket::bind((address, port)));
    Ok((streams.collect::<Result<_, _>>()?, datagrams.collect::<Result<_, _>>()?))
}

fn serve((streams, datagrams): Sockets, heard: &Heard) -> Result<()> {
    streams.into_iter().try_for_each(|listener| serve_connections(listener, heard.clone()))?;
    let echo = |datagram: &[u8]| Some(datagram.to_vec());
    datagrams.into_iter().try_for_each(|socket| serve_datagrams(socket, heard.clone(), echo))
}

/// Rules that count every frame, for namespaces that no guest may reach.
const COUNT_ALL: &str = r#"
table netdev world {
    set strays { type ipv4_addr . ipv4_addr; flags dynamic; size 1024; }
    counter other { }
    chain arriving {
        type filter hook ingress device "in0" priority 0;
        ether type ip update @strays { ip saddr . ip daddr }
        counter name other
    }
}
"#;

/// Rules that count, on the internet, everything but packets of the host itself and neighbour discovery.
fn count_internet(names: &str) -> String {
    format!(
        r#"
table netdev world {{
    set strays {{ type ipv4_addr . ipv4_addr; flags dynamic; size 1024; }}
    counter honest {{ }}
    counter other {{ }}
    chain arriving {{
        type filter hook ingress device "in0" priority 0;
        ether type arp accept
        ip6 saddr {{ ::, fe80::/10 }} accept
        ip saddr {HOST} ip daddr {{ {INTERNET}, {names} }} counter name honest accept
        ether type ip update @strays {{ ip saddr . ip daddr }}
        counter name other
    }}
}}
"#
    )
}

/// Rules that count, on the host, packets from sandbox networks before any rule of Wrenn.
fn count_host(names: &str) -> String {
    format!(
        r#"
table inet seen {{
    set strays {{ type ipv4_addr . ipv4_addr; flags dynamic; size 1024; }}
    set guests {{ type ipv4_addr . ipv4_addr; flags dynamic; size 1024; }}
    counter other {{ }}
    chain leaving {{
        type filter hook prerouting priority raw;
        iifname != "wr*" accept
        ip saddr 10.12.0.0/16 ip daddr {{ {HOST}, {INTERNET}, {names} }} update @guests {{ ip saddr . ip daddr }} accept
        ip saddr 10.11.0.0/16 ip daddr 10.12.0.0/16 tcp sport 49983 accept
        meta nfproto ipv4 update @strays {{ ip saddr . ip daddr }}
        counter name other
    }}
}}
"#
    )
}

impl World {
    /// Creates the networks in a new namespace, and makes [`RESOLVERS`] those of the host, which an agent reads at its start.
    pub(super) fn new() -> Result<Self> {
        let (heard, heard_on_host) = (Heard::default(), Heard::default());
        let configuration = RESOLVERS.map(|resolver| format!("nameserver {resolver}\n")).concat();
        replace_file("/etc/resolv.conf", &configuration)?;
        let names = RESOLVERS.map(|resolver| resolver.to_string()).join(", ");
        let host_rules = count_host(&names);
        let internet = Space::new()?;
        link("up0", INTERNET, HOST, &internet, true)?;
        let (sockets, asked) = internet.run(move || {
            RESOLVERS.iter().try_for_each(|resolver| ip(&format!("addr add {resolver}/32 dev in0")))?;
            // Answer packets to private networks too, which a wrong policy might let through.
            for network in ["10.0.0.0/8", "172.16.0.0/12", "100.64.0.0/10", "198.18.0.0/15"] {
                ip(&format!("route add local {network} dev lo"))?;
            }
            add_rules(&count_internet(&names))?;
            let (mut streams, datagrams) = bind(INTERNET, &[ECHO])?;
            streams.push(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80))?);
            let asked = RESOLVERS.into_iter().map(|resolver| UdpSocket::bind((resolver, DNS)));
            Ok(((streams, datagrams), asked.collect::<Result<Vec<_>, _>>()?))
        })?;
        serve(sockets, &heard)?;
        let resolvers = <[Arc<Resolver>; 2]>::default();
        for (socket, resolver) in asked.into_iter().zip(resolvers.clone()) {
            serve_datagrams(socket, heard.clone(), move |datagram| resolver.answer(datagram))?;
        }
        let roll_call = internet.run(|| Ok(TcpListener::bind((INTERNET, ROLL_CALL))?))?;
        roll_call.set_nonblocking(true)?;
        let roll_call = tokio::net::TcpListener::from_std(roll_call)?;

        let silent = [("metadata", Space::new()?), ("neighbour", Space::new()?)];
        let places =
            [(METADATA, Ipv4Addr::new(169, 254, 169, 1)), (NEIGHBOUR, Ipv4Addr::new(192, 168, 77, 1))];
        for ((name, space), (address, host)) in silent.iter().zip(places) {
            link(name, address, host, space, false)?;
            let sockets = space.run(move || {
                add_rules(COUNT_ALL)?;
                bind(address, &SERVICES)
            })?;
            serve(sockets, &heard)?;
        }
        for name in ["up0", "metadata", "neighbour"] {
            ip(&format!("link set {name} up"))?;
        }
        ip(&format!("route add default via {INTERNET}"))?;
        add_rules(&host_rules)?;
        serve(bind(Ipv4Addr::UNSPECIFIED, &SERVICES)?, &heard_on_host)?;
        Ok(Self { internet, resolvers, silent, roll_call, heard, heard_on_host })
    }

    /// Fails if anything from a guest was received other than packets from the host's address to the
    /// internet.
    pub(super) fn only_honest(&self) -> Result<()> {
        let counts = self.internet.run(|| Ok((counted()?, pairs("netdev", "world", "strays")?)))?;
        println!("  internet: {counts:?}");
        let honest = counts.0.iter().any(|(name, packets)| name == "honest" && *packets > 0);
        anyhow::ensure!(honest, "nothing came to the internet: {counts:?}");
        let quiet = |(counters, strays): &(Vec<(String, u64)>, Vec<String>)| {
            strays.is_empty() && counters.iter().all(|(name, packets)| name != "other" || *packets == 0)
        };
        anyhow::ensure!(quiet(&counts), "on the internet: {counts:?}");
        for (name, space) in &self.silent {
            let counts = space.run(|| Ok((counted()?, pairs("netdev", "world", "strays")?)))?;
            anyhow::ensure!(quiet(&counts), "at {name}: {counts:?}");
        }
        let counts = (counted()?, pairs("inet", "seen", "strays")?);
        anyhow::ensure!(quiet(&counts), "out of a sandbox's network: {counts:?}");
        let heard = lines(&self.heard_on_host);
        anyhow::ensure!(heard.is_empty(), "a service of the host heard {heard:?}");
        let heard = lines(&self.heard);
        let honest = format!(" from {HOST} to ");
        let hostile = heard.iter().find(|line| line.contains("hostile") || !line.contains(&honest));
        anyhow::ensure!(hostile.is_none(), "heard outside: {heard:?}");
        Ok(())
    }

    /// Returns the source and destination pairs that the host saw from sandbox networks.
    pub(super) fn guests_seen() -> Result<Vec<String>> {
        pairs("inet", "seen", "guests")
    }

    /// Waits until `count` guests have connected and sent their names; they wait for [`Called::dismiss`].
    pub(super) async fn roll_call(&self, count: usize) -> Result<Vec<Called>> {
        let mut all = Vec::new();
        while all.len() < count {
            let (mut stream, peer) = self.roll_call.accept().await?;
            let mut buffer = [0; 64];
            let length = stream.read(&mut buffer).await?;
            let name = String::from_utf8_lossy(&buffer[..length]).into_owned();
            all.push(Called { name, peer, stream });
        }
        Ok(all)
    }
}

fn lines(heard: &Heard) -> Vec<String> {
    heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Guest that waits for an answer from the internet.
#[derive(Debug)]
pub(super) struct Called {
    /// Name that the guest sent.
    pub(super) name: String,
    /// Source address as seen on the internet.
    pub(super) peer: SocketAddr,
    stream: TcpStream,
}

impl Called {
    /// Answers the guest with its name.
    pub(super) async fn dismiss(mut self) -> Result<()> {
        let answer = format!("goodbye {}", self.name);
        self.stream.write_all(answer.as_bytes()).await.context("the guest's connection is gone")
    }
}
