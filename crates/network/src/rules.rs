// SPDX-License-Identifier: Apache-2.0
//! nftables rules of slots and of the host. Pure: the same input gives the same tables.

use std::net::Ipv4Addr;

use crate::{
    cidr::{Cidr, Range, difference, union},
    model::{Action, Chain, Family, Hook, Key, Kind, Limit, Rule, Set, Table, Test, Verdict},
    plan::{GUEST_ADDRESS, GUEST_MAC, HOST_NETWORK, Plan, SlotSpec, TAP_ADDRESS, VETH_NETWORK},
    policy::{Policy, Rate},
    resolvers,
};

/// Outside networks that sandboxes may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// The internet without private networks.
    Nat,
    /// Nothing.
    None,
}

/// Scope of the host's packet forwarding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forwarding {
    /// Guests only: the host did not forward before the agent started.
    Ours,
    /// As before the agent started.
    Everybodys,
}

/// Maximum number of concurrent flows of one guest. The host has one conntrack table for all guests; when it is
/// full, the kernel drops packets of other tenants and of the agent too.
pub const MAX_FLOWS: u32 = 4096;

/// Maximum number of new flows of one guest per second, after a burst of [`MAX_FLOWS`]. Closed TCP flows stay
/// in the host's conntrack table for two minutes without being counted, and the kernel can reject only so
/// many attempts per second.
pub const MAX_NEW_FLOWS: u64 = 64;

/// Maximum number of conntrack entries of one guest on the host: open flows, and flows closed in the last two
/// minutes (`nf_conntrack_tcp_timeout_time_wait`).
pub(crate) const MAX_KEPT_FLOWS: u64 = MAX_FLOWS as u64 + 120 * MAX_NEW_FLOWS;

/// Settings of all slots of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Common {
    /// Outside networks that sandboxes may reach.
    pub(crate) egress: Egress,
    /// Resolvers for guests' DNS queries.
    pub(crate) resolvers: Vec<Ipv4Addr>,
    /// Private networks that a policy may open.
    pub(crate) permitted: Vec<Cidr>,
}

const fn network(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Cidr {
    Cidr::containing(Ipv4Addr::new(a, b, c, d), prefix)
}

/// Networks that are not part of the internet: private, shared, link-local (metadata), loopback, multicast,
/// reserved; and the public-looking address at which Azure serves metadata to virtual machines.
const PRIVATE: [Cidr; 11] = [
    network(0, 0, 0, 0, 8),
    network(10, 0, 0, 0, 8),
    network(100, 64, 0, 0, 10),
    network(127, 0, 0, 0, 8),
    network(168, 63, 129, 16, 32),
    network(169, 254, 0, 0, 16),
    network(172, 16, 0, 0, 12),
    network(192, 0, 0, 0, 24),
    network(192, 168, 0, 0, 16),
    network(198, 18, 0, 0, 15),
    network(224, 0, 0, 0, 3),
];
/// Private networks that no policy can open: other guests, loopback, metadata services, multicast and
/// reserved.
const ALWAYS_CLOSED: [Cidr; 7] = [
    network(0, 0, 0, 0, 8),
    HOST_NETWORK,
    VETH_NETWORK,
    network(127, 0, 0, 0, 8),
    network(168, 63, 129, 16, 32),
    network(169, 254, 0, 0, 16),
    network(224, 0, 0, 0, 3),
];

/// Name of the link in a slot that leads to the host.
pub(crate) const UPLINK: &str = "eth0";

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// ARP header for Ethernet and IPv4 with their address lengths.
const ARP_HEAD: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
/// IPv4 header without options. Options are not needed, and source routes are options.
const IP_HEAD: [u8; 1] = [0x45];
const TCP: [u8; 1] = [6];
const UDP: [u8; 1] = [17];
const ICMP: [u8; 1] = [1];
const PORT_DNS: [u8; 2] = 53_u16.to_be_bytes();

const INVALID_OR_UNTRACKED: u32 = 1 | 64;
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
/// Conntrack status: the flow's destination was translated.
const TRANSLATED: u32 = 1 << 5;
/// Conntrack status: the flow is in the table, because its first packet has passed.
const CONFIRMED: u32 = 1 << 3;
const ORIGINAL: [u8; 1] = [0];
const REPLY: [u8; 1] = [1];

const PRIORITY_DNAT: i32 = -100;
const PRIORITY_SNAT: i32 = 100;
const PRIORITY_FILTER: i32 = 0;
/// Priority after the policy, so that packets which it drops are not counted.
const PRIORITY_LATE: i32 = 10;
/// Priority before other filters of the host.
const PRIORITY_EARLY: i32 = -10;

/// Burst in addition to the rate: the largest packet that the kernel's segmentation offload makes.
const BURST_BYTES: u32 = 64 * 1024;
const BURST_PACKETS: u32 = 64;

const CLOSED: &str = "closed";
const ALLOW: &str = "allow";
const DENY: &str = "deny";
const UNOPENED: &str = "unopened";
const RESOLVERS: &str = "resolvers";

fn rule(why: &'static str, tests: Vec<Test>, action: Action) -> Rule {
    Rule { why, tests, over: None, action }
}

fn accept(why: &'static str, tests: Vec<Test>) -> Rule {
    rule(why, tests, Action::Verdict(Verdict::Accept))
}

fn drop(why: &'static str, tests: Vec<Test>) -> Rule {
    rule(why, tests, Action::Verdict(Verdict::Drop))
}

/// Drops packets that are neither TCP, UDP nor ICMP: the rules cannot filter the content of tunnels (GRE,
/// IPIP, 6in4).
fn tunnels(link: &Test) -> Rule {
    let others = [TCP, UDP, ICMP].map(|protocol| Key::Protocol.not(protocol));
    drop("another protocol", [link.clone()].into_iter().chain(others).collect())
}

fn chain(name: &'static str, hook: Hook, priority: i32, policy: Verdict, rules: Vec<Rule>) -> Chain {
    Chain { name, kind: Kind::Filter, hook, priority, policy, rules }
}

fn nat(name: &'static str, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { name, kind: Kind::Nat, hook, priority, policy: Verdict::Accept, rules }
}

/// Removes empty sets; no rule looks them up.
fn sets(all: Vec<(&'static str, Vec<Range>)>) -> Vec<Set> {
    let full = all.into_iter().filter(|(_, ranges)| !ranges.is_empty());
    full.map(|(name, ranges)| Set { name, ranges }).collect()
}

/// Private networks that stay closed with any policy.
fn closed(common: &Common) -> Vec<Range> {
    let openable = difference(&union(common.permitted.iter().copied()), &union(ALWAYS_CLOSED));
    difference(&union(PRIVATE), &openable)
}

/// Rules for frames that a slot's tap device receives: only IPv4 from the guest's address and ARP about it.
/// They run before all other rules.
pub(crate) fn guard(slot: &SlotSpec) -> Table {
    let rules = vec![
        drop("another hardware address", vec![Key::EtherSource.not(GUEST_MAC)]),
        accept(
            "the guest asks for its gateway or answers it",
            vec![
                Key::EtherType.is(ETHERTYPE_ARP),
                Key::ArpHead.is(ARP_HEAD),
                Key::ArpSenderMac.is(GUEST_MAC),
                Key::ArpSenderAddress.address(GUEST_ADDRESS),
                Key::ArpTargetAddress.address(TAP_ADDRESS),
            ],
        ),
        accept(
            "the guest's own address",
            vec![
                Key::EtherType.is(ETHERTYPE_IPV4),
                Key::IpHead.is(IP_HEAD),
                Key::IpSource.address(GUEST_ADDRESS),
            ],
        ),
    ];
    let hook = Hook::Ingress(slot.tap.clone());
    let chains = vec![chain("ingress", hook, PRIORITY_FILTER, Verdict::Drop, rules)];
    Table { family: Family::Netdev, name: "guard".into(), sets: Vec::new(), chains }
}

/// Restricts a policy to the egress setting. The host's rules do so too, but another program may remove them
/// for a moment.
fn within(egress: Egress, policy: &Policy) -> Policy {
    match egress {
        Egress::Nat => policy.clone(),
        Egress::None => Policy { upload: policy.upload, download: policy.download, ..Policy::closed() },
    }
}

/// Rules in a slot's namespace: address translation and the sandbox's policy.
pub(crate) fn slot(slot: &SlotSpec, policy: &Policy, common: &Common) -> Table {
    let policy = &within(common.egress, policy);
    let (uplink, tap) = (Key::InLink.link(UPLINK), Key::InLink.link(&slot.tap));
    let to_agent = vec![uplink.clone(), Key::IpDestination.address(slot.host_address)];
    let mut incoming =
        vec![rule("the host reaches the guest", to_agent, Action::DestinationNat(GUEST_ADDRESS))];
    for (asked, resolver) in resolvers::targets(&common.resolvers) {
        for protocol in [UDP, TCP] {
            let tests = vec![
                tap.clone(),
                Key::IpDestination.address(asked),
                Key::Protocol.is(protocol),
                Key::DestinationPort.is(PORT_DNS),
            ];
            incoming.push(rule("names", tests, Action::DestinationNat(resolver)));
        }
    }
    let leaving = vec![Key::OutLink.link(UPLINK), Key::IpSource.address(GUEST_ADDRESS)];
    let outgoing = vec![rule("the slot's address", leaving, Action::SourceNat(slot.veth_slot_address))];
    let chains = vec![
        nat("prerouting", Hook::Prerouting, PRIORITY_DNAT, incoming),
        nat("postrouting", Hook::Postrouting, PRIORITY_SNAT, outgoing),
        chain("forward", Hook::Forward, PRIORITY_FILTER, Verdict::Drop, forward(slot, policy, common)),
        // The namespace itself has no services.
        chain("input", Hook::Input, PRIORITY_FILTER, Verdict::Drop, Vec::new()),
    ];
    let sets = sets(vec![
        (CLOSED, closed(common)),
        (ALLOW, union(policy.allow.iter().copied())),
        (UNOPENED, unopened(common)),
        (DENY, union(policy.deny.iter().copied())),
    ]);
    Table { family: Family::Ip, name: "slot".into(), sets, chains }
}

/// Private networks, if a policy may open some. The rule comes after `allow`, which accepts the allowed ones,
/// and after the networks that always stay closed.
fn unopened(common: &Common) -> Vec<Range> {
    if common.permitted.is_empty() { Vec::new() } else { union(PRIVATE) }
}

fn over(why: &'static str, from: &Test, rate: Rate) -> Vec<Rule> {
    let bytes = rate.bytes.map(|per_second| Limit::Bytes { per_second, burst: BURST_BYTES });
    let packets = rate.packets.map(|per_second| {
        let burst = u32::try_from(per_second).unwrap_or(u32::MAX).clamp(1, BURST_PACKETS);
        Limit::Packets { per_second, burst }
    });
    let limits = bytes.into_iter().chain(packets);
    let action = Action::Verdict(Verdict::Drop);
    limits.map(|limit| Rule { why, tests: vec![from.clone()], over: Some(limit), action }).collect()
}

/// Rules that apply the policy. They check every packet of a flow, not only the first, so that a changed
/// policy also stops existing flows; and they check the flow's original destination, so that one list serves
/// both directions.
fn forward(slot: &SlotSpec, policy: &Policy, common: &Common) -> Vec<Rule> {
    let (from_host, from_guest) = (Key::InLink.link(UPLINK), Key::InLink.link(&slot.tap));
    let asked = |set| vec![Key::FlowDestination.in_set(set)];
    let translated = Key::FlowStatus.any_bit(TRANSLATED);
    let mut rules = vec![
        drop("belongs to no flow", vec![Key::FlowState.any_bit(INVALID_OR_UNTRACKED)]),
        accept(
            "the host speaks to the guest",
            vec![from_host.clone(), Key::FlowDirection.is(ORIGINAL), translated.clone()],
        ),
        accept(
            "the guest answers the host",
            vec![from_guest.clone(), Key::FlowDirection.is(REPLY), translated.clone()],
        ),
        drop("from outside, unasked", vec![from_host.clone(), Key::FlowDirection.is(ORIGINAL)]),
        drop("an answer to nobody", vec![from_guest.clone(), Key::FlowDirection.is(REPLY)]),
        tunnels(&from_guest),
    ];
    rules.extend(over("more than the upload rate", &from_guest, policy.upload));
    rules.extend(over("more than the download rate", &from_host, policy.download));
    if policy.dns && !common.resolvers.is_empty() {
        for resolver in resolvers::GUEST_RESOLVERS {
            rules.push(accept("names", vec![Key::FlowDestination.address(resolver), translated.clone()]));
        }
    }
    rules.push(drop("never open", asked(CLOSED)));
    // The guest chooses the destination of a flow's ICMP errors.
    rules.push(drop("never open", vec![from_guest, Key::IpDestination.in_set(CLOSED)]));
    if !policy.allow.is_empty() {
        rules.push(accept("allowed", asked(ALLOW)));
    }
    if !unopened(common).is_empty() {
        rules.push(drop("private, and not asked for", asked(UNOPENED)));
    }
    if !policy.deny.is_empty() {
        rules.push(drop("denied", asked(DENY)));
    }
    if policy.internet {
        rules.push(accept("the internet", Vec::new()));
    }
    rules
}

/// Rules that limit the guest's number of flows. They are in a table of their own, so that replacing the
/// policy does not reset the count. They match only the first packet of a flow, so that existing flows
/// continue.
pub(crate) fn flows(slot: &SlotSpec) -> Table {
    let over = |why, limit| {
        let first = vec![Key::InLink.link(&slot.tap), Key::FlowStatus.no_bit(CONFIRMED)];
        Rule { why, tests: first, over: Some(limit), action: Action::Verdict(Verdict::Drop) }
    };
    let rules = vec![
        over("too many new flows", Limit::Packets { per_second: MAX_NEW_FLOWS, burst: MAX_FLOWS }),
        over("too many flows", Limit::Flows(MAX_FLOWS)),
    ];
    let chains = vec![chain("forward", Hook::Forward, PRIORITY_LATE, Verdict::Accept, rules)];
    Table { family: Family::Ip, name: "flows".into(), sets: Vec::new(), chains }
}

/// Host's rules for all slots of an agent: no guest reaches the host, another guest or a private network, and
/// nobody outside reaches a guest. They do not rely on the slots' own rules.
pub(crate) fn host(plan: &Plan, common: &Common) -> Table {
    let prefix = plan.link_prefix();
    let (from, to) = (Key::InLink.begins(&prefix), Key::OutLink.begins(&prefix));
    let answers = |link: &Test| {
        vec![link.clone(), Key::FlowState.any_bit(ESTABLISHED_OR_RELATED), Key::FlowDirection.is(REPLY)]
    };
    let foreign = || drop("not a slot's address", vec![from.clone(), Key::IpSource.outside(VETH_NETWORK)]);
    let names = || -> Vec<Rule> {
        let open = common.egress == Egress::Nat && !common.resolvers.is_empty();
        let rule = |protocol: [u8; 1]| {
            let tests = vec![
                from.clone(),
                Key::IpDestination.in_set(RESOLVERS),
                Key::Protocol.is(protocol),
                Key::DestinationPort.is(PORT_DNS),
            ];
            accept("names", tests)
        };
        if open { vec![rule(UDP), rule(TCP)] } else { Vec::new() }
    };
    let leaving = match common.egress {
        Egress::Nat => accept("the internet", vec![from.clone()]),
        Egress::None => drop("nothing leaves", vec![from.clone()]),
    };
    // A resolver may be a service of the host itself.
    // Replies come first: they have the slot's other address, to which the host sent its request.
    let mut input = vec![accept("guests answer the host", answers(&from)), foreign()];
    input.extend(names());
    input.push(drop("no service of the host", vec![from.clone()]));

    let mut forward = vec![
        drop("between guests", vec![from.clone(), to.clone()]),
        accept("answers to guests", answers(&to)),
        drop("from outside, unasked", vec![to]),
        foreign(),
        tunnels(&from),
    ];
    forward.extend(names());
    forward.push(drop("never open", vec![from.clone(), Key::IpDestination.in_set(CLOSED)]));
    forward.push(leaving);

    let masked = vec![Key::IpSource.within(VETH_NETWORK), Key::OutLink.begins_not(&prefix)];
    let chains = vec![
        chain("input", Hook::Input, PRIORITY_EARLY, Verdict::Accept, input),
        chain("forward", Hook::Forward, PRIORITY_EARLY, Verdict::Accept, forward),
        nat(
            "postrouting",
            Hook::Postrouting,
            PRIORITY_SNAT,
            vec![rule("the host's address", masked, Action::Masquerade)],
        ),
    ];
    let resolvers = union(common.resolvers.iter().copied().map(Cidr::from));
    let sets = sets(vec![(CLOSED, closed(common)), (RESOLVERS, resolvers)]);
    Table { family: Family::Ip, name: host_table(plan), sets, chains }
}

/// The host's rule for traffic that is not of guests, if it did not forward before the agent started: it must
/// not become a router between its other networks.
pub(crate) fn others(plan: &Plan) -> Table {
    let prefix = plan.link_prefix();
    let foreign = vec![Key::InLink.begins_not(&prefix), Key::OutLink.begins_not(&prefix)];
    let rules = vec![drop("not of guests", foreign)];
    let chains = vec![chain("forward", Hook::Forward, PRIORITY_EARLY, Verdict::Accept, rules)];
    Table { family: Family::Ip, name: others_table(plan), sets: Vec::new(), chains }
}

/// Name of the table of [`others`].
pub(crate) fn others_table(plan: &Plan) -> String {
    format!("{}_others", host_table(plan))
}

/// Name of the table of [`host`].
pub(crate) fn host_table(plan: &Plan) -> String {
    format!("wrenn_{}", plan.instance())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn plan() -> Plan {
        Plan::new("t1", Path::new("/n")).unwrap()
    }

    fn common(permitted: &[&str]) -> Common {
        let permitted = permitted.iter().map(|text| text.parse().unwrap()).collect();
        Common { egress: Egress::Nat, resolvers: vec![[192, 168, 1, 1].into()], permitted }
    }

    fn texts(table: &Table, chain: &str) -> Vec<String> {
        let chain = table.chains.iter().find(|found| found.name == chain).unwrap();
        chain.rules.iter().map(ToString::to_string).collect()
    }

    fn set(table: &Table, name: &str) -> Vec<String> {
        let found = table.sets.iter().find(|set| set.name == name);
        found.map(|set| set.ranges.iter().map(ToString::to_string).collect()).unwrap_or_default()
    }

    /// Policy, networks permitted by the host, and rules after [`BEGIN`].
    type Case = (Policy, &'static [&'static str], Vec<&'static [&'static str]>);

    /// First rules of every policy.
    const BEGIN: [&str; 6] = [
        "ct state & 0x41 drop",
        "iifname eth0 ct direction original ct status & 0x20 accept",
        "iifname tap0 ct direction reply ct status & 0x20 accept",
        "iifname eth0 ct direction original drop",
        "iifname tap0 ct direction reply drop",
        "iifname tap0 l4proto != 06 l4proto != 11 l4proto != 01 drop",
    ];
    const DNS: [&str; 2] = [
        "ct original ip daddr 169.254.0.53 ct status & 0x20 accept",
        "ct original ip daddr 169.254.0.54 ct status & 0x20 accept",
    ];
    const ALLOWED: &str = "ct original ip daddr @allow accept";
    const DENIED: &str = "ct original ip daddr @deny drop";
    const UNASKED: &str = "ct original ip daddr @unopened drop";
    const NEVER: [&str; 2] = ["ct original ip daddr @closed drop", "iifname tap0 ip daddr @closed drop"];

    #[test]
    fn policies_become_rules_in_their_order() {
        let network = |text: &str| vec![text.parse().unwrap()];
        let (allow, deny) = (network("203.0.113.0/24"), network("0.0.0.0/0"));
        let default = Policy::default();
        let slow = Rate { bytes: Some(5000), packets: Some(70) };
        let table: Vec<Case> = vec![
            (default.clone(), &[], vec![&DNS, &NEVER, &["accept"]]),
            (Policy::closed(), &[], vec![&NEVER]),
            (Policy { dns: false, ..default.clone() }, &[], vec![&NEVER, &["accept"]]),
            (Policy { deny: deny.clone(), ..default.clone() }, &[], vec![&DNS, &NEVER, &[DENIED, "accept"]]),
            (
                Policy { allow: allow.clone(), deny, ..default.clone() },
                &[],
                vec![&DNS, &NEVER, &[ALLOWED, DENIED, "accept"]],
            ),
            (Policy { allow: allow.clone(), ..Policy::closed() }, &[], vec![&NEVER, &[ALLOWED]]),
            (default.clone(), &["10.0.0.0/8"], vec![&DNS, &NEVER, &[UNASKED, "accept"]]),
            (
                Policy { allow, ..default.clone() },
                &["10.0.0.0/8"],
                vec![&DNS, &NEVER, &[ALLOWED, UNASKED, "accept"]],
            ),
            (
                Policy { upload: slow, ..default.clone() },
                &[],
                vec![
                    &["iifname tap0 over 5000 bytes/second drop", "iifname tap0 over 70/second drop"],
                    &DNS,
                    &NEVER,
                    &["accept"],
                ],
            ),
            (
                Policy { download: slow, ..default },
                &[],
                vec![
                    &["iifname eth0 over 5000 bytes/second drop", "iifname eth0 over 70/second drop"],
                    &DNS,
                    &NEVER,
                    &["accept"],
                ],
            ),
        ];
        for (policy, permitted, rest) in table {
            let rules = slot(&plan().slot(3).unwrap(), &policy, &common(permitted));
            assert_eq!(texts(&rules, "forward"), [&BEGIN[..], &rest.concat()].concat(), "{policy:?}");
            for chain in &rules.chains {
                assert_eq!(chain.policy == Verdict::Drop, matches!(chain.hook, Hook::Forward | Hook::Input));
            }
        }
    }

    #[test]
    fn addresses_are_translated() {
        let rules = slot(&plan().slot(3).unwrap(), &Policy::default(), &common(&[]));
        let incoming = texts(&rules, "prerouting");
        assert_eq!(incoming[0], "iifname eth0 ip daddr 10.11.0.3 dnat to 169.254.0.21");
        let dns = "iifname tap0 ip daddr 169.254.0.54 l4proto 06 th dport 53 dnat to 192.168.1.1";
        assert_eq!((incoming.len(), incoming[4].as_str()), (5, dns));
        assert_eq!(texts(&rules, "postrouting"), ["oifname eth0 ip saddr 169.254.0.21 snat to 10.12.0.7"]);
        let none = Common { resolvers: Vec::new(), ..common(&[]) };
        let rules = slot(&plan().slot(3).unwrap(), &Policy::default(), &none);
        assert_eq!((texts(&rules, "prerouting").len(), texts(&rules, "forward").len()), (1, 9));
    }

    #[test]
    fn a_tap_takes_in_the_guests_own_frames() {
        let rules = guard(&plan().slot(3).unwrap());
        assert_eq!(
            texts(&rules, "ingress"),
            [
                "ether saddr != 02:fc:00:00:00:05 drop",
                "ether type 0x0806 arp head 00:01:08:00:06:04 arp saddr ether 02:fc:00:00:00:05 \
                 arp saddr ip 169.254.0.21 arp daddr ip 169.254.0.22 accept",
                "ether type 0x0800 ip head 45 ip saddr 169.254.0.21 accept",
            ]
        );
        assert_eq!(rules.chains[0].policy, Verdict::Drop);
        assert_eq!(rules.chains[0].hook, Hook::Ingress("tap0".into()));
    }

    #[test]
    fn a_guests_flows_are_bounded_behind_its_policy() {
        let rules = flows(&plan().slot(3).unwrap());
        assert_eq!(
            texts(&rules, "forward"),
            [
                "iifname tap0 ct status & 0x8 == 0 over 64/second drop",
                "iifname tap0 ct status & 0x8 == 0 over 4096 flows drop",
            ]
        );
        let policy = slot(&plan().slot(3).unwrap(), &Policy::default(), &common(&[]));
        let forward = policy.chains.iter().find(|chain| chain.hook == Hook::Forward).unwrap();
        assert!(rules.chains[0].priority > forward.priority);
        assert_ne!(rules.name, policy.name);
    }

    #[test]
    fn the_host_forwards_to_the_internet_only() {
        let rules = host(&plan(), &common(&[]));
        assert_eq!(
            texts(&rules, "forward"),
            [
                "iifname wrt1-* oifname wrt1-* drop",
                "oifname wrt1-* ct state & 0x6 ct direction reply accept",
                "oifname wrt1-* drop",
                "iifname wrt1-* ip saddr != 10.12.0.0/16 drop",
                "iifname wrt1-* l4proto != 06 l4proto != 11 l4proto != 01 drop",
                "iifname wrt1-* ip daddr @resolvers l4proto 11 th dport 53 accept",
                "iifname wrt1-* ip daddr @resolvers l4proto 06 th dport 53 accept",
                "iifname wrt1-* ip daddr @closed drop",
                "iifname wrt1-* accept",
            ]
        );
        assert_eq!(texts(&rules, "input").last().unwrap(), "iifname wrt1-* drop");
        assert_eq!(texts(&rules, "postrouting"), ["ip saddr 10.12.0.0/16 oifname != wrt1-* masquerade"]);
        assert_eq!(set(&rules, RESOLVERS), ["192.168.1.1-192.168.1.1"]);
    }

    #[test]
    fn a_host_that_was_no_router_becomes_none() {
        assert_eq!(texts(&others(&plan()), "forward"), ["iifname != wrt1-* oifname != wrt1-* drop"]);
        assert_ne!(others_table(&plan()), host_table(&plan()));
    }

    #[test]
    fn without_egress_nothing_is_forwarded() {
        let closed = Common { egress: Egress::None, ..common(&[]) };
        let rules = host(&plan(), &closed);
        let forward = texts(&rules, "forward");
        assert_eq!(forward.last().unwrap(), "iifname wrt1-* drop");
        assert!(forward.iter().all(|rule| !rule.starts_with("iifname") || rule.ends_with("drop")));
        assert!(!texts(&rules, "input").iter().any(|rule| rule.contains("53")));
        // The slot's own rules do not forward either.
        let open = Policy { allow: vec!["203.0.113.0/24".parse().unwrap()], ..Policy::default() };
        let spec = plan().slot(3).unwrap();
        let refused = slot(&spec, &Policy::closed(), &common(&[]));
        assert_eq!(texts(&slot(&spec, &open, &closed), "forward"), texts(&refused, "forward"));
    }

    #[test]
    fn permission_opens_what_may_be_opened_and_no_more() {
        let rules = slot(&plan().slot(3).unwrap(), &Policy::default(), &common(&["0.0.0.0/0"]));
        assert_eq!(
            set(&rules, CLOSED),
            [
                "0.0.0.0-0.255.255.255",
                "10.11.0.0-10.12.255.255",
                "127.0.0.0-127.255.255.255",
                "168.63.129.16-168.63.129.16",
                "169.254.0.0-169.254.255.255",
                "224.0.0.0-255.255.255.255",
            ]
        );
        let rules = slot(&plan().slot(3).unwrap(), &Policy::default(), &common(&["192.168.7.0/24"]));
        let closed = set(&rules, CLOSED);
        assert!(closed.contains(&"192.168.0.0-192.168.6.255".into()), "{closed:?}");
        assert!(closed.contains(&"192.168.8.0-192.168.255.255".into()), "{closed:?}");
        assert_eq!(set(&rules, UNOPENED).len(), PRIVATE.len());
    }

    #[test]
    fn names_and_comments_fit_the_kernel() {
        let slot_table = slot(&plan().slot(3).unwrap(), &Policy::default(), &common(&["10.0.0.0/8"]));
        let spec = plan().slot(3).unwrap();
        for table in [slot_table, guard(&spec), flows(&spec), host(&plan(), &common(&[])), others(&plan())] {
            let rules = table.chains.iter().flat_map(|chain| &chain.rules);
            // The kernel accepts 255 bytes including the terminating zero and the comment's header.
            assert!(rules.clone().all(|rule| rule.why.len() < 128));
            let looked_up = rules.flat_map(|rule| &rule.tests).filter_map(|test| match test.want {
                crate::model::Want::In(name) => Some(name),
                _ => None,
            });
            looked_up.for_each(|name| assert!(table.sets.iter().any(|set| set.name == name), "{name}"));
        }
    }
}
