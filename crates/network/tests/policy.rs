// SPDX-License-Identifier: Apache-2.0
//! Network isolation of hostile guests: they reach the internet and nothing else. Needs root. The internet,
//! the metadata service and neighbours are simulated in a namespace without an uplink, and received frames
//! are captured there. Real guests are tested in the lab; here the test itself writes arbitrary frames to the
//! tap device.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use support::{
    config,
    frames::{self, ARP, BROADCAST, GUEST_MAC, ICMP, IPV4, IPV6, TAP_MAC, TCP, UDP},
    guest::Guest,
    isolated,
    space::{
        FAR_PRIVATE, HOST, HOST_PRIVATE, INTERNET, INTERNET_TOO, METADATA, NEIGHBOUR, PRIVATE_RESOLVER, Peer,
        RESOLVER, Space, World,
    },
};
use tempfile::TempDir;
use wrenn_network::{
    Egress, GUEST_ADDRESS, GUEST_RESOLVERS, MAX_FLOWS, NetworkError, Policy, PoolConfig, Rate, SlotPool,
    SlotSpec, TAP_ADDRESS, cleanup,
};

/// Payload of every hostile frame, by which it is recognized.
const HOSTILE: &str = "hostile";
const ECHO: u16 = 7;

struct Net {
    dir: TempDir,
    pool: Arc<SlotPool>,
    world: World,
}

impl Net {
    async fn new(change: impl FnOnce(&mut PoolConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new();
        let mut config = PoolConfig { warm: 0, egress: Egress::Nat, ..config(dir.path()) };
        change(&mut config);
        let pool = SlotPool::start(config).await.unwrap();
        Self { dir, pool, world }
    }

    async fn guest(&self) -> (SlotSpec, Guest) {
        let slot = self.pool.acquire().await.unwrap();
        let guest = Guest::new(&slot);
        (slot, guest)
    }

    async fn end(self, slots: &[SlotSpec]) {
        for slot in slots {
            self.pool.release(slot.index).await.unwrap();
        }
        self.pool.shutdown().await.unwrap();
        cleanup(self.dir.path(), "test").await.unwrap();
    }
}

/// Exchanges a packet and a reply; returns the source address that the peer saw. Earlier packets have arrived
/// by then.
fn exchange(guest: &Guest, port: u16, peer: &Peer, at: Ipv4Addr, payload: &str) -> SocketAddr {
    let send = || guest.udp(port, (at, ECHO), payload);
    send();
    let seen = peer.asked(payload, send);
    let answer = format!("re {payload}");
    peer.send(seen, &answer);
    let (frame, _) = guest.expect(&answer);
    assert_eq!(frames::addresses(&frame), Some((at, GUEST_ADDRESS)));
    seen
}

fn honest(packet: &[u8]) -> Vec<u8> {
    frames::ether(TAP_MAC, GUEST_MAC, IPV4, packet)
}

fn datagram(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    frames::ipv4(from, to, UDP, &frames::udp(1000, port, HOSTILE.as_bytes()))
}

/// Packets with the guest's own address to forbidden destinations.
fn forbidden_destinations(own: &SlotSpec, other: &SlotSpec) -> Vec<Vec<u8>> {
    let addresses = [
        HOST,
        HOST_PRIVATE,
        own.host_address,
        own.veth_host_address,
        own.veth_slot_address,
        other.host_address,
        other.veth_host_address,
        other.veth_slot_address,
        NEIGHBOUR,
        PRIVATE_RESOLVER,
        METADATA,
        TAP_ADDRESS,
        GUEST_ADDRESS,
        GUEST_RESOLVERS[0],
        GUEST_RESOLVERS[1],
        [127, 0, 0, 1].into(),
        [192, 0, 0, 8].into(),
        [224, 0, 0, 1].into(),
        [240, 0, 0, 1].into(),
        [255, 255, 255, 255].into(),
        [0, 0, 0, 0].into(),
        [169, 254, 0, 23].into(),
        [192, 168, 77, 255].into(),
    ];
    let mut all = Vec::new();
    for to in addresses.into_iter().chain(FAR_PRIVATE) {
        for port in [ECHO, 22, 49983] {
            all.push(honest(&datagram(GUEST_ADDRESS, to, port)));
        }
        if !GUEST_RESOLVERS.contains(&to) {
            all.push(honest(&datagram(GUEST_ADDRESS, to, 53)));
        }
        for port in [22_u16, 80, 8080, 49983] {
            let segment = frames::syn((GUEST_ADDRESS, to), 1000 + port, port);
            all.push(honest(&frames::ipv4(GUEST_ADDRESS, to, TCP, &segment)));
        }
        let ping = frames::icmp(8, 0, [0, 1, 0, 1], HOSTILE.as_bytes());
        all.push(honest(&frames::ipv4(GUEST_ADDRESS, to, ICMP, &ping)));
        // Broadcast and multicast MAC address with a unicast IP address.
        for mac in [BROADCAST, [1, 0, 0x5e, 0, 0, 1]] {
            all.push(frames::ether(mac, GUEST_MAC, IPV4, &datagram(GUEST_ADDRESS, to, ECHO)));
        }
    }
    all
}

/// Frames to the internet with a forged source or in a forbidden format.
fn forgeries(other: &SlotSpec) -> Vec<Vec<u8>> {
    let own = datagram(GUEST_ADDRESS, INTERNET, ECHO);
    let mut all = vec![
        frames::ether(TAP_MAC, [2, 0xfc, 0, 0, 0, 6], IPV4, &own),
        frames::ether(TAP_MAC, TAP_MAC, IPV4, &own),
        frames::ether(BROADCAST, GUEST_MAC, 0x0027, HOSTILE.as_bytes()),
    ];
    let sources = [other.host_address, other.veth_slot_address, other.veth_host_address];
    for from in sources.into_iter().chain([
        TAP_ADDRESS,
        HOST,
        INTERNET_TOO,
        NEIGHBOUR,
        [0, 0, 0, 0].into(),
        [127, 0, 0, 1].into(),
        [169, 254, 0, 20].into(),
    ]) {
        all.push(honest(&datagram(from, INTERNET, ECHO)));
        all.push(honest(&datagram(from, PRIVATE_RESOLVER, 53)));
    }
    for (tag, vlan) in [(0x8100, 0), (0x8100, 5), (0x88a8, 7)] {
        all.push(frames::tagged(&honest(&own), tag, vlan));
        all.push(frames::tagged(&frames::tagged(&honest(&own), 0x8100, 5), tag, vlan));
    }
    // Loose source routes via the gateway and via the internet to a neighbour, and via the gateway to the
    // internet.
    for (first, then) in [(TAP_ADDRESS, NEIGHBOUR), (INTERNET, NEIGHBOUR), (TAP_ADDRESS, INTERNET)] {
        let route = [&[131, 7, 4][..], &then.octets(), &[0]].concat();
        let body = frames::udp(1000, ECHO, HOSTILE.as_bytes());
        all.push(honest(&frames::ipv4_with(&route, GUEST_ADDRESS, first, UDP, &body)));
    }
    // Other protocols (IGMP, IPIP, 6in4, GRE, ESP, SCTP) to a host that is open to TCP, UDP and ICMP.
    for protocol in [2, 4, 41, 47, 50, 132, 255] {
        all.push(honest(&frames::ipv4(GUEST_ADDRESS, INTERNET, protocol, HOSTILE.as_bytes())));
    }
    for kind in [IPV6, 0x88cc, 0x8863, 0x8864, 0x888e, 0x8847, 0x86dd, 0x9000] {
        all.push(frames::ether(BROADCAST, GUEST_MAC, kind, HOSTILE.as_bytes()));
        all.push(frames::ether(TAP_MAC, GUEST_MAC, kind, &frames::ipv6(1, 2, HOSTILE.as_bytes())));
        all.push(frames::ether([0x33, 0x33, 0, 0, 0, 1], GUEST_MAC, kind, &frames::ipv6(1, 2, b"hostile")));
    }
    all
}

/// False ARP announcements, and ARP requests for other addresses.
fn arp_lies(own: &SlotSpec) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let claims = [TAP_ADDRESS, HOST, INTERNET, own.veth_host_address, own.veth_slot_address, NEIGHBOUR];
    for claimed in claims {
        for operation in [1, 2] {
            let claim = frames::arp(operation, (GUEST_MAC, claimed), (BROADCAST, TAP_ADDRESS));
            all.push(frames::ether(BROADCAST, GUEST_MAC, ARP, &claim));
            let announced = frames::arp(operation, (GUEST_MAC, claimed), (BROADCAST, claimed));
            all.push(frames::ether(BROADCAST, GUEST_MAC, ARP, &announced));
        }
        let question = frames::arp(1, (GUEST_MAC, GUEST_ADDRESS), ([0; 6], claimed));
        if claimed != TAP_ADDRESS {
            all.push(frames::ether(BROADCAST, GUEST_MAC, ARP, &question));
        }
    }
    let elsewhere = frames::arp(2, ([2, 0, 0, 0, 0, 9], GUEST_ADDRESS), (TAP_MAC, TAP_ADDRESS));
    all.push(frames::ether(TAP_MAC, GUEST_MAC, ARP, &elsewhere));
    all
}

/// ICMP errors about the guest's own flow to the internet, addressed to others.
fn misdirected_errors(port: u16) -> Vec<Vec<u8>> {
    let answer = frames::ipv4(INTERNET, GUEST_ADDRESS, UDP, &frames::udp(ECHO, port, HOSTILE.as_bytes()));
    let message = frames::icmp(3, 3, [0; 4], &answer);
    let to = [NEIGHBOUR, HOST_PRIVATE, METADATA];
    to.map(|to| honest(&frames::ipv4(GUEST_ADDRESS, to, ICMP, &message))).to_vec()
}

/// Services of the host, which must not receive anything.
struct HostServices {
    datagrams: Vec<Peer>,
    connections: Vec<TcpListener>,
}

impl HostServices {
    fn new() -> Self {
        let any = Ipv4Addr::UNSPECIFIED;
        let datagrams = [ECHO, 22, 53, 49983].map(|port| Peer::here(any, port)).into_iter().collect();
        let listen = |port| {
            let listener = TcpListener::bind(SocketAddrV4::new(any, port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        Self { datagrams, connections: [22, 80, 8080, 49983].map(listen).into_iter().collect() }
    }

    fn heard_nothing(&self) {
        self.datagrams.iter().for_each(|socket| assert_eq!(socket.drain(), Vec::<String>::new()));
        self.connections.iter().for_each(|listener| assert!(listener.accept().is_err()));
    }
}

/// Fails if the host sent anything but ARP and packets from its own address to the internet.
fn only_the_internet(frames: &[Vec<u8>]) {
    for frame in frames {
        assert!(!frames::holds(frame, HOSTILE), "{frame:02x?}");
        match frames::kind(frame) {
            ARP => {}
            IPV4 => assert_eq!(frames::addresses(frame), Some((HOST, INTERNET)), "{frame:02x?}"),
            other => panic!("a frame of type {other:#x}: {frame:02x?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hostile_guests_reach_the_internet_and_nothing_else() {
    if !isolated("two_hostile_guests_reach_the_internet_and_nothing_else") {
        return;
    }
    let net = Net::new(|_| {}).await;
    let services = HostServices::new();
    let internet = net.world.peer(INTERNET, ECHO);
    let silent: Vec<Peer> = FAR_PRIVATE
        .into_iter()
        .chain([INTERNET_TOO, NEIGHBOUR, METADATA, PRIVATE_RESOLVER])
        .map(|address| net.world.peer(address, ECHO))
        .collect();
    let (one, two) = (net.guest().await, net.guest().await);
    for (round, (attacker, victim)) in [(&one, &two), (&two, &one)].into_iter().enumerate() {
        let port = 2000 + round as u16;
        exchange(&attacker.1, port, &internet, INTERNET, &format!("before {round}"));
        net.world.arrived();
        let mut hostile = forbidden_destinations(&attacker.0, &victim.0);
        hostile.extend(forgeries(&victim.0));
        hostile.extend(arp_lies(&attacker.0));
        hostile.extend(misdirected_errors(port));
        assert!(hostile.len() > 350, "{}", hostile.len());
        for part in hostile.chunks(50) {
            part.iter().for_each(|frame| attacker.1.raw(frame));
        }
        // Permitted flows still work after the hostile frames, which have arrived by now.
        exchange(&attacker.1, port, &internet, INTERNET, &format!("after {round}"));
        exchange(&victim.1, port, &internet, INTERNET, &format!("other {round}"));
        only_the_internet(&net.world.arrived());
        services.heard_nothing();
        silent.iter().for_each(|peer| assert_eq!(peer.drain(), Vec::<String>::new()));
        for frame in victim.1.drain() {
            assert!(!frames::holds(&frame, HOSTILE), "{frame:02x?}");
        }
        // No false ARP entry was accepted.
        let neighbours = support::inside(&attacker.0, &["ip", "neigh", "show", "dev", "tap0"]);
        assert_eq!(neighbours.trim(), "169.254.0.21 lladdr 02:fc:00:00:00:05 PERMANENT");
    }
    net.end(&[one.0, two.0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_answers_and_the_host_is_answered_and_nobody_outside_gets_in() {
    if !isolated("the_gateway_answers_and_the_host_is_answered_and_nobody_outside_gets_in") {
        return;
    }
    let net = Net::new(|_| {}).await;
    let (slot, guest) = net.guest().await;
    // A restored guest sends an ARP request for the gateway that it knows.
    let question = frames::arp(1, (GUEST_MAC, GUEST_ADDRESS), ([0; 6], TAP_ADDRESS));
    guest.raw(&frames::ether(BROADCAST, GUEST_MAC, ARP, &question));
    let answered = guest.drain_until(|frame| frames::kind(frame) == ARP && frame[20..22] == [0, 2]);
    assert_eq!(answered[22..28], TAP_MAC);

    // A request of the agent, and the guest's reply.
    let agent = Peer::here(Ipv4Addr::UNSPECIFIED, 0);
    agent.send((slot.host_address, 49983), "are you ready");
    let (asked, _) = guest.expect("are you ready");
    let (from, to) = frames::addresses(&asked).unwrap();
    assert_eq!(to, GUEST_ADDRESS);
    let port = u16::from_be_bytes([asked[34], asked[35]]);
    guest.packet(from, UDP, &frames::udp(49983, port, b"ready"));
    assert_eq!(agent.expect("ready"), SocketAddr::from((slot.host_address, 49983)));
    // A packet to another port of the same peer is not forwarded.
    let other = Peer::here(Ipv4Addr::UNSPECIFIED, 0);
    guest.packet(from, UDP, &frames::udp(49983, port.wrapping_add(1), HOSTILE.as_bytes()));

    let internet = net.world.peer(INTERNET, ECHO);
    for inside in [slot.host_address, slot.veth_slot_address] {
        internet.send((inside, 49983), HOSTILE);
    }
    let seen = exchange(&guest, 3000, &internet, INTERNET, "fence");
    assert_eq!(seen.ip(), HOST);
    // Another internet host sends to the port that the host assigned to the guest's flow.
    net.world.peer(INTERNET_TOO, ECHO).send(seen, HOSTILE);
    exchange(&guest, 3000, &internet, INTERNET, "fence again");
    guest.drain().iter().for_each(|frame| assert!(!frames::holds(frame, HOSTILE), "{frame:02x?}"));
    assert!(other.drain().is_empty());
    net.end(&[slot]).await;
}

/// A neighbour of the host in another network, which uses it as a router to the internet.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_no_router_becomes_none_for_others() {
    if !isolated("a_host_that_was_no_router_becomes_none_for_others") {
        return;
    }
    let forward = "/proc/sys/net/ipv4/ip_forward";
    let forwards = || std::fs::read_to_string(forward).unwrap().trim() == "1";
    let (neighbour, arrives) =
        (Space::behind_host([192, 168, 88, 1].into(), [192, 168, 88, 5].into()), "through");
    // The same if the host was a router before: then it stays one.
    for router in [false, true] {
        std::fs::write(forward, if router { "1" } else { "0" }).unwrap();
        let net = Net::new(|_| {}).await;
        let internet = net.world.peer(INTERNET, ECHO);
        let (slot, guest) = net.guest().await;
        assert!(forwards());
        neighbour.run(move || {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::from([192, 168, 88, 5]), 4000)).unwrap();
            socket.send_to(arrives.as_bytes(), (INTERNET, ECHO)).unwrap();
        });
        if router {
            internet.expect(arrives);
        }
        // The neighbour's packet has arrived or was dropped by now.
        exchange(&guest, 3000, &internet, INTERNET, "fence");
        let heard = net.world.arrived().iter().any(|frame| frames::holds(frame, arrives));
        assert_eq!(heard, router);
        // An agent that restarts after a kill finds forwarding enabled, by its former self.
        let dir = net.dir.path().to_owned();
        net.pool.release(slot.index).await.unwrap();
        net.pool.shutdown().await.unwrap();
        let again =
            SlotPool::start(PoolConfig { warm: 0, egress: Egress::Nat, ..config(&dir) }).await.unwrap();
        neighbour.run(move || {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::from([192, 168, 88, 5]), 4000)).unwrap();
            socket.send_to(b"later", (INTERNET, ECHO)).unwrap();
        });
        if router {
            internet.expect("later");
        }
        let slot = again.acquire().await.unwrap();
        let guest = Guest::new(&slot);
        exchange(&guest, 3001, &internet, INTERNET, "fence");
        let heard = net.world.arrived().iter().any(|frame| frames::holds(frame, "later"));
        assert_eq!(heard, router);
        again.release(slot.index).await.unwrap();
        again.shutdown().await.unwrap();
        cleanup(&dir, "test").await.unwrap();
        assert_eq!(forwards(), router, "as it was before");
        World::end();
    }
}

fn dns(guest: &Guest, port: u16, asked: Ipv4Addr, resolver: &Peer, question: &str) {
    let send = || guest.udp(port, (asked, 53), question);
    send();
    let seen = resolver.asked(question, send);
    let answer = format!("re {question}");
    resolver.send(seen, &answer);
    assert_eq!(frames::addresses(&guest.expect(&answer).0), Some((asked, GUEST_ADDRESS)));
}

#[tokio::test(flavor = "multi_thread")]
async fn constant_resolvers_lead_to_the_hosts_own_on_port_53_only() {
    if !isolated("constant_resolvers_lead_to_the_hosts_own_on_port_53_only") {
        return;
    }
    let net = Net::new(|_| {}).await;
    let (private, public) = (net.world.peer(PRIVATE_RESOLVER, 53), net.world.peer(RESOLVER, 53));
    let internet = net.world.peer(INTERNET, ECHO);
    let (slot, guest) = net.guest().await;
    dns(&guest, 4000, GUEST_RESOLVERS[0], &private, "first");
    dns(&guest, 4001, GUEST_RESOLVERS[1], &public, "second");
    net.world.arrived();
    let connect = frames::syn((GUEST_ADDRESS, GUEST_RESOLVERS[0]), 4002, 53);
    guest.packet(GUEST_RESOLVERS[0], TCP, &connect);
    for port in [80_u16, 853, 5353] {
        guest.udp(4003, (GUEST_RESOLVERS[0], port), HOSTILE);
        guest.packet(GUEST_RESOLVERS[0], TCP, &frames::syn((GUEST_ADDRESS, GUEST_RESOLVERS[0]), 4004, port));
    }
    // The resolver's own address is not reachable either.
    guest.udp(4005, (PRIVATE_RESOLVER, 53), HOSTILE);
    exchange(&guest, 4006, &internet, INTERNET, "fence");
    let frames = net.world.arrived();
    assert!(frames.iter().all(|frame| !frames::holds(frame, HOSTILE)));
    let to_resolver =
        frames.iter().filter(|f| frames::addresses(f).is_some_and(|(_, to)| to == PRIVATE_RESOLVER));
    let ports: Vec<_> = to_resolver.map(|f| (f[23], u16::from_be_bytes([f[36], f[37]]))).collect();
    assert_eq!(ports, [(TCP, 53)]);

    // The policy can close DNS.
    net.pool.set_policy(slot.index, &Policy { dns: false, ..Policy::default() }).await.unwrap();
    guest.udp(4000, (GUEST_RESOLVERS[0], 53), HOSTILE);
    guest.udp(4001, (GUEST_RESOLVERS[1], 53), HOSTILE);
    exchange(&guest, 4006, &internet, INTERNET, "fence again");
    let heard = [private.drain(), public.drain()].concat();
    assert!(heard.iter().all(|payload| payload != HOSTILE), "{heard:?}");
    net.end(&[slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_resolver_that_is_the_host_answers_for_both() {
    if !isolated("a_lone_resolver_that_is_the_host_answers_for_both") {
        return;
    }
    let net = Net::new(|config| config.resolvers = vec![HOST_PRIVATE]).await;
    let (resolver, service) = (Peer::here(HOST_PRIVATE, 53), Peer::here(HOST_PRIVATE, ECHO));
    let internet = net.world.peer(INTERNET, ECHO);
    let (slot, guest) = net.guest().await;
    dns(&guest, 4000, GUEST_RESOLVERS[0], &resolver, "first");
    dns(&guest, 4001, GUEST_RESOLVERS[1], &resolver, "second");
    guest.udp(4002, (HOST_PRIVATE, 53), HOSTILE);
    guest.udp(4002, (HOST_PRIVATE, ECHO), HOSTILE);
    guest.udp(4002, (GUEST_RESOLVERS[0], ECHO), HOSTILE);
    exchange(&guest, 4003, &internet, INTERNET, "fence");
    let heard = [resolver.drain(), service.drain()].concat();
    assert!(heard.iter().all(|payload| payload != HOSTILE), "{heard:?}");
    net.end(&[slot]).await;
}

/// Sends packets of a flow in both directions; returns whether they arrived at the peer and at the guest.
/// Another flow shows that they had time to arrive.
fn flows(guest: &Guest, flow: (u16, &Peer, Ipv4Addr, SocketAddr), fence: (&Peer, Ipv4Addr)) -> (bool, bool) {
    let (port, peer, at, seen) = flow;
    guest.udp(port, (at, ECHO), "to the peer");
    peer.send(seen, "to the guest");
    fence.0.drain();
    guest.udp(9, (fence.1, ECHO), "fence");
    let back = fence.0.expect("fence");
    fence.0.send(back, "fence back");
    let (_, before) = guest.expect("fence back");
    let to_guest = before.iter().any(|frame| frames::holds(frame, "to the guest"));
    (peer.drain().iter().any(|text| text == "to the peer"), to_guest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_cuts_flows_that_it_forbids_and_no_others() {
    if !isolated("a_changed_policy_cuts_flows_that_it_forbids_and_no_others") {
        return;
    }
    let permitted = vec!["192.168.77.0/24".parse().unwrap(), "169.254.0.0/16".parse().unwrap()];
    let net = Net::new(|config| config.permitted = permitted).await;
    let (internet, too) = (net.world.peer(INTERNET, ECHO), net.world.peer(INTERNET_TOO, ECHO));
    let (slot, guest) = net.guest().await;
    let seen = exchange(&guest, 5000, &internet, INTERNET, "begin");
    let fence = (&too, INTERNET_TOO);
    let flow = |seen| (5000, &internet, INTERNET, seen);
    assert_eq!(flows(&guest, flow(seen), fence), (true, true));

    let network = |text: &str| vec![text.parse().unwrap()];
    let set = async |policy: &Policy| net.pool.set_policy(slot.index, policy).await.unwrap();
    set(&Policy { deny: network("203.0.113.9"), ..Policy::default() }).await;
    assert_eq!(flows(&guest, flow(seen), fence), (false, false));
    // A flow that is open again continues.
    set(&Policy::default()).await;
    assert_eq!(flows(&guest, flow(seen), fence), (true, true));
    // `allow` takes precedence over `deny`.
    let (allow, deny) = (network("203.0.113.10/32"), network("0.0.0.0/0"));
    set(&Policy { allow: allow.clone(), deny, ..Policy::default() }).await;
    assert_eq!(flows(&guest, flow(seen), fence), (false, false));
    // Only `allow` is open.
    set(&Policy { allow, ..Policy::closed() }).await;
    assert_eq!(flows(&guest, flow(seen), fence), (false, false));

    // A private network must be permitted by the host and allowed by the policy.
    let neighbour = net.world.peer(NEIGHBOUR, ECHO);
    let metadata = net.world.peer(METADATA, ECHO);
    let far = net.world.peer(FAR_PRIVATE[0], ECHO);
    set(&Policy::default()).await;
    guest.udp(6000, (NEIGHBOUR, ECHO), HOSTILE);
    exchange(&guest, 6001, &too, INTERNET_TOO, "fence 1");
    assert!(neighbour.drain().is_empty());
    set(&Policy { allow: network("0.0.0.0/0"), ..Policy::default() }).await;
    guest.udp(6000, (METADATA, ECHO), HOSTILE);
    guest.udp(6000, (FAR_PRIVATE[0], ECHO), HOSTILE);
    let seen = exchange(&guest, 6002, &neighbour, NEIGHBOUR, "permitted");
    assert_eq!(seen.ip(), HOST_PRIVATE);
    exchange(&guest, 6001, &too, INTERNET_TOO, "fence 2");
    assert!(metadata.drain().is_empty() && far.drain().is_empty());
    net.end(&[slot]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_policy_changes_nothing_and_only_held_slots_have_one() {
    if !isolated("a_refused_policy_changes_nothing_and_only_held_slots_have_one") {
        return;
    }
    let net = Net::new(|_| {}).await;
    let internet = net.world.peer(INTERNET, ECHO);
    let (slot, guest) = net.guest().await;
    let rules = support::inside(&slot, &["nft", "list", "ruleset"]);
    let long = vec!["203.0.113.9".parse().unwrap(); wrenn_network::MAX_LIST + 1];
    let refused = net.pool.set_policy(slot.index, &Policy { deny: long, ..Policy::default() }).await;
    assert!(matches!(refused, Err(NetworkError::ListTooLong { list: "deny", .. })), "{refused:?}");
    assert_eq!(support::inside(&slot, &["nft", "list", "ruleset"]), rules);
    exchange(&guest, 7000, &internet, INTERNET, "still");

    // Longest possible list without adjoining networks.
    let scattered = |tens: u32| -> Vec<_> {
        let bits = (0..wrenn_network::MAX_LIST as u32).map(|place| (tens << 24) + 2 * place);
        bits.map(|bits| Ipv4Addr::from_bits(bits).into()).collect()
    };
    let full = Policy { allow: scattered(20), deny: scattered(30), ..Policy::default() };
    net.pool.set_policy(slot.index, &full).await.unwrap();
    exchange(&guest, 7000, &internet, INTERNET, "through full lists");

    let other = net.pool.set_policy(slot.index + 1, &Policy::default()).await;
    assert!(matches!(other, Err(NetworkError::NotInUse(_))), "{other:?}");
    assert!(matches!(net.pool.refresh(0).await, Err(NetworkError::Index(0))));
    net.end(&[slot]).await;
}

const BURST: usize = 2000;
const KILOBYTE: usize = 1000;

/// Sends a burst in one direction and returns the number of packets that arrive.
fn passes(net: &Net, guest: &Guest, peer: &Peer, upload: bool) -> usize {
    let payload = "x".repeat(KILOBYTE);
    let mut arrived = 0;
    net.world.arrived();
    guest.drain();
    let count = |frames: Vec<Vec<u8>>| frames.iter().filter(|frame| frames::holds(frame, "xxxxxxxx")).count();
    guest.udp(8001, (INTERNET, ECHO), "hello");
    let back = peer.expect("hello");
    for _ in 0..BURST {
        if upload {
            guest.udp(8000, (INTERNET, ECHO), &payload);
            arrived += count(net.world.arrived());
        } else {
            peer.send(back, &payload);
            arrived += count(guest.drain());
        }
    }
    peer.drain();
    arrived + count(net.world.arrived()) + count(guest.drain())
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_hold_in_each_direction_and_not_for_the_agent() {
    if !isolated("rates_hold_in_each_direction_and_not_for_the_agent") {
        return;
    }
    let net = Net::new(|_| {}).await;
    let internet = net.world.peer(INTERNET, ECHO);
    let (slot, guest) = net.guest().await;
    let bytes = Rate { bytes: Some(20_000), packets: None };
    let packets = Rate { bytes: None, packets: Some(20) };
    for (upload, rate) in [(true, bytes), (true, packets), (false, bytes), (false, packets)] {
        net.pool.set_policy(slot.index, &Policy::default()).await.unwrap();
        let open = passes(&net, &guest, &internet, upload);
        assert!(open > BURST * 9 / 10, "{open} of {BURST} without a limit");
        let none = Rate::default();
        let (up, down) = if upload { (rate, none) } else { (none, rate) };
        let limited = Policy { upload: up, download: down, ..Policy::default() };
        net.pool.set_policy(slot.index, &limited).await.unwrap();
        let passed = passes(&net, &guest, &internet, upload);
        println!("{rate:?} {} : {open} open, {passed} limited", if upload { "up" } else { "down" });
        // Some pass, but far from all; the exact number depends on the duration of the burst.
        assert!((1..BURST / 2).contains(&passed), "{passed} of {BURST} with {rate:?}");
    }
    // The guest has used up its rate; the agent can still reach it.
    let agent = Peer::here(Ipv4Addr::UNSPECIFIED, 0);
    for round in 0..50 {
        let question = format!("question {round}");
        agent.send((slot.host_address, 49983), &question);
        guest.expect(&question);
    }
    net.end(&[slot]).await;
}

fn flows_of(slot: &SlotSpec) -> usize {
    let table = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    let own = [format!("src={} ", slot.veth_slot_address), format!("dst={} ", slot.host_address)];
    table.lines().filter(|line| own.iter().any(|address| line.contains(address))).count()
}

fn flows_inside(slot: &SlotSpec) -> usize {
    Space::at(&slot.netns).run(|| {
        let table = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
        table.lines().count()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_forgotten_after_a_restore_and_with_the_slot() {
    if !isolated("flows_are_forgotten_after_a_restore_and_with_the_slot") {
        return;
    }
    let net = Net::new(|_| {}).await;
    let internet = net.world.peer(INTERNET, ECHO);
    let agent = Peer::here(Ipv4Addr::UNSPECIFIED, 0);
    let (one, two) = (net.guest().await, net.guest().await);
    let talk = |(slot, guest): &(SlotSpec, Guest)| {
        exchange(guest, 9000, &internet, INTERNET, "talk");
        agent.send((slot.host_address, 49983), "agent");
        guest.expect("agent");
    };
    talk(&one);
    talk(&two);
    assert_eq!((flows_of(&one.0), flows_of(&two.0)), (2, 2));
    assert_eq!(flows_inside(&one.0), 2);

    // Add a learnt, not permanent, neighbour entry.
    let learnt = ["ip", "neigh", "add", "169.254.0.23", "lladdr", "02:00:00:00:00:99"];
    support::inside(&one.0, &[&learnt[..], &["nud", "stale", "dev", "tap0"]].concat());
    assert!(support::inside(&one.0, &["ip", "neigh", "show", "dev", "tap0"]).contains("STALE"));
    net.pool.refresh(one.0.index).await.unwrap();
    assert_eq!((flows_of(&one.0), flows_of(&two.0)), (0, 2));
    assert_eq!((flows_inside(&one.0), flows_inside(&two.0)), (0, 2));
    let neighbours = support::inside(&one.0, &["ip", "neigh", "show", "dev", "tap0"]);
    assert_eq!(neighbours.trim(), "169.254.0.21 lladdr 02:fc:00:00:00:05 PERMANENT");
    talk(&one);

    let ((one, one_guest), (two, two_guest)) = (one, two);
    drop((one_guest, two_guest));
    net.pool.release(one.index).await.unwrap();
    assert_eq!((flows_of(&one), flows_of(&two)), (0, 2));
    // The same number is a new namespace without entries of the previous sandbox.
    let again = net.guest().await;
    assert_eq!(again.0.index, one.index);
    assert_eq!(flows_inside(&again.0), 0);
    talk(&again);
    net.end(&[again.0, two]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_flows_ends_at_the_bound_and_harms_nobody_else() {
    if !isolated("a_flood_of_flows_ends_at_the_bound_and_harms_nobody_else") {
        return;
    }
    let bound = MAX_FLOWS as usize;
    let net = Net::new(|_| {}).await;
    let internet = net.world.peer(INTERNET, ECHO);
    let agent = Peer::here(Ipv4Addr::UNSPECIFIED, 0);
    let ((slot, guest), (other_slot, other)) = (net.guest().await, net.guest().await);
    // Prevent timeouts of flows on slow machines.
    Space::at(&slot.netns)
        .run(|| std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "600").unwrap());
    exchange(&guest, 1, &internet, INTERNET, "before the flood");
    // Packets of one flow count once, even without replies.
    for _ in 0..2 * bound {
        guest.udp(500, (INTERNET_TOO, ECHO), HOSTILE);
    }
    // Packets that the policy drops do not count.
    for port in 2..100 {
        guest.udp(port, (NEIGHBOUR, ECHO), HOSTILE);
    }
    let mut ports = (1000..=u16::MAX).cycle();
    let mut flood = |count: usize| {
        for port in ports.by_ref().take(count) {
            guest.udp(port, (INTERNET_TOO, ECHO), HOSTILE);
        }
    };
    flood(bound - 200);
    let opened = flows_inside(&slot);
    assert_eq!(opened, bound - 198, "fewer than the bound are all opened");
    // Continue past the limit, as fast as the limit on new flows per second allows.
    let begin = Instant::now();
    while flows_inside(&slot) < bound || begin.elapsed() < Duration::from_secs(3) {
        flood(50);
        assert!(begin.elapsed() < support::PATIENCE, "{} flows", flows_inside(&slot));
        assert!(flows_inside(&slot) <= bound && flows_of(&slot) <= bound);
    }
    assert_eq!(flows_inside(&slot), bound);

    // Replacing the policy does not reset the count.
    net.pool.set_policy(slot.index, &Policy { dns: false, ..Policy::default() }).await.unwrap();
    flood(200);
    assert_eq!(flows_inside(&slot), bound);

    exchange(&guest, 1, &internet, INTERNET, "an open flow goes on");
    exchange(&other, 1, &internet, INTERNET, "another guest");
    agent.send((other_slot.host_address, 49983), "the agent, elsewhere");
    other.expect("the agent, elsewhere");
    agent.send((slot.host_address, 49983), "the agent");
    guest.expect("the agent");

    // New flows are possible as soon as old ones have ended.
    net.pool.refresh(slot.index).await.unwrap();
    let begin = Instant::now();
    while flows_inside(&slot) == 0 {
        assert!(begin.elapsed() < support::PATIENCE, "no new flow");
        flood(1);
    }
    drop((guest, other));
    net.end(&[slot, other_slot]).await;
}
