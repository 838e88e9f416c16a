// SPDX-License-Identifier: Apache-2.0
//! Sends nftables rulesets to the kernel: one atomic nfnetlink batch (linux/netfilter/nf_tables.h).

use std::io;

use crate::{
    NetworkError,
    cidr::Range,
    model::{Action, Chain, Family, Hook, Key, Kind, Limit, Rule, Set, Table, Test, Verdict, Want},
    netfilter::{Head, Messages, Socket, received},
};

/// Constants of `nf_tables.h` and `nfnetlink.h`.
mod kernel {
    pub(super) const SUBSYSTEM: u16 = 10;
    pub(super) const BATCH_BEGIN: u16 = 0x10;
    pub(super) const BATCH_END: u16 = 0x11;
    pub(super) const NEW_TABLE: u16 = 0;
    pub(super) const GET_TABLE: u16 = 1;
    pub(super) const DELETE_TABLE: u16 = 2;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const NEW_RULE: u16 = 6;
    pub(super) const NEW_SET: u16 = 9;
    pub(super) const NEW_ELEMENTS: u16 = 12;
    pub(super) const LIST_ELEMENT: u16 = 1;
    /// First data register; register 0 is the verdict.
    pub(super) const REGISTER: u32 = 1;
    pub(super) const SET_CONSTANT: u32 = 2;
    pub(super) const SET_INTERVAL: u32 = 4;
    /// Type number that `nft` uses for IPv4 addresses.
    pub(super) const TYPE_ADDRESS: u32 = 7;
    pub(super) const INTERVAL_END: u32 = 1;
    /// Flag of a limit: packets over the limit match.
    pub(super) const LIMIT_OVER: u32 = 1;
    /// Flag of a flow count: packets over the count match.
    pub(super) const COUNT_OVER: u32 = 1;
}

/// Atomic batch of changes.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    messages: Messages,
    /// Description of each message; the sequence number of a message is its position plus one.
    about: Vec<String>,
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::Ip => 2,
        Family::Netdev => 5,
    }
}

impl Batch {
    fn push(&mut self, about: String, command: u16, family: Family, fill: impl FnOnce(&mut Messages)) {
        let flags = match command {
            kernel::DELETE_TABLE => 0,
            kernel::NEW_RULE => libc::NLM_F_CREATE | libc::NLM_F_APPEND,
            _ => libc::NLM_F_CREATE,
        };
        let flags = (flags | libc::NLM_F_ACK) as u16;
        let (kind, sequence) = (kernel::SUBSYSTEM << 8 | command, self.about.len() as u32 + 1);
        self.messages
            .message(Head { kind, flags, sequence, family: family_number(family), resource: 0 }, fill);
        self.about.push(about);
    }

    fn edge(&mut self, kind: u16) {
        let head = Head { kind, flags: 0, sequence: 0, family: 0, resource: kernel::SUBSYSTEM };
        self.messages.message(head, |_| {});
    }

    /// Creates a batch; `fill` adds its changes.
    pub(crate) fn of(fill: impl FnOnce(&mut Self)) -> Self {
        let mut batch = Self::default();
        batch.edge(kernel::BATCH_BEGIN);
        fill(&mut batch);
        batch.edge(kernel::BATCH_END);
        batch
    }

    /// Removes a table. Does nothing if there is none.
    pub(crate) fn remove(&mut self, family: Family, name: &str) {
        // Create the table first, so that removing a missing one is no error.
        for (what, command) in [("table", kernel::NEW_TABLE), ("the removal of table", kernel::DELETE_TABLE)]
        {
            self.push(format!("{what} {name}"), command, family, |message| message.text(1, name));
        }
    }

    /// Replaces or creates a table.
    pub(crate) fn replace(&mut self, table: &Table) {
        self.remove(table.family, &table.name);
        self.add(table);
    }

    /// Adds a table that does not exist. Cheaper than [`Self::replace`], because after a removal the kernel
    /// makes the caller wait.
    pub(crate) fn add(&mut self, table: &Table) {
        self.push(format!("table {}", table.name), kernel::NEW_TABLE, table.family, |message| {
            message.text(1, &table.name);
        });
        for (id, set) in (1..).zip(&table.sets) {
            self.set(table, set, id);
        }
        for chain in &table.chains {
            self.push(format!("chain {}", chain.name), kernel::NEW_CHAIN, table.family, |message| {
                message.text(1, &table.name);
                encode_chain(message, chain);
            });
            for rule in &chain.rules {
                let about = format!("rule \"{}\" ({rule}) of chain {}", rule.why, chain.name);
                self.push(about, kernel::NEW_RULE, table.family, |message| {
                    message.text(1, &table.name);
                    message.text(2, chain.name);
                    message.nested(4, |list| encode_rule(list, rule, table));
                    message.raw(7, &comment(rule.why));
                });
            }
        }
    }

    fn set(&mut self, table: &Table, set: &Set, id: u32) {
        self.push(format!("set {}", set.name), kernel::NEW_SET, table.family, |message| {
            message.text(1, &table.name);
            message.text(2, set.name);
            message.number(3, kernel::SET_CONSTANT | kernel::SET_INTERVAL);
            message.number(4, kernel::TYPE_ADDRESS);
            message.number(5, 4);
            message.number(10, id);
        });
        self.push(format!("elements of set {}", set.name), kernel::NEW_ELEMENTS, table.family, |message| {
            message.text(1, &table.name);
            message.text(2, set.name);
            message.number(4, id);
            message.nested(3, |list| set.ranges.iter().for_each(|range| encode_range(list, *range)));
        });
    }

    /// Sends the batch to the kernel of the calling thread's namespace.
    pub(crate) fn apply(self, socket: &Socket) -> Result<(), NetworkError> {
        let failed = |what: &str, source| NetworkError::Rules { what: what.to_owned(), source };
        let all = "the packet filter";
        socket.send(&self.messages).map_err(|source| failed(all, source))?;
        let mut buffer = vec![0; 32 * 1024];
        let mut acknowledged = 0;
        while let Some(bytes) = socket.receive(&mut buffer).map_err(|source| failed(all, source))? {
            for answer in received(bytes) {
                let Some(code) = answer.error() else { continue };
                let about = (answer.sequence as usize).checked_sub(1).and_then(|place| self.about.get(place));
                if code != 0 {
                    let error = io::Error::from_raw_os_error(-code);
                    let source = match answer.reason() {
                        Some(reason) => io::Error::new(error.kind(), format!("{error}: {reason}")),
                        None => error,
                    };
                    return Err(failed(about.map_or(all, String::as_str), source));
                }
                acknowledged += usize::from(about.is_some());
            }
        }
        if acknowledged == self.about.len() {
            return Ok(());
        }
        let source = format!("it acknowledged {acknowledged} of {} changes", self.about.len());
        Err(failed(all, io::Error::other(source)))
    }
}

/// Returns whether the calling thread's namespace has a table of this name.
pub(crate) fn has_table(socket: &Socket, family: Family, name: &str) -> Result<bool, NetworkError> {
    let failed = |source| NetworkError::Rules { what: format!("the query for table {name}"), source };
    let kind = kernel::SUBSYSTEM << 8 | kernel::GET_TABLE;
    let mut messages = Messages::default();
    let head = Head { kind, flags: 0, sequence: 1, family: family_number(family), resource: 0 };
    messages.message(head, |message| message.text(1, name));
    socket.send(&messages).map_err(failed)?;
    let mut buffer = vec![0; 4096];
    let bytes = socket.receive(&mut buffer).map_err(failed)?.unwrap_or_default();
    let answer = received(bytes).next().ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
    match answer.error() {
        None => Ok(true),
        Some(code) if code == -libc::ENOENT => Ok(false),
        Some(code) => Err(failed(io::Error::from_raw_os_error(-code))),
    }
}

/// Encodes a comment like `nft`: type, length, text.
fn comment(text: &str) -> Vec<u8> {
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

fn encode_chain(message: &mut Messages, chain: &Chain) {
    message.text(3, chain.name);
    let (number, device) = match &chain.hook {
        Hook::Ingress(device) => (0, Some(device)),
        Hook::Prerouting => (0, None),
        Hook::Input => (1, None),
        Hook::Forward => (2, None),
        Hook::Postrouting => (4, None),
    };
    message.nested(4, |hook| {
        hook.number(1, number);
        hook.raw(2, &chain.priority.to_be_bytes());
        if let Some(device) = device {
            hook.text(3, device);
        }
    });
    message.number(5, verdict_number(chain.policy));
    message.text(
        7,
        match chain.kind {
            Kind::Filter => "filter",
            Kind::Nat => "nat",
        },
    );
}

fn encode_range(list: &mut Messages, range: Range) {
    let mut element = |address: u32, flags: u32| {
        list.nested(kernel::LIST_ELEMENT, |element| {
            element.nested(1, |key| key.raw(1, &address.to_be_bytes()));
            if flags != 0 {
                element.number(3, flags);
            }
        });
    };
    element(range.first, 0);
    // A range up to the last address has no end element.
    if let Some(end) = range.last.checked_add(1) {
        element(end, kernel::INTERVAL_END);
    }
}

fn verdict_number(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Drop => 0,
        Verdict::Accept => 1,
    }
}

fn encode_rule(list: &mut Messages, rule: &Rule, table: &Table) {
    rule.tests.iter().for_each(|test| encode_test(list, test, table));
    if let Some(limit) = rule.over {
        encode_limit(list, limit);
    }
    match rule.action {
        Action::Verdict(verdict) => expression(list, "immediate", |data| {
            data.number(1, 0);
            data.nested(2, |value| value.nested(2, |code| code.number(1, verdict_number(verdict))));
        }),
        Action::DestinationNat(to) => encode_nat(list, 1, to.octets()),
        Action::SourceNat(to) => encode_nat(list, 0, to.octets()),
        Action::Masquerade => expression(list, "masq", |_| {}),
    }
}

fn expression(list: &mut Messages, name: &str, data: impl FnOnce(&mut Messages)) {
    list.nested(kernel::LIST_ELEMENT, |element| {
        element.text(1, name);
        element.nested(2, data);
    });
}

fn encode_nat(list: &mut Messages, kind: u32, to: [u8; 4]) {
    expression(list, "immediate", |data| {
        data.number(1, kernel::REGISTER);
        data.nested(2, |value| value.raw(1, &to));
    });
    expression(list, "nat", |data| {
        data.number(1, kind);
        data.number(2, u32::from(family_number(Family::Ip)));
        data.number(3, kernel::REGISTER);
    });
}

fn encode_limit(list: &mut Messages, limit: Limit) {
    let (per_second, burst, kind) = match limit {
        Limit::Packets { per_second, burst } => (per_second, burst, 0),
        Limit::Bytes { per_second, burst } => (per_second, burst, 1),
        Limit::Flows(flows) => {
            return expression(list, "connlimit", |data| {
                data.number(1, flows);
                data.number(2, kernel::COUNT_OVER);
            });
        }
    };
    expression(list, "limit", |data| {
        data.raw(1, &per_second.to_be_bytes());
        data.raw(2, &1_u64.to_be_bytes());
        data.number(3, burst);
        data.number(4, kind);
        data.number(5, kernel::LIMIT_OVER);
    });
}

/// Source of a field in the kernel.
enum Source {
    Meta(u32),
    /// Header, offset, length.
    Payload(u32, u32, u32),
    Flow(u32, Option<u8>),
}

fn source(key: Key) -> Source {
    const LINK: u32 = 0;
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    match key {
        Key::InLink => Source::Meta(6),
        Key::OutLink => Source::Meta(7),
        Key::Protocol => Source::Meta(16),
        Key::EtherSource => Source::Payload(LINK, 6, 6),
        Key::EtherType => Source::Payload(LINK, 12, 2),
        Key::ArpHead => Source::Payload(NETWORK, 0, 6),
        Key::ArpSenderMac => Source::Payload(NETWORK, 8, 6),
        Key::ArpSenderAddress => Source::Payload(NETWORK, 14, 4),
        Key::ArpTargetAddress => Source::Payload(NETWORK, 24, 4),
        Key::IpHead => Source::Payload(NETWORK, 0, 1),
        Key::IpSource => Source::Payload(NETWORK, 12, 4),
        Key::IpDestination => Source::Payload(NETWORK, 16, 4),
        Key::DestinationPort => Source::Payload(TRANSPORT, 2, 2),
        Key::FlowState => Source::Flow(0, None),
        Key::FlowDirection => Source::Flow(1, None),
        Key::FlowStatus => Source::Flow(2, None),
        Key::FlowDestination => Source::Flow(20, Some(0)),
    }
}

fn encode_load(list: &mut Messages, key: Key) {
    match source(key) {
        Source::Meta(what) => expression(list, "meta", |data| {
            data.number(1, kernel::REGISTER);
            data.number(2, what);
        }),
        Source::Payload(header, offset, length) => expression(list, "payload", |data| {
            data.number(1, kernel::REGISTER);
            data.number(2, header);
            data.number(3, offset);
            data.number(4, length);
        }),
        Source::Flow(what, direction) => expression(list, "ct", |data| {
            data.number(1, kernel::REGISTER);
            data.number(2, what);
            if let Some(direction) = direction {
                data.raw(3, &[direction]);
            }
        }),
    }
}

fn encode_compare(list: &mut Messages, equal: bool, bytes: &[u8]) {
    expression(list, "cmp", |data| {
        data.number(1, kernel::REGISTER);
        data.number(2, u32::from(!equal));
        data.nested(3, |value| value.raw(1, bytes));
    });
}

fn encode_mask(list: &mut Messages, mask: [u8; 4]) {
    expression(list, "bitwise", |data| {
        data.number(1, kernel::REGISTER);
        data.number(2, kernel::REGISTER);
        data.number(3, 4);
        data.nested(4, |value| value.raw(1, &mask));
        data.nested(5, |value| value.raw(1, &[0; 4]));
    });
}

fn encode_test(list: &mut Messages, test: &Test, table: &Table) {
    encode_load(list, test.key);
    match &test.want {
        Want::Is(bytes) => encode_compare(list, true, bytes),
        Want::Not(bytes) => encode_compare(list, false, bytes),
        Want::Begins(prefix) => encode_compare(list, true, prefix.as_bytes()),
        Want::BeginsNot(prefix) => encode_compare(list, false, prefix.as_bytes()),
        Want::AnyBit(bits) | Want::NoBit(bits) => {
            // The kernel stores these in host byte order.
            encode_mask(list, bits.to_ne_bytes());
            encode_compare(list, matches!(test.want, Want::NoBit(_)), &[0; 4]);
        }
        Want::Within(network) | Want::Outside(network) => {
            encode_mask(list, network.mask().to_be_bytes());
            let equal = matches!(test.want, Want::Within(_));
            encode_compare(list, equal, &network.address().octets());
        }
        Want::In(name) => {
            let place = table.sets.iter().position(|set| set.name == *name);
            expression(list, "lookup", |data| {
                data.text(1, name);
                data.number(2, kernel::REGISTER);
                // The kernel rejects an unknown set, and the error names this rule.
                data.number(4, place.map_or(0, |place| place as u32 + 1));
            });
        }
    }
}
