// SPDX-License-Identifier: Apache-2.0
//! Deletion of conntrack entries by netlink (linux/netfilter/nfnetlink_conntrack.h).

use std::{io, net::Ipv4Addr};

use crate::{
    NetworkError,
    netfilter::{Head, Messages, Socket, attribute, received},
};

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_ADDRESSES: u16 = 1;
const IDENTITY: u16 = 12;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
const FAMILY_ANY: u8 = 0;
const FAMILY_IPV4: u8 = 2;

/// Selects flows by source or destination address of their first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flows {
    From(Ipv4Addr),
    To(Ipv4Addr),
}

/// Key of one conntrack entry.
struct Flow {
    tuple: Vec<u8>,
    identity: Vec<u8>,
}

fn failed(source: io::Error) -> NetworkError {
    NetworkError::Io { action: "forget the flows of a slot".into(), source }
}

fn head(kind: u16, flags: libc::c_int, family: u8) -> Head {
    Head { kind, flags: flags as u16, sequence: 1, family, resource: 0 }
}

fn result_of(code: i32) -> io::Result<()> {
    match -code {
        // The kernel has deleted the entry meanwhile.
        0 | libc::ENOENT => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn send_and_check(socket: &Socket, messages: &Messages) -> io::Result<()> {
    socket.send(messages)?;
    let mut buffer = [0; 4096];
    let bytes = socket.receive(&mut buffer)?.unwrap_or_default();
    let code = received(bytes).find_map(|answer| answer.error());
    result_of(code.ok_or(io::ErrorKind::UnexpectedEof)?)
}

/// Deletes all conntrack entries of the calling thread's namespace.
pub(crate) fn forget_all(socket: &Socket) -> Result<(), NetworkError> {
    let mut messages = Messages::default();
    messages.message(head(DELETE, libc::NLM_F_ACK, FAMILY_ANY), |_| {});
    send_and_check(socket, &messages).map_err(failed)
}

fn ask(which: Flows) -> Messages {
    // Filter bit and attribute type of the source or destination address.
    let (bit, kind, address) = match which {
        Flows::From(address) => (1_u32, 1, address),
        Flows::To(address) => (2, 2, address),
    };
    let mut messages = Messages::default();
    messages.message(head(GET, libc::NLM_F_DUMP, FAMILY_IPV4), |message| {
        message.nested(TUPLE_ORIGINAL, |tuple| {
            tuple.nested(TUPLE_ADDRESSES, |addresses| addresses.raw(kind, &address.octets()));
        });
        message.nested(FILTER, |filter| {
            filter.raw(FILTER_ORIGINAL, &bit.to_ne_bytes());
            filter.raw(FILTER_REPLY, &0_u32.to_ne_bytes());
        });
    });
    messages
}

fn matches(which: Flows, tuple: &[u8]) -> bool {
    let (kind, address) = match which {
        Flows::From(address) => (1, address),
        Flows::To(address) => (2, address),
    };
    let found = attribute(tuple, TUPLE_ADDRESSES).and_then(|addresses| attribute(addresses, kind));
    found == Some(&address.octets())
}

fn list(socket: &Socket, which: Flows) -> io::Result<Vec<Flow>> {
    socket.send(&ask(which))?;
    let (mut flows, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    while let Some(bytes) = socket.receive(&mut buffer)? {
        for message in received(bytes) {
            if i32::from(message.kind) == libc::NLMSG_DONE {
                return Ok(flows);
            }
            if let Some(code) = message.error() {
                return result_of(code).map(|()| flows);
            }
            let part = |kind| attribute(message.attributes(), kind).unwrap_or_default().to_vec();
            let flow = Flow { tuple: part(TUPLE_ORIGINAL), identity: part(IDENTITY) };
            // An old kernel may ignore the filter.
            if matches(which, &flow.tuple) {
                flows.push(flow);
            }
        }
    }
    Ok(flows)
}

/// Returns whether the calling thread's namespace has conntrack entries. Listing walks a hash table sized for
/// hundreds of thousands of entries, even if it is empty.
fn any() -> bool {
    // Assume that there are some if the kernel does not say.
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    count.map_or(true, |count| count.trim() != "0")
}

/// Sysctl with the maximum number of conntrack entries of all namespaces together.
const TABLE: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// Raises `nf_conntrack_max` to at least `flows`. When the table is full, the kernel drops new connections of
/// every sandbox and of the host.
pub(crate) fn make_room(flows: u64) {
    let room = std::fs::read_to_string(TABLE).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if room.is_some_and(|room| room >= flows) {
        return;
    }
    // Fails in a network namespace other than the initial one, as agents have in tests.
    if let Err(error) = std::fs::write(TABLE, flows.to_string()) {
        tracing::warn!(
            %error,
            "guests may fill the kernel's conntrack table: set net.netfilter.nf_conntrack_max to {flows} or more"
        );
    }
}

/// Deletes selected conntrack entries of the calling thread's namespace; returns their number.
pub(crate) fn forget(socket: &Socket, which: Flows) -> Result<usize, NetworkError> {
    if !any() {
        return Ok(0);
    }
    let flows = list(socket, which).map_err(failed)?;
    for flow in &flows {
        let mut messages = Messages::default();
        messages.message(head(DELETE, libc::NLM_F_ACK, FAMILY_IPV4), |message| {
            message.nested(TUPLE_ORIGINAL, |tuple| tuple.append(&flow.tuple));
            message.raw(IDENTITY, &flow.identity);
        });
        send_and_check(socket, &messages).map_err(failed)?;
    }
    Ok(flows.len())
}
