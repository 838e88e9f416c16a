// SPDX-License-Identifier: Apache-2.0
//! nftables rulesets as values: tables, sets, chains and rules. [`rules`](crate::rules) creates them,
//! [`nft`](crate::nft) sends them to the kernel, and `Display` prints them in a syntax similar to that of
//! `nft`.

use std::{fmt, net::Ipv4Addr};

use crate::cidr::{Cidr, Range};

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Ip,
    /// Frames received by one device.
    Netdev,
}

/// Table, which is replaced or removed as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) family: Family,
    pub(crate) name: String,
    pub(crate) sets: Vec<Set>,
    pub(crate) chains: Vec<Chain>,
}

/// Set of addresses, which rules look up by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// Sorted ranges that neither overlap nor adjoin.
    pub(crate) ranges: Vec<Range>,
}

/// Hook at which a chain is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hook {
    /// When the named device receives a frame, before the kernel processes it.
    Ingress(String),
    Prerouting,
    Input,
    Forward,
    Postrouting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Filter,
    Nat,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
    /// Verdict for packets that no rule matches.
    pub(crate) policy: Verdict,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
}

/// Rule: applies `action` to a packet that matches all `tests` and, if there is a limit, exceeds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Comment of the rule in the kernel, and its name in errors.
    pub(crate) why: &'static str,
    pub(crate) tests: Vec<Test>,
    pub(crate) over: Option<Limit>,
    pub(crate) action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Verdict(Verdict),
    DestinationNat(Ipv4Addr),
    SourceNat(Ipv4Addr),
    Masquerade,
}

/// Limit of a rule; packets within it continue with the next rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Bytes {
        per_second: u64,
        burst: u32,
    },
    Packets {
        per_second: u64,
        burst: u32,
    },
    /// Number of concurrent flows. The rule must match only the first packet of a flow, because the kernel
    /// may count a later packet as another flow.
    Flows(u32),
}

/// Field of a packet or of its metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    InLink,
    OutLink,
    EtherSource,
    /// Type on the wire; a VLAN tag counts as a type.
    EtherType,
    /// Hardware type, protocol type and both address lengths.
    ArpHead,
    ArpSenderMac,
    ArpSenderAddress,
    ArpTargetAddress,
    /// Byte with version and header length.
    IpHead,
    IpSource,
    IpDestination,
    /// Transport protocol: TCP, UDP, …
    Protocol,
    DestinationPort,
    FlowState,
    FlowDirection,
    FlowStatus,
    /// Original destination of the flow's first packet, before translation.
    FlowDestination,
}

/// Condition on a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Want {
    Is(Vec<u8>),
    Not(Vec<u8>),
    /// Prefix of a name.
    Begins(String),
    BeginsNot(String),
    AnyBit(u32),
    NoBit(u32),
    Within(Cidr),
    Outside(Cidr),
    /// Member of the named set.
    In(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Test {
    pub(crate) key: Key,
    pub(crate) want: Want,
}

impl Key {
    pub(crate) fn is(self, bytes: impl Into<Vec<u8>>) -> Test {
        Test { key: self, want: Want::Is(bytes.into()) }
    }

    pub(crate) fn not(self, bytes: impl Into<Vec<u8>>) -> Test {
        Test { key: self, want: Want::Not(bytes.into()) }
    }

    pub(crate) fn address(self, address: Ipv4Addr) -> Test {
        self.is(address.octets())
    }

    /// Matches the link of this name.
    pub(crate) fn link(self, name: &str) -> Test {
        // The kernel compares all 16 bytes of a name.
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(libc::IFNAMSIZ, 0);
        self.is(bytes)
    }

    pub(crate) fn begins(self, prefix: &str) -> Test {
        Test { key: self, want: Want::Begins(prefix.to_owned()) }
    }

    pub(crate) fn begins_not(self, prefix: &str) -> Test {
        Test { key: self, want: Want::BeginsNot(prefix.to_owned()) }
    }

    pub(crate) fn any_bit(self, bits: u32) -> Test {
        Test { key: self, want: Want::AnyBit(bits) }
    }

    pub(crate) fn no_bit(self, bits: u32) -> Test {
        Test { key: self, want: Want::NoBit(bits) }
    }

    pub(crate) fn outside(self, network: Cidr) -> Test {
        Test { key: self, want: Want::Outside(network) }
    }

    pub(crate) fn within(self, network: Cidr) -> Test {
        Test { key: self, want: Want::Within(network) }
    }

    pub(crate) fn in_set(self, name: &'static str) -> Test {
        Test { key: self, want: Want::In(name) }
    }

    fn text(self) -> &'static str {
        match self {
            Self::InLink => "iifname",
            Self::OutLink => "oifname",
            Self::EtherSource => "ether saddr",
            Self::EtherType => "ether type",
            Self::ArpHead => "arp head",
            Self::ArpSenderMac => "arp saddr ether",
            Self::ArpSenderAddress => "arp saddr ip",
            Self::ArpTargetAddress => "arp daddr ip",
            Self::IpHead => "ip head",
            Self::IpSource => "ip saddr",
            Self::IpDestination => "ip daddr",
            Self::Protocol => "l4proto",
            Self::DestinationPort => "th dport",
            Self::FlowState => "ct state",
            Self::FlowDirection => "ct direction",
            Self::FlowStatus => "ct status",
            Self::FlowDestination => "ct original ip daddr",
        }
    }

    fn show(self, bytes: &[u8]) -> String {
        let link = || String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        match (self, bytes) {
            (Self::InLink | Self::OutLink, _) => link(),
            (_, [a, b, c, d]) => Ipv4Addr::new(*a, *b, *c, *d).to_string(),
            (Self::EtherType, [high, low]) => format!("0x{high:02x}{low:02x}"),
            (Self::DestinationPort, [high, low]) => u16::from_be_bytes([*high, *low]).to_string(),
            (Self::FlowDirection, [0]) => "original".into(),
            (Self::FlowDirection, _) => "reply".into(),
            _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.text();
        match &self.want {
            Want::Is(bytes) => write!(f, "{key} {}", self.key.show(bytes)),
            Want::Not(bytes) => write!(f, "{key} != {}", self.key.show(bytes)),
            Want::Begins(prefix) => write!(f, "{key} {prefix}*"),
            Want::BeginsNot(prefix) => write!(f, "{key} != {prefix}*"),
            Want::AnyBit(bits) => write!(f, "{key} & {bits:#x}"),
            Want::NoBit(bits) => write!(f, "{key} & {bits:#x} == 0"),
            Want::Within(network) => write!(f, "{key} {network}"),
            Want::Outside(network) => write!(f, "{key} != {network}"),
            Want::In(set) => write!(f, "{key} @{set}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tests.iter().try_for_each(|test| write!(f, "{test} "))?;
        match self.over {
            Some(Limit::Bytes { per_second, .. }) => write!(f, "over {per_second} bytes/second ")?,
            Some(Limit::Packets { per_second, .. }) => write!(f, "over {per_second}/second ")?,
            Some(Limit::Flows(flows)) => write!(f, "over {flows} flows ")?,
            None => {}
        }
        match self.action {
            Action::Verdict(Verdict::Accept) => write!(f, "accept"),
            Action::Verdict(Verdict::Drop) => write!(f, "drop"),
            Action::DestinationNat(to) => write!(f, "dnat to {to}"),
            Action::SourceNat(to) => write!(f, "snat to {to}"),
            Action::Masquerade => write!(f, "masquerade"),
        }
    }
}
